"""MultiNLI: does the first sentence entail or contradict the second, and does negation mislead?

The files are the user's, in one directory: ``metadata_random.csv`` of kohpangwei/group_DRO (its random 50-20-30 split,
Sagawa et al. 2020, arXiv:1911.08731) and the three ``multinli_1.0_*.jsonl`` of https://cims.nyu.edu/~sbowman/multinli/.
TFDS's own ``multi_nli`` shuffles the rows that the split refers to, and needs TensorFlow. The published BERT features
are PyTorch files; pass a tokenizer as ``encode`` instead.
"""

import csv
import json
import string
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from d3mjax.data import splits
from d3mjax.types import Data, Split

LABELS = ("contradiction", "entailment", "neutral")
GROUP_NAMES = tuple(f"{label}, {negation}" for label in LABELS for negation in ("no negation", "negation"))
"""``group = 2 * y + negation``: whether the second sentence has one of ``NEGATIONS``."""

NEGATIONS = {"nobody", "no", "never", "nothing"}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

COUNTS = {
    "train": (57_498, 11_158, 67_376, 1_521, 66_630, 1_992),
    "val": (22_814, 4_634, 26_949, 613, 26_655, 797),
    "test": (34_597, 6_655, 40_496, 886, 39_930, 1_148),
}
"""Published group sizes, from analysis code built on kohpangwei/group_DRO; they add up to all 412,349 labelled rows."""

_FILES = tuple(f"multinli_1.0_{part}.jsonl" for part in ("train", "dev_matched", "dev_mismatched"))


def hash_words(
    premises: Sequence[str], hypotheses: Sequence[str], *, length: int = 64, vocabulary: int = 30_000
) -> Int32[np.ndarray, "n 2 length"]:
    """Words of either sentence as numbers ``1 + crc32 % vocabulary``, cut or padded with 0 to ``length``."""
    out = np.zeros((len(premises), 2, length), np.int32)
    for i, pair in enumerate(zip(premises, hypotheses, strict=True)):
        for j, sentence in enumerate(pair):
            codes = [1 + zlib.crc32(word.encode()) % vocabulary for word in words(sentence)[:length]]
            out[i, j, : len(codes)] = codes
    return out


def words(sentence: str) -> list[str]:
    """Lower case, without punctuation, split at spaces: as the published groups were made."""
    return sentence.translate(_NO_PUNCTUATION).lower().split(" ")


def load_multinli(
    seed: int = 0,
    *,
    source_dir: str | Path,
    encode: Callable[[Sequence[str], Sequence[str]], Any] = hash_words,
    counts: splits.Counts | None = COUNTS,
) -> Data:
    """Published train and test; target and selection are random halves of the published validation split.

    x is ``encode(premises, hypotheses)``, any pytree of arrays [n, ...]; y indexes ``LABELS``, groups are
    ``GROUP_NAMES``, ids are row numbers over the three files. Raises ``ValueError`` for a file that is missing or
    damaged, metadata that contradicts the text, or groups that are not of the sizes ``counts`` (None: any).
    """
    source = Path(source_dir)
    ids, y, negation, split = _metadata(source / "metadata_random.csv").T
    rows = [row for name in _FILES for row in _rows(source / name)]
    if not len(ids) or ids.max() >= len(rows):
        raise ValueError(f"{source}: found {len(rows)} rows of text, expected those of metadata_random.csv")
    labels, premises, hypotheses = zip(*(rows[i] for i in ids), strict=True)
    texts = np.array(
        [(label == LABELS[i], _negated(text)) for label, i, text in zip(labels, y, hypotheses, strict=True)]
    )
    if (wrong := ~texts[:, 0] | (texts[:, 1] != negation)).any():
        first = ids[np.argmax(wrong)]
        raise ValueError(
            f"{source}: label or negation differs from the text's, first in row {first}, expected the same"
        )
    x = encode(premises, hypotheses)
    whole = Split(x, y, 2 * y + negation, ids)
    parts = {name: splits.take(whole, np.flatnonzero(split == code)) for code, name in enumerate(COUNTS)}
    return splits.from_published(parts, seed, counts=counts)


def _metadata(path: Path) -> Int32[np.ndarray, "n 4"]:
    try:
        with open(path, newline="") as file:
            keys = ("", "gold_label", "sentence2_has_negation", "split")
            return np.array([[int(row[key]) for key in keys] for row in csv.DictReader(file)], np.int32).reshape(-1, 4)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected group_DRO's metadata") from error


def _rows(path: Path) -> list[tuple[str, str, str]]:
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            fields = map(json.loads, file)
            return [(row["gold_label"], row["sentence1"], row["sentence2"]) for row in fields]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected MultiNLI 1.0") from error


def _negated(sentence: str) -> bool:
    return not NEGATIONS.isdisjoint(words(sentence))
