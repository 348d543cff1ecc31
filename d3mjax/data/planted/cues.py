"""Planted cues: which images get which attribute, and how the attribute shows in the pixels.

A *cue* is any callable ``(images uint8 [n h w 1], attribute int [n]) -> uint8 [n h w c]`` with a ``num_attributes``.
Those of this module are frozen dataclasses: equal cues have equal ``repr``, which may be the key of a cache.
Groups are ``num_attributes * y + attribute``. A class y *agrees* with attribute ``y % num_attributes``.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer, UInt8

Images = UInt8[np.ndarray, "n h w 1"]
Attribute = Integer[np.ndarray, "n"]
Counts = int | tuple[int, ...]
"""A split's size, or the exact number of images of each group."""

MEAN_COLOURS = (
    *((0.984, 0.313, 0.169), (0.991, 0.916, 0.352), (0.673, 0.461, 0.580), (0.783, 0.832, 0.601)),
    *((0.088, 0.778, 0.982), (0.321, 0.961, 0.446), (0.025, 0.236, 0.759), (0.555, 0.102, 0.762)),
    *((0.208, 0.393, 0.019), (0.834, 0.202, 0.267)),
)
"""The ten of LfF's Coloured MNIST (alinlab/LfF, decoded from its ``colors.th``), red, green, blue."""


@runtime_checkable
class Cue(Protocol):
    """The interface of a cue."""

    @property
    def num_attributes(self) -> int: ...
    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w c"]: ...


@dataclasses.dataclass(frozen=True)
class NoCue:
    """Images as they are: one attribute, so groups are classes."""

    num_attributes: int = 1

    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w 1"]:
        return images.copy()


@dataclasses.dataclass(frozen=True)
class CornerPatch:
    """A white square in one corner: attribute 0 top left, 1 top right, 2 bottom left, 3 bottom right.

    ``width`` None means a seventh of the image: 2 at 14 x 14, 4 at 28 x 28.
    """

    num_attributes: int = 2
    width: int | None = None

    def __post_init__(self):
        if not 1 <= self.num_attributes <= 4:
            raise ValueError(f"num_attributes: found {self.num_attributes}, expected 1..4 corners")

    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w 1"]:
        height, length = images.shape[1:3]
        width = height // 7 if self.width is None else self.width
        row, column = np.arange(height)[:, None, None], np.arange(length)[:, None]
        bottom, right = attribute[:, None, None, None] // 2, attribute[:, None, None, None] % 2
        inside_rows = np.where(bottom, row >= height - width, row < width)
        inside_columns = np.where(right, column >= length - width, column < width)
        return np.where(inside_rows & inside_columns, np.uint8(255), images)


@dataclasses.dataclass(frozen=True)
class BackgroundColour:
    """Pixels darker than ``threshold`` take the colour of the attribute; the others stay grey. Gives three channels."""

    colours: tuple[tuple[int, int, int], ...] = ((160, 64, 0), (0, 64, 160))
    threshold: int = 16  # Fashion-MNIST backgrounds are 0, plus a little scanner noise

    @property
    def num_attributes(self) -> int:
        return len(self.colours)

    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w 3"]:
        colour = np.array(self.colours, np.uint8)[attribute][:, None, None]
        return np.where(images < self.threshold, colour, images)


@dataclasses.dataclass(frozen=True)
class InkColour:
    """Strokes on black take the colour of the attribute: channel = intensity * colour / 255. Gives three channels."""

    colours: tuple[tuple[int, int, int], ...] = ((255, 64, 0), (0, 64, 255))

    @property
    def num_attributes(self) -> int:
        return len(self.colours)

    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w 3"]:
        colour = np.array(self.colours, np.uint16)[attribute][:, None, None]
        return (images * colour // 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class JitteredInk:
    """Strokes on black take a colour near the attribute's mean. Gives three channels.

    ``channel = intensity * clip(mean + s z, 0, 1)``, z standard normal for each image and channel: the generator of
    LfF's Coloured MNIST (Nam et al. 2020, arXiv:2007.02561). ``severity`` 1..5 means s = .05, .02, .01, .005, .002.
    z is drawn from the seed and a digest of the image alone, so that an image has the same z in every call, order and
    colour, and so do equal images.
    """

    severity: int = 4
    seed: int = 0
    colours: tuple[tuple[float, float, float], ...] = MEAN_COLOURS

    def __post_init__(self):
        if not 1 <= self.severity <= 5:
            raise ValueError(f"severity: found {self.severity}, expected 1..5")

    @property
    def num_attributes(self) -> int:
        return len(self.colours)

    @property
    def deviation(self) -> float:
        return (0.05, 0.02, 0.01, 0.005, 0.002)[self.severity - 1]

    def __call__(self, images: Images, attribute: Attribute) -> UInt8[np.ndarray, "n h w 3"]:
        digests = (int.from_bytes(hashlib.sha256(image.tobytes()).digest()) for image in images)
        z = [np.random.default_rng([self.seed, digest]).standard_normal(3) for digest in digests]
        noise = self.deviation * np.array(z).reshape(-1, 3)  # no image, no colour
        colour = np.clip(np.array(self.colours)[attribute] + noise, 0, 1).astype(np.float32)
        # Channel by channel: a third of the memory.
        channels = [np.rint(images[..., 0] * c[:, None, None]).astype(np.uint8) for c in colour.T]
        return np.stack(channels, axis=-1)


def apportion(num: int, shares: Sequence[float | int]) -> tuple[int, ...]:
    """Whole numbers that add up to ``num`` in proportion to ``shares`` (largest remainder, ties to the first)."""
    if num < 0 or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"num, shares: found {num}, {tuple(shares)}, expected non-negative, shares not all zero")
    exact = num * np.asarray(shares, np.float64) / sum(shares)
    whole = np.floor(exact + 1e-9).astype(int)  # 0.95 * 2000 must count as 1900
    remainder = np.round(exact - whole, 9)
    whole[np.argsort(-remainder, kind="stable")[: num - whole.sum()]] += 1
    return tuple(whole.tolist())


def group_shares(
    num_classes: int, num_attributes: int, aligned: float, class_shares: Sequence[float] | None = None
) -> tuple[float, ...]:
    """Share of each group: ``aligned`` of a class has the agreeing attribute, the others split the rest equally."""
    classes = [1 / num_classes] * num_classes if class_shares is None else list(class_shares)
    if not 0 <= aligned <= 1:
        raise ValueError(f"aligned: found {aligned}, expected a share in 0..1")
    if len(classes) != num_classes or min(classes) <= 0:
        raise ValueError(f"class_shares: found {tuple(classes)}, expected {num_classes} positive shares")
    if num_attributes == 1:
        return tuple(classes)
    other = (1 - aligned) / (num_attributes - 1)
    return tuple(
        share * (aligned if a == y % num_attributes else other)
        for y, share in enumerate(classes)
        for a in range(num_attributes)
    )


def split_counts(name: str, asked: Counts, mix: Sequence[float | int]) -> tuple[int, ...]:
    """Exact group counts of a split: a size in proportion to ``mix``, counts as they are; ``name`` is for errors."""
    if isinstance(asked, int):
        return apportion(asked, mix)
    if len(asked) != len(mix) or min(asked) < 0:
        raise ValueError(f"{name}: found {asked}, expected {len(mix)} non-negative group counts, or one size")
    return asked


def spread(num: int, num_classes: int, num_attributes: int, aligned: float) -> tuple[int, ...]:
    """Group counts with ``aligned`` of ``num`` in agreement, the rest spread over all classes and attributes alike.

    With many groups, ``apportion`` by ``group_shares`` rounds group by group: small splits would lose the share, and
    the first classes would have all that disagree. Raises ``ValueError`` for a share outside 0..1, or one attribute.
    """
    if not 0 <= aligned <= 1 or num_attributes < 2:
        found = f"{aligned}, {num_attributes}"
        raise ValueError(f"aligned, num_attributes: found {found}, expected a share in 0..1, 2 attributes or more")
    y, attribute = np.divmod(np.arange(num_classes * num_attributes), num_attributes)
    turn = (attribute - y) % num_attributes
    agrees, others = np.flatnonzero(turn == 0), np.lexsort((-y, turn))[num_classes:]
    counts = np.zeros(len(y), int)
    # The remainder goes to the first classes of one part and to the last of the other: classes stay balanced.
    for groups, size in zip((agrees, others), apportion(num, (aligned, 1 - aligned)), strict=True):
        counts[groups] = apportion(size, (1,) * len(groups))
    return tuple(counts.tolist())


class Drawn(NamedTuple):
    """Which images a split holds, and what each is to be."""

    row: Int[np.ndarray, "n"]  # of the pool
    y: Int[np.ndarray, "n"]
    attribute: Int[np.ndarray, "n"]


def draw(
    seed: int,
    labels: Integer[np.ndarray, " pool"],
    classes: Sequence[Sequence[int]],
    num_attributes: int,
    counts: Sequence[Sequence[int]],
) -> tuple[Drawn, ...]:
    """Disjoint splits of a pool with exact group counts ``counts[split][group]``, each in random order.

    Class y is drawn from the images whose label is in ``classes[y]``. The first splits do not depend on the later
    ones. Raises ``ValueError`` when a class has too few images.
    """
    table = np.array(counts, int).reshape(len(counts), len(classes), num_attributes)
    parts: list[list[Drawn]] = [[] for _ in counts]
    for y, members in enumerate(classes):
        pool = np.flatnonzero(np.isin(labels, list(members)))
        if (asked := int(table[:, y].sum())) > len(pool):
            raise ValueError(f"class {y}, made of {tuple(members)}: asked for {asked} images, found {len(pool)}")
        pool = np.random.default_rng([seed, y]).permutation(pool)
        for s, row in enumerate(table[:, y]):
            chosen, pool = np.split(pool, [row.sum()])
            parts[s].append(Drawn(chosen, np.full(len(chosen), y), np.repeat(np.arange(num_attributes), row)))
    whole = [Drawn(*map(np.concatenate, zip(*part, strict=True))) for part in parts]
    orders = [np.random.default_rng([seed, len(classes), s]).permutation(len(d.y)) for s, d in enumerate(whole)]
    return tuple(Drawn(*(a[order] for a in d)) for d, order in zip(whole, orders, strict=True))
