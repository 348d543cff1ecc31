"""Coloured digits: scikit-learn's 1,797 images of 8 x 8 with an ink colour that mostly agrees with the label.

Small enough for tests: no files, no TFDS, a few milliseconds.
"""

from typing import Any

import numpy as np

from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts
from d3mjax.data.sets import fashion_cues, idx
from d3mjax.types import Data

INK = cues.InkColour()
LOW_HIGH = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


def load_coloured_digits(
    seed: int = 0,
    *,
    aligned: float = 0.95,
    classes: tuple[tuple[int, ...], ...] = LOW_HIGH,
    cue: cues.Cue = INK,
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
    parts: dict[str, Any] = {"train": train, "targets": targets, "selection": selection, "test": test}
    task = fashion_cues.Task(classes=classes, cue=cue, aligned=aligned, seed=seed, **parts)
    return fashion_cues.cued_splits(task, read(), flat=flat)


def read() -> idx.Pool:
    """All 1,797 images, grey 0..255, with their digits and numbers. Raises ``ImportError`` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'd3mjax[commands]'") from error
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (pixels.reshape(-1, 8, 8, 1) * 255 // 16).astype(np.uint8)
    return idx.Pool(images, labels.astype(np.int32), np.arange(len(labels), dtype=np.int32))
