"""Ten classes in ten colours, as in Coloured MNIST: over Fashion-MNIST, MNIST, and scikit-learn's digits.

``aligned`` of each class has its own colour (`spurious.JitteredInk`), the other nine share the rest; in the test split
all hundred groups, ``10 * y + colour``, are equal, so that colour says nothing about the class. Where a split is given
by its size and few images are in conflict, groups may be empty: give its hundred counts instead where each is needed.

Pairs are official test images in the colour of their class and in a random other one, as `pairs.recolour` paints them.
``exclude`` keeps them apart from the test split, say ``exclude=data.test.id``.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from d3mjax.data import splits
from d3mjax.data.pairs import PairSets, draw_recoloured
from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts, JitteredInk
from d3mjax.data.sets import digits, fashion, fashion_cues, mnist
from d3mjax.data.sets.fashion import NUM_TRAIN
from d3mjax.types import AnyArray, Data

TEN = tuple((label,) for label in range(10))
"""Each label a class of its own."""

Ids = Integer[AnyArray, " e"]


def load_coloured_fashion(
    seed: int = 0,
    *,
    aligned: float = 0.99,
    severity: int = 4,
    size: int = 14,
    train: Counts = 50_000,
    targets: Counts = 2000,
    selection: Counts = 2000,
    test: Counts = 5000,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> Data:
    """Fashion-MNIST; x, ids, directories and errors as in `fashion_spurious.load_fashion_spurious`.

    The default test split leaves half of the official test images to `load_fashion_pairs`.
    """
    task = _task(seed, aligned, severity, size, train, targets, selection, test)
    return fashion_cues.load_fashion_spurious(task, data_dir=data_dir, source_dir=source_dir, flat=flat)


def load_coloured_mnist(
    seed: int = 0,
    *,
    aligned: float = 0.99,
    severity: int = 4,
    size: int = 28,
    train: Counts = 50_000,
    targets: Counts = 2000,
    selection: Counts = 2000,
    test: Counts = 4000,
    counts: splits.Counts | None = mnist.COUNTS,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> Data:
    """MNIST, from the sources of `mnist.read`; classes are balanced, so the rarest digit (5) limits the sizes."""
    task = _task(seed, aligned, severity, size, train, targets, selection, test)
    pool = mnist.read(size, source_dir=source_dir, data_dir=data_dir, counts=counts)
    drawn = fashion_cues.draw_splits(task, pool)
    return Data(**{name: fashion_cues.as_split(part, flat=flat) for name, part in drawn.items()})


def load_coloured_ten_digits(
    seed: int = 0,
    *,
    aligned: float = 0.95,
    severity: int = 4,
    train: Counts = 800,
    targets: Counts = 200,
    selection: Counts = 200,
    test: Counts = 200,
    flat: bool = True,
) -> Data:
    """scikit-learn's digits, 8 x 8; some 39 images of each class are left to `load_digit_pairs`."""
    parts = [_spread(part, aligned) for part in (train, targets, selection)]
    return digits.load_coloured_digits(
        seed,
        aligned=aligned,
        classes=TEN,
        cue=JitteredInk(severity=severity, seed=seed),
        train=parts[0],
        targets=parts[1],
        selection=parts[2],
        test=test,
        flat=flat,
    )


def load_fashion_pairs(
    seed: int = 0,
    *,
    exclude: Ids,
    severity: int = 4,
    size: int = 14,
    reference: int = 500,
    selection: int = 500,
    report: int = 2500,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> PairSets:
    """Pairs of Fashion-MNIST's test images, disjoint by image, none of ``exclude``."""
    # The builder knows every source; its test split holds the test images whole, and the others cannot be empty.
    test = fashion_cues.load_fashion(
        size=size, train=10, targets=10, selection=10, test=10_000, data_dir=data_dir, source_dir=source_dir, flat=False
    ).test
    images = np.rint(np.asarray(test.x) * 255).astype(np.uint8)
    rows = (images, np.asarray(test.y), np.asarray(test.id))
    return _inked(*rows, seed, severity, sizes=(reference, selection, report), exclude=exclude, flat=flat)


def load_mnist_pairs(
    seed: int = 0,
    *,
    exclude: Ids,
    severity: int = 4,
    size: int = 28,
    reference: int = 500,
    selection: int = 500,
    report: int = 2500,
    counts: splits.Counts | None = mnist.COUNTS,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> PairSets:
    """Pairs of MNIST's test images, disjoint by image, none of ``exclude``; sources as in `mnist.read`."""
    pool = mnist.read(size, source_dir=source_dir, data_dir=data_dir, counts=counts)
    rows = fashion.Pool(*(a[pool.id >= NUM_TRAIN] for a in pool))
    return _inked(*rows, seed, severity, sizes=(reference, selection, report), exclude=exclude, flat=flat)


def load_digit_pairs(
    seed: int = 0,
    *,
    exclude: Ids,
    severity: int = 4,
    reference: int = 100,
    selection: int = 100,
    report: int = 150,
    flat: bool = True,
) -> PairSets:
    """Pairs of scikit-learn's digits, which has no test files: ``exclude`` the ids of all four splits."""
    images, y = digits.read()
    rows = (images, y, np.arange(len(y)))
    return _inked(*rows, seed, severity, sizes=(reference, selection, report), exclude=exclude, flat=flat)


def _inked(images: np.ndarray, y: np.ndarray, ids: np.ndarray, seed: int, severity: int, **options: Any) -> PairSets:
    """`draw_recoloured` in the ink that the splits of that seed have."""
    return draw_recoloured(images, y, ids, JitteredInk(severity=severity, seed=seed), seed=seed, **options)


def _task(
    seed: int,
    aligned: float,
    severity: int,
    size: int,
    train: Counts,
    targets: Counts,
    selection: Counts,
    test: Counts,
) -> fashion_cues.Task:
    return fashion_cues.Task(
        classes=TEN,
        cue=JitteredInk(severity=severity, seed=seed),
        aligned=aligned,
        train=_spread(train, aligned),
        targets=_spread(targets, aligned),
        selection=_spread(selection, aligned),
        test=test,
        size=size,
        seed=seed,
    )


def _spread(asked: Counts, aligned: float) -> tuple[int, ...]:
    return cues.spread(asked, 10, 10, aligned) if isinstance(asked, int) else asked
