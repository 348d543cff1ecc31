"""Small made problems with a shortcut, for examples and tests: no data set is needed."""

import numpy as np

from d3mjax.types import Data, Split

GROUP_NAMES = ("class 0, cue 0", "class 0, cue 1", "class 1, cue 0", "class 1, cue 1")


def planted_shortcut(
    seed: int, *, train: int = 1000, target: int = 400, selection: int = 400, test: int = 1000, aligned: float = 0.95
) -> Data:
    """Two classes told faintly by one feature and loudly by a cue that agrees with the label for most train examples.

    Features ``[n 6]``: the class (3 y plus noise), the cue (6 s plus noise) and four of noise. The cue s equals the
    label y for a share ``aligned`` of the train examples, for three quarters of the target and selection examples, and
    for half of the test examples. Groups are ``2 y + s``; ids are distinct over the four splits.

    >>> from d3mjax.data.planted.shortcut import planted_shortcut
    >>> data = planted_shortcut(seed=0)
    >>> data.train.x.shape, bool(np.mean(data.train.group % 2 == data.train.y) > 0.9)
    ((1000, 6), True)
    """
    rng, first, parts = np.random.default_rng(seed), 0, []
    for size, share in ((train, aligned), (target, 0.75), (selection, 0.75), (test, 0.5)):
        y = rng.integers(0, 2, size)
        cue = np.where(rng.random(size) < share, y, 1 - y)
        x = rng.normal(size=(size, 6)).astype(np.float32)
        x[:, 0] += 3 * y
        x[:, 1] += 6 * cue
        parts.append(Split(x, y, 2 * y + cue, first + np.arange(size)))
        first += size
    return Data(*parts)


def planted_regression(
    seed: int, *, train: int = 1000, target: int = 400, selection: int = 400, test: int = 1000, aligned: float = 0.95
) -> Data:
    """Numbers told faintly by one feature and loudly by a cue that holds for most train examples; labels of unit scale.

    Labels y are normal. Features ``[n 6]``: ``y`` with noise as large, the cue and four of noise. The cue is y with
    little noise for a share ``aligned`` of the train examples, three quarters of the target and selection examples and
    half of the test examples, and independent of y for the others. Groups: 0 where the cue holds, 1 where it does not.

    >>> from d3mjax.data.planted.shortcut import planted_regression
    >>> data = planted_regression(seed=0)
    >>> data.train.x.shape, data.train.y.dtype, bool(np.mean(data.train.group == 0) > 0.9)
    ((1000, 6), dtype('float32'), True)
    """
    rng, first, parts = np.random.default_rng(seed), 0, []
    for size, share in ((train, aligned), (target, 0.75), (selection, 0.75), (test, 0.5)):
        y = rng.normal(size=size).astype(np.float32)
        broken = rng.random(size) >= share
        x = rng.normal(size=(size, 6)).astype(np.float32)
        x[:, 0] += y
        x[:, 1] = np.where(broken, x[:, 1], y + 0.3 * x[:, 1])
        parts.append(Split(x, y, broken.astype(int), first + np.arange(size)))
        first += size
    return Data(*parts)
