"""SICK: does the first sentence entail or contradict the second, and does negation mislead?

The files are the user's, in one directory: ``SICK_train.txt``, ``SICK_trial.txt`` and ``SICK_test_annotated.txt`` of
SemEval 2014, task 1 (Marelli et al., "A SICK cure for the evaluation of compositional distributional semantic
models", LREC 2014; CC BY-NC-SA 3.0). Most contradictions have a negation, as in MultiNLI; those without are rare.
Of the 4,927 test pairs 86 are also training or trial pairs, in one order or the other: the official test is kept.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from d3mjax.data import splits
from d3mjax.data.sets.negation import is_negated
from d3mjax.types import Data, Split

LABELS = ("neutral", "entailment", "contradiction")
GROUP_NAMES = ("neutral", "neutral, negation", "entailment", "contradiction", "contradiction, negation")
"""Label by negation in either sentence. Entailment is one group: 17 of its 2,857 pairs have a negation."""
_GROUPS = np.array([[0, 1], [2, 2], [3, 4]], np.int32)  # by label and negation

FILES = {"train": "SICK_train.txt", "trial": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
COUNTS = {"train": (2117, 419, 1299, 59, 606), "trial": (240, 42, 144, 10, 64), "test": (2368, 425, 1414, 73, 647)}
"""Groups of the published files by `in_either`; sums over negation are the published counts of labels."""
COUNTS_BY_SECOND = {
    "train": (2319, 217, 1299, 348, 317),
    "trial": (265, 17, 144, 42, 32),
    "test": (2584, 209, 1414, 405, 315),
}
"""The same by `in_second`."""

SHARE = 0.2  # of the pool of training and trial pairs: targets, and as many again for selection


class SentencePairs(NamedTuple):
    """Pairs of sentences with labels."""

    first: list[str]
    second: list[str]
    y: Int[np.ndarray, " n"]  # indexes LABELS
    id: Int[np.ndarray, " n"]  # pair_ID of the files
    part: Int[np.ndarray, " n"]  # 0 train, 1 trial, 2 test; ascending


def in_either(first: str, second: str) -> bool:
    """A negation in one of the sentences, or in both."""
    return is_negated(first) or is_negated(second)


def in_second(_first: str, second: str) -> bool:
    """A negation in the second sentence, as MultiNLI's groups have it."""
    return is_negated(second)


def read_sick(source_dir: str | Path) -> SentencePairs:
    """All pairs of the three published files, one file after the other.

    Raises:
      ValueError: a file that is missing or damaged, naming it.
    """
    rows, parts = [], []
    for part, file in enumerate(FILES.values()):
        of_file = _rows(Path(source_dir) / file)
        rows += of_file
        parts += [part] * len(of_file)
    first, second, y, ids = zip(*rows, strict=True)
    return SentencePairs(list(first), list(second), *(np.array(a, np.int32) for a in (y, ids, parts)))


def load_sick(
    seed: int = 0,
    *,
    source_dir: str | Path,
    encode: Callable[[Sequence[str], Sequence[str]], Any],
    negated: Callable[[str, str], bool] = in_either,
    counts: splits.Counts | None = COUNTS,
) -> Data:
    """The official test; training, targets and selection: .6, .2 and .2 of each group of training and trial pairs.

    Pairs of the same two sentences, in whichever order, are in one split. x is ``encode(first, second)`` of all pairs,
    any pytree of arrays ``[n ...]``; y indexes `LABELS`, groups are `GROUP_NAMES` by ``negated``, ids the files'.

    Raises:
      ValueError: a file that is missing or damaged; groups that are not of the sizes ``counts`` (None: any).
    """
    pairs = read_sick(source_dir)
    negation = np.array(list(map(negated, pairs.first, pairs.second)), np.int32)
    group = _GROUPS[pairs.y, negation]
    for part, expected in enumerate((counts or {}).values()):
        splits.check_counts(group[pairs.part == part], expected, name=f"{list(FILES)[part]}.group")
    whole = Split(encode(pairs.first, pairs.second), pairs.y, group, pairs.id)
    pool, test = np.flatnonzero(pairs.part < 2), np.flatnonzero(pairs.part == 2)
    unordered = [tuple(sorted((pairs.first[i], pairs.second[i]))) for i in pool]
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(unordered))}
    code = _draw(np.array([numbers[pair] for pair in unordered]), group[pool], seed)
    return Data(*(splits.take(whole, index) for index in (*(pool[code == i] for i in range(3)), test)))


def _draw(pair: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """0 (training), 1 (target) or 2 (selection) for each row, the same for rows of one pair."""
    rng = np.random.default_rng(seed)
    _, firsts, sizes = np.unique(pair, return_index=True, return_counts=True)
    code = np.zeros(len(firsts), np.int32)
    for g in np.unique(group):
        order = rng.permutation(np.flatnonzero(group[firsts] == g))
        for part in (1, 2):  # of the same number of rows for every seed: programs are compiled once
            left = round(SHARE * sizes[order].sum())
            for number in order:
                if code[number] == 0 and sizes[number] <= left:
                    code[number], left = part, left - sizes[number]
    return code[pair]


def _rows(path: Path) -> list[tuple[str, str, int, int]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        labels = [LABELS.index(row["entailment_judgment"].lower()) for row in rows]
        pairs = [(row["sentence_A"], row["sentence_B"], int(row["pair_ID"])) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected SICK of SemEval 2014, task 1") from error
    return [(first, second, y, number) for (first, second, number), y in zip(pairs, labels, strict=True)]
