"""Pairs that differ in an attribute, on which `unlearning` measures bias and takes it away.

Flipped features and repainted images are counterfactual: the same example twice. Group pairs are two examples.
The pairs of the update (reference), of choices (selection) and of the report must be disjoint: `PairSets`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from d3mjax.data import splits
from d3mjax.data.planted import cues
from d3mjax.types import AnyArray, Pairs, Split


class PairSets(NamedTuple):
    """Disjoint pairs: for gradients and updates, for choices such as the step, and for numbers alone."""

    reference: Pairs
    selection: Pairs
    report: Pairs


def divide(pairs: Pairs, seed: int, sizes: tuple[int, int, int]) -> PairSets:
    """Disjoint random sets of the sizes (reference, selection, report), by `splits.divide`."""
    return PairSets(*splits.divide(pairs, seed, sizes))


def flip_attribute(
    split: Split,
    columns: slice | Sequence[int] | Integer[np.ndarray, " k"],
    *,
    levels: tuple[int, int] | None = None,
) -> Pairs:
    """Each row of ``x [n, d]``, and the same row with the attribute of the one-hot ``columns`` flipped.

    ``levels = (a, b)`` are two of the k columns, counted from 0; optional where there are only two. Level a
    becomes b; b, and any other level, becomes a. All else stays, also columns that depend on the attribute. Raises
    ``ValueError`` for columns that do not exist or are not one-hot in every row, and where no row, or every row, has
    level a, or b.
    """
    x = np.asarray(split.x)
    at = _within(columns, x.shape[1]) if x.ndim == 2 else []
    if len(at) < 2:
        raise ValueError(f"columns: found {len(at)} in x of shape {x.shape}, expected 2 or more of a table [n, d]")
    if levels is None and len(at) > 2:
        raise ValueError(f"levels: found None, expected two of the {len(at)} levels")
    a, b = (0, 1) if levels is None else levels
    if a == b or not {a, b} <= set(range(len(at))):
        raise ValueError(f"levels: found {levels}, expected two different ones in 0..{len(at) - 1}")
    block = x[:, at]
    one_hot = ((block == 0) | (block == 1)).all(1) & (block.sum(1) == 1)
    if not one_hot.all():
        row = int(np.argmin(one_hot))
        raise ValueError(f"columns: found {block[row].tolist()} in row {row}, expected one 1 among zeros")
    for level in (a, b):
        if (share := block[:, level].mean()) in (0, 1):
            raise ValueError(f"columns: found level {level} in {share:.0%} of {len(x)} rows, expected some and not all")
    flipped = x.copy()
    flipped[:, at] = np.eye(len(at), dtype=x.dtype)[np.where(block[:, a] == 1, b, a)]
    return Pairs(x, flipped, np.asarray(split.y))


def orient(pairs: Pairs, swap: Bool[AnyArray, " p"]) -> Pairs:
    """The sides of the pairs ``swap`` exchanged, so that ``x`` is the side that the bias favours in all of them.

    FMD's steps and the signed bias depend on the sides: signs of unoriented pairs cancel.
    """
    swap = np.asarray(swap)
    side = lambda a, b: np.where(swap.reshape(-1, *[1] * (np.ndim(a) - 1)), b, a)
    return Pairs(side(pairs.x, pairs.flipped), side(pairs.flipped, pairs.x), pairs.y)


def recolour(
    images: UInt8[np.ndarray, "n h w 1"],
    y: Integer[np.ndarray, " n"],
    cue: cues.Cue,
    *,
    seed: int,
    flat: bool = True,
) -> Pairs:
    """Each image painted with the attribute that agrees with its class, and with a random other one.

    ``x`` has attribute ``y % A``, so it is the side aligned with the bias; ``flipped`` has any of the A - 1 others,
    equally likely, drawn by the seed and the position. Both are float32 in 0..1, [n, h*w*c] if ``flat`` else
    [n, h, w, c]. Raises ``ValueError`` for a cue of one attribute.
    """
    num_attributes = cue.num_attributes
    if num_attributes < 2:
        raise ValueError(f"cue: found {num_attributes} attributes, expected 2 or more")
    agrees = y % num_attributes
    step = np.random.default_rng([seed, 1]).integers(1, num_attributes, len(y))  # not the stream that divides
    paint = lambda attribute: cue(images, attribute % num_attributes).astype(np.float32) / 255
    x, flipped = (side.reshape(len(y), -1) if flat else side for side in map(paint, (agrees, agrees + step)))
    return Pairs(x, flipped, y.astype(np.int32))


def draw_recoloured(
    images: UInt8[np.ndarray, "n h w 1"],
    y: Integer[np.ndarray, " n"],
    ids: Integer[np.ndarray, " n"],
    cue: cues.Cue,
    *,
    seed: int,
    sizes: tuple[int, int, int],
    exclude: Integer[AnyArray, " e"],
    flat: bool = True,
) -> PairSets:
    """`recolour` on three disjoint random sets of images, none of whose ids is in ``exclude``.

    Raises ``ValueError`` where the sizes add up to more images than are left.
    """
    left = ~np.isin(ids, np.asarray(exclude))
    return divide(recolour(images[left], y[left], cue, seed=seed, flat=flat), seed, sizes)


def group_paired(split: Split, *, num_attributes: int, label: int) -> Pairs:
    """The i-th example of class ``label`` with attribute 0 (``x``), and the i-th with attribute 1 (``flipped``).

    Groups are ``num_attributes * y + attribute``. The two are unrelated: they differ in the attribute and in
    everything else, so this bias mixes identity with the attribute. Report it as
    group-paired, never as counterfactual. Raises ``ValueError`` where one of the two groups is empty.
    """
    if num_attributes < 2:
        raise ValueError(f"num_attributes: found {num_attributes}, expected 2 or more")
    group = np.asarray(split.group)
    rows = [np.flatnonzero(group == num_attributes * label + attribute) for attribute in (0, 1)]
    count = min(map(len, rows))
    if not count:
        sizes = tuple(map(len, rows))
        raise ValueError(f"split.group: found {sizes} of class {label} with attributes 0, 1, expected some of both")
    one, other = (splits.take(split, index[:count]) for index in rows)
    return Pairs(one.x, other.x, one.y)


def _within(columns: slice | Sequence[int] | np.ndarray, width: int) -> list[int]:
    if isinstance(columns, slice):
        stop = width if columns.stop is None else columns.stop
        columns = range(columns.start or 0, stop, columns.step or 1)
    at = [int(i) for i in columns]
    if not at or min(at) < 0 or max(at) >= width or len(set(at)) != len(at):
        raise ValueError(f"columns: found {at}, expected distinct columns in 0..{width - 1}")
    return at
