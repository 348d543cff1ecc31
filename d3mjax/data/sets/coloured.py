"""Ten classes in ten colours, as in Coloured MNIST: over Fashion-MNIST, MNIST, and scikit-learn's digits.

``aligned`` of each class has its own colour (`cues.JitteredInk`), the other nine share the rest; in the test split
all hundred groups, ``10 * y + colour``, are equal, so that colour tells nothing about the class. Where a split is given
by its size and few images are in conflict, groups may be empty: give its hundred counts instead where each is needed.

Pairs are test images in the colour of their class and in a random other one, as `pairs.recolour` paints them:

    task = ColouredTask(seed=3)
    data = load_coloured_fashion(task)
    sets = load_fashion_pairs(task, exclude=data.test.id)

Over MNIST: ``pool = mnist.read(28)``, ``draw(MNIST, pool)``, ``draw_pairs(MNIST, official_test(pool), exclude=...)``;
over its 10,000 digits of `mnist.read_package`: ``PACKAGE_DIGITS``, and ``exclude`` the ids of all four splits.
"""

import dataclasses
from pathlib import Path

from jaxtyping import Integer

from d3mjax.data.pairs import PairSets, draw_recoloured
from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts, JitteredInk
from d3mjax.data.sets import digits, fashion, fashion_cues, idx
from d3mjax.data.sets.fashion_cues import TEN
from d3mjax.types import AnyArray, Data

Ids = Integer[AnyArray, " e"]


@dataclasses.dataclass(frozen=True)
class ColouredTask:
    """What to draw; the default is for Fashion-MNIST, whose test split leaves half of the test images to pairs."""

    seed: int = 0
    aligned: float = 0.99
    severity: int = 4  # of the jitter of colours, 1..5
    train: Counts = 50_000
    targets: Counts = 2000
    selection: Counts = 2000
    test: Counts = 5000
    pairs: tuple[int, int, int] = (500, 500, 2500)  # reference, selection, report
    size: int = 14  # pixels, of images from files

    @property
    def ink(self) -> JitteredInk:
        """The colours of splits and pairs."""
        return JitteredInk(severity=self.severity, seed=self.seed)


FASHION = ColouredTask()
MNIST = ColouredTask(test=4000, size=28)
"""Classes are to be balanced, so the rarest digit (5) limits the sizes."""
PACKAGE_DIGITS = ColouredTask(train=6000, targets=200, selection=200, test=1500, pairs=(500, 500, 1000), size=28)
"""Sizes for `mnist.read_package`: of the rarest digit 73 images are left to pairs."""
DIGITS = ColouredTask(aligned=0.95, train=800, targets=200, selection=200, test=200, pairs=(100, 100, 150))
"""Some 39 images of each class are left to pairs."""


def draw(task: ColouredTask, pool: idx.Pool, *, flat: bool = True) -> Data:
    """The four splits, as `fashion_cues.cued_splits` makes and checks them."""
    spread = lambda asked: cues.spread(asked, 10, 10, task.aligned) if isinstance(asked, int) else asked
    parts = {name: spread(getattr(task, name)) for name in ("train", "targets", "selection")}
    fields = {"aligned": task.aligned, "test": task.test, "size": task.size, "seed": task.seed, **parts}
    return fashion_cues.cued_splits(fashion_cues.Task(classes=TEN, cue=task.ink, **fields), pool, flat=flat)


def draw_pairs(task: ColouredTask, pool: idx.Pool, *, exclude: Ids, flat: bool = True) -> PairSets:
    """Pairs of images of the pool, disjoint by image, none of ``exclude``, in the ink of the task's splits."""
    options = {"seed": task.seed, "sizes": task.pairs, "exclude": exclude, "flat": flat}
    return draw_recoloured(*pool, task.ink, **options)


def official_test(pool: idx.Pool) -> idx.Pool:
    """Those of the official test files."""
    return idx.rows(pool, pool.id >= idx.NUM_TRAIN)


def load_coloured_fashion(
    task: ColouredTask = FASHION, *, source_dir: str | Path | None = None, flat: bool = True
) -> Data:
    """Coloured Fashion-MNIST; sources and errors as of `fashion.read`."""
    return draw(task, fashion.read(range(10), task.size, source_dir=source_dir), flat=flat)


def load_fashion_pairs(
    task: ColouredTask = FASHION, *, exclude: Ids, source_dir: str | Path | None = None, flat: bool = True
) -> PairSets:
    """Pairs of Fashion-MNIST's test images, none of ``exclude``."""
    pool = official_test(fashion.read(range(10), task.size, source_dir=source_dir))
    (drawn,) = cues.draw(0, pool.labels, TEN, 1, [(idx.NUM_TEST // 10,) * 10])  # an order that stored results have
    return draw_pairs(task, idx.rows(pool, drawn.row), exclude=exclude, flat=flat)


def load_coloured_ten_digits(task: ColouredTask = DIGITS, *, flat: bool = True) -> Data:
    """scikit-learn's digits, 8 x 8."""
    return draw(task, digits.read(), flat=flat)


def load_digit_pairs(task: ColouredTask = DIGITS, *, exclude: Ids, flat: bool = True) -> PairSets:
    """Pairs of scikit-learn's digits, which has no test files: ``exclude`` the ids of all four splits."""
    return draw_pairs(task, digits.read(), exclude=exclude, flat=flat)
