"""Planted cues: which images get which attribute, and how the attribute shows in the pixels.

A *cue* is any callable ``(images uint8 [n h w 1], attribute int [n]) -> uint8 [n h w c]`` with a ``num_attributes``.
The ones here are frozen dataclasses, so that two equal cues have equal ``repr`` and a cache can be keyed by it.
Groups are ``num_attributes * y + attribute``. A class y *agrees* with attribute ``y % num_attributes``.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer, UInt8

Images = UInt8[np.ndarray, "n h w 1"]
Attribute = Integer[np.ndarray, " n"]


@runtime_checkable
class Cue(Protocol):
    """What the builders need of a cue."""

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


class Drawn(NamedTuple):
    """Which images a split holds, and what each is to be."""

    row: Int[np.ndarray, " n"]  # of the pool
    y: Int[np.ndarray, " n"]
    attribute: Int[np.ndarray, " n"]


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
