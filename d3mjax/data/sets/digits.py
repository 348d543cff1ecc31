"""Coloured digits: scikit-learn's 1,797 images of 8 x 8 with an ink colour that mostly agrees with the label.

Small enough for tests: no files, no TFDS, a few milliseconds.
"""

import numpy as np
from jaxtyping import Int, UInt8

from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts, split_counts
from d3mjax.types import Data, Split

LOW_HIGH = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


def load_coloured_digits(
    seed: int = 0,
    *,
    aligned: float = 0.95,
    classes: tuple[tuple[int, ...], ...] = LOW_HIGH,
    cue: cues.Cue | None = None,
    train: Counts = 800,
    targets: Counts = 200,
    selection: Counts = 200,
    test: Counts = 400,
    flat: bool = True,
) -> Data:
    """Train, target and selection with ``aligned`` of each class in its colour; test balanced over groups.

    x is float32 in 0..1, [n, 192] if ``flat`` else [n, 8, 8, 3]; y is the class (default: digit >= 5); group =
    num_attributes * y + colour; id = image number in scikit-learn's file. Other ``classes`` (say, ten) take the
    colours in turn: class y agrees with colour ``y % num_attributes``. A split is given by its size, or by the exact
    number of images of each group. Raises ``ImportError`` without scikit-learn, ``ValueError`` when a class has too
    few images.
    """
    images, labels = read()
    cue = cues.InkColour() if cue is None else cue
    num_attributes = cue.num_attributes
    mix = cues.group_shares(len(classes), num_attributes, aligned)
    asked = {"train": train, "targets": targets, "selection": selection}
    counts = [split_counts(name, n, mix) for name, n in asked.items()]
    counts.append(split_counts("test", test, (1.0,) * len(mix)))
    drawn = cues.draw(seed, labels, classes, num_attributes, counts)

    def split(index, y, attribute):
        x = cue(images[index], attribute).astype(np.float32) / 255
        group = num_attributes * y + attribute
        x = x.reshape(len(x), -1) if flat else x
        return Split(x, y.astype(np.int32), group.astype(np.int32), index.astype(np.int32))

    return Data(*(split(*d) for d in drawn))


def read() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int[np.ndarray, " n"]]:
    """All 1,797 images, grey 0..255, and their digits. Raises ``ImportError`` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'd3mjax[experiments]'") from error
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    return (pixels.reshape(-1, 8, 8) * 255 // 16).astype(np.uint8)[..., None], labels
