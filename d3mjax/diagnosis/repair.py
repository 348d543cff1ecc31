"""Repair by type of error: wrong labels are changed, broken features dropped or imputed, minorities up-weighted.

    repaired = repair(table, labels, flags, num_classes=2)
    risk = worst_group_risk(labels, repaired, probabilities, num_classes=2, correct=...)    # check before training

Flags ``[n e]`` are label error, feature error and member of the spurious minority. No row is ever removed: the result
is a table, labels and weights for the ordinary trainer, and a dropped row has weight 0. Without flags the table and
labels stay as they are, with weights of 1. Source: DeMix, Deng et al., arXiv 2606.11616, and its public code
``demix/repair.py``.

Minority rows look like label errors: a model that follows the shortcut is wrong about both. With changed labels they
teach the shortcut, which raises average accuracy and lowers that of the worst group. `cautious` drops the claims that
may be either, which helps but does not solve it; `worst_group_risk` estimates how much of the minority is lost.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from d3mjax.types import AnyArray, Table, classes_of

LABEL, FEATURE, MINORITY = range(3)


class Repaired(NamedTuple):
    """A repaired training set; ids are those of the table before."""

    table: Table
    labels: Num[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]  # 0 for dropped rows


def cautious(
    flags: Bool[AnyArray, "n e"], probabilities: Float[AnyArray, "n e"], *, margin: float = 0.3
) -> Bool[np.ndarray, "n e"]:
    """The flags, label errors only where ``p_label >= p_minority + margin``. Probabilities must be calibrated."""
    flags, p = np.array(flags), np.asarray(probabilities)
    flags[:, LABEL] &= p[:, LABEL] >= p[:, MINORITY] + margin
    return flags


def relabel(
    labels: Num[AnyArray, "n"],
    flagged: Bool[AnyArray, "n"],
    num_classes: int | None,
    *,
    proposed: Num[AnyArray, "n"] | None = None,
) -> tuple[Num[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Labels, flagged ones ``proposed`` (out of fold) or, of two classes, the other; and which rows keep their weight.

    With more classes, or numbers as labels (None), and no proposal the label is unknown: flagged rows keep the recorded
    one and lose their weight.
    """
    labels, flagged = np.asarray(labels), np.asarray(flagged)
    if proposed is None and num_classes != 2:
        return labels, ~flagged
    other = 1 - labels if proposed is None else np.asarray(proposed)
    return np.where(flagged, other, labels).astype(labels.dtype), np.ones(len(labels), bool)


def impute(
    table: Table,
    labels: Num[AnyArray, "n"],
    flagged: Bool[AnyArray, "n"],
    sound: Bool[AnyArray, "n"],
    *,
    z: float = 5.0,
    altered: float = 0.2,
) -> Table:
    """Values of flagged rows that are unlike the ``sound`` rows of their class become the class's mean or mode.

    A number is unlike them if it is more than ``z`` of their deviations from their mean. A level is unlike them if an
    error explains it better than its share s among them: where a column is ``altered`` with that probability, to any of
    the L - 1 other levels alike, its odds are ``altered / (L - 1) : (1 - altered) s``. Missing entries stay missing,
    and a class without sound rows stays as it is.
    """
    labels, flagged, sound = classes_of(np.asarray(labels)), np.asarray(flagged), np.asarray(sound)
    columns = dict(table.columns)
    for name, values in table.columns.items():
        filled = values.copy()
        for c in np.unique(labels[flagged]):
            rows, like = flagged & (labels == c), values[sound & (labels == c)]
            if name in table.levels:
                unlike, typical = _unlike_levels(values, like, len(table.levels[name]), altered)
            else:
                unlike, typical = _unlike_numbers(values, like, z)
            filled[rows & unlike] = typical
        columns[name] = filled
    return table._replace(columns=columns)


def halve_majority(
    minority: Bool[AnyArray, "n"], labels: Num[AnyArray, "n"], kept: Bool[AnyArray, "n"]
) -> Float[np.ndarray, "n"]:
    """1 for the minority and 1/2 for others, as published; 1 for all if there is none, or nothing else."""
    minority, kept = np.asarray(minority), np.asarray(kept)
    both = (minority & kept).any() and (~minority & kept).any()
    return np.where(minority | ~both, np.float32(1), np.float32(0.5))


def equal_mass(
    minority: Bool[AnyArray, "n"], labels: Num[AnyArray, "n"], kept: Bool[AnyArray, "n"]
) -> Float[np.ndarray, "n"]:
    """As much weight on the minority as on all others, mean 1 over the rows kept; 1 for all if either is empty."""
    return _balanced(np.asarray(minority).astype(int), np.asarray(kept))


def equal_groups(
    minority: Bool[AnyArray, "n"], labels: Num[AnyArray, "n"], kept: Bool[AnyArray, "n"]
) -> Float[np.ndarray, "n"]:
    """As much weight on every group of label and side, mean 1 over the rows kept; 1 for all without a minority."""
    minority, kept = np.asarray(minority), np.asarray(kept)
    if not (minority & kept).any():
        return np.ones(len(minority), np.float32)
    return _balanced(2 * np.asarray(labels) + minority, kept)


def repair(
    table: Table,
    labels: Num[AnyArray, "n"],
    flags: Bool[AnyArray, "n e"],
    *,
    num_classes: int | None,
    proposed: Num[AnyArray, "n"] | None = None,
    restore: Callable[..., Table] | None = None,
    weigh: Callable[..., Float[np.ndarray, "n"]] = halve_majority,
) -> Repaired:
    """The training set with every type of error repaired in its own way; without flags unchanged, all weights 1.

    Label errors: `relabel`. Feature errors: dropped, or ``restore(table, labels, flagged, sound)``, such as `impute`,
    with the labels after relabelling, ``sound`` being rows without either error. Minority:
    ``weigh(minority, labels, kept)``, one of `halve_majority`, `equal_mass` and `equal_groups`.
    """
    flags, before = np.asarray(flags), np.asarray(labels)
    wrong, broken, minority = flags.T
    after, kept = relabel(before, wrong, num_classes, proposed=proposed)
    if restore is None:
        kept = kept & ~broken
    elif broken.any():
        table = restore(table, after, broken, ~(wrong | broken))
    return Repaired(table, after, np.where(kept, weigh(minority, classes_of(after), kept), 0).astype(np.float32))


def recommended(
    table: Table,
    labels: Num[AnyArray, "n"],
    flags: Bool[AnyArray, "n e"],
    probabilities: Float[AnyArray, "n e"],
    *,
    num_classes: int | None,
    correct: Bool[AnyArray, "n"] | None = None,
    proposed: Num[AnyArray, "n"] | None = None,
    restore: Callable[..., Table] | None = None,
) -> tuple[Repaired, "Risk"]:
    """Labels far likelier wrong than rare are changed; where the guard warns, groups get equal weight, too.

    The repair of the `cautious` flags without the minority, and its `worst_group_risk`; if that is ``likely``, the
    repair with the minority and `equal_groups`. ``proposed`` and ``restore`` as in `repair`; clear the flags of feature
    errors to leave features alone. The study ``demix_repair`` compares it with others.
    """
    used = cautious(flags, probabilities)
    fix = partial(repair, table, labels, num_classes=num_classes, proposed=proposed, restore=restore)
    first = fix(used & np.array([True, True, False])[None])
    risk = worst_group_risk(labels, first, probabilities, num_classes=num_classes, correct=correct)
    return (fix(used, weigh=equal_groups) if risk.likely else first), risk


def weighed(
    table: Table,
    labels: Num[AnyArray, "n"],
    probabilities: Float[AnyArray, "n e"],
    *,
    num_classes: int | None,
    correct: Bool[AnyArray, "n"] | None = None,
    lift: float = 0.0,
) -> tuple[Repaired, "Risk"]:
    """No label and no value is changed: a row weighs ``(1 - p_label) (1 - p_feature)``, its probability to be sound.

    Of the repairs that study ``demix_tables_repair`` compares on many tables it is the safest: doubtful claims cost
    little, and rare rows keep most of their weight. Its risk counts the weight that rows lose beside the mean row.
    With ``lift`` above 0 the weight is times ``1 - p_minority + p_minority r^lift``: within each label as recorded, r
    is the expected sound majority over the expected sound minority, between 1 and 10, and 1 gives both about the same
    mass. In the study that helps the worst group at some clean ratios, and costs accuracy at others.
    """
    p = np.asarray(probabilities, np.float64)
    sound, rare = np.prod(1 - p[:, [LABEL, FEATURE]], axis=1), p[:, MINORITY]
    y = np.zeros(len(p), int) if num_classes is None else np.asarray(labels, int)
    minority, majority = (np.bincount(y, sound * part) for part in (rare, 1 - rare))
    ratio = np.clip(majority / np.maximum(minority, 1e-12), 1, 10) ** lift
    weights = sound * (1 - rare + rare * ratio[y])
    repaired = Repaired(table, np.asarray(labels), weights.astype(np.float32))
    lost = np.maximum(1 - weights / max(weights.mean(), 1e-12), 0)
    return repaired, worst_group_risk(labels, repaired, p, num_classes=num_classes, correct=correct, lost=lost)


class Risk(NamedTuple):
    """Minority that a repair loses; shares are by label as recorded, NaN for a label without likely minority rows."""

    value: float  # largest share over labels of the expected minority that is lost, in [0, 1]
    likely: bool  # that the worst group gets worse
    dropped: Float[np.ndarray, "C"]  # share that loses its weight
    turned: Float[np.ndarray, "C"]  # share that keeps its weight under another label
    reason: str


def worst_group_risk(
    labels: Num[AnyArray, "n"],
    repaired: Repaired,
    probabilities: Float[AnyArray, "n e"],
    *,
    num_classes: int | None,
    correct: Bool[AnyArray, "n"] | None = None,
    lost: Float[AnyArray, "n"] | None = None,
    tolerance: float = 0.4,
) -> Risk:
    """Whether a repair is likely to lower the worst group, from probabilities alone, without known groups.

    Within each label as recorded, or in all where labels are numbers, the share of the expected minority (the sum of
    probabilities, or of flags) that the repair drops or relabels; ``value`` is the largest. With ``correct``, whether
    the model of the dirty table is right about a row, only rows that it gets wrong count: from these the minority is
    learnt, and these look like label errors. Without it, dropping minority rows that the model gets right counts as
    much. ``lost``: share of its weight that each row loses; if None, all of it where the weight is 0.

    ``tolerance`` is measured: of 24 repairs of Adult (three rules unknown to the trees, one seed), the worst group
    fell by 0.02 to 0.35 in all 18 with a value of 0.48 or more; in the six of 0.36 or less it fell by 0.03 at most and
    rose by up to 0.11. Up-weighting the rest of the minority does not make up for the loss.
    """
    y, p = classes_of(np.asarray(labels)), np.asarray(probabilities, np.float64)[:, MINORITY]
    expected = p if correct is None else p * ~np.asarray(correct)
    gone = repaired.weights == 0
    of = lambda rows: np.bincount(y, expected * rows, num_classes or 1)
    shares = gone if lost is None else np.asarray(lost)
    total = of(np.ones(len(y)))
    part = lambda rows: np.where(total > 0, of(rows) / np.where(total > 0, total, 1), np.nan)
    dropped, turned = part(shares), part((repaired.labels != np.asarray(labels)) & ~gone)
    if not (total > 0).any():
        return Risk(0.0, False, dropped, turned, "no row is likely to be of a minority")
    c = int(np.nanargmax(dropped + turned))
    value = float(dropped[c] + turned[c])
    which = "likely minority rows" if correct is None else "likely minority rows that the model gets wrong"
    of_label = "" if num_classes is None else f" label {c},"
    reason = f"of {which},{of_label} {dropped[c]:.0%} are dropped and {turned[c]:.0%} get another label"
    if lost is not None:
        reason = f"{which},{of_label} lose {dropped[c]:.0%} of their weight beside the mean row"
    return Risk(value, value > tolerance, dropped, turned, reason)


def _unlike_numbers(values, like, z: float):
    """Values more than ``z`` deviations away from those of sound rows, and the mean of these."""
    like = like[np.isfinite(like)]
    if len(like) == 0:
        return np.zeros(len(values), bool), np.nan
    return np.abs(values - like.mean()) > z * like.std(), like.mean()


def _unlike_levels(values, like, num_levels: int, altered: float):
    """Values that an error explains better than the shares among sound rows, and the most frequent of these."""
    counts = np.bincount(like[like >= 0], minlength=num_levels)
    if counts.sum() == 0 or num_levels < 2:
        return np.zeros(len(values), bool), -1
    unlikely = (1 - altered) * counts / counts.sum() < altered / (num_levels - 1)
    return np.where(values >= 0, unlikely[values], False), counts.argmax()


def _balanced(cell, kept) -> Float[np.ndarray, "n"]:
    """Weights that give every cell the same mass over the rows kept, mean 1; 1 for all where only one has any."""
    counts = np.bincount(cell[kept], minlength=cell.max(initial=0) + 1)
    weights = kept.sum() / (np.maximum((counts > 0).sum(), 1) * np.maximum(counts, 1))
    return weights[cell].astype(np.float32)
