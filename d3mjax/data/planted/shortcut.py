"""A small made problem with a shortcut, for examples and tests: no data set is needed."""

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
