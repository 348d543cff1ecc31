"""Training-free scores of suspicion, one or more for each type of error: the baselines of a taught diagnoser.

**Larger is more suspicious**, unlike attributions and the scores of `debiasing`, of which larger is more useful.
Influence matrices have the axes of DeMix's vectors ``[train, validation]`` but the sign of this package, helpful
positive: ``I = -V[:, 0]``.

| type of error | scores |
|---|---|
| label | `loss_rank`, `margin_rank`, `knn_disagreement`, `confident_learning`, `mean_harm`, `own_class_harm`, `cnci` |
| feature | `outliers`, `self_influence_rank`, `pcid` |
| spurious minority | `rare_class`, `jtt_errors` |

Scores need no common scale: compare them by `claims.average_precision`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3mjax import metrics
from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray


def rare_class(y: Int[AnyArray, "n"], num_classes: int) -> Float[Array, "n"]:
    """1 for rows of the rarest class that occurs (ties: the last), else 0: "SC = y".

    A rule whose target is rare, as in the published ones, leaves few minority rows but those of its target, so that the
    label alone predicts the spurious minority. With a balanced rule this score is uninformative.
    """
    counts = jnp.zeros(num_classes, jnp.int32).at[y].add(1)
    counts = jnp.where(counts > 0, counts, jnp.iinfo(counts.dtype).max)
    return (jnp.asarray(y) == num_classes - 1 - jnp.argmin(counts[::-1])).astype(jnp.float32)


def loss_rank(losses: Float[AnyArray, "n"]) -> Float[Array, "n"]:
    """Share of rows in the cell of lower loss, in (0, 1), ties shared: larger is more suspicious."""
    return (metrics.rank(losses) - 0.5) / losses.shape[0]


def margin_rank(margins: Float[AnyArray, "n"]) -> Float[Array, "n"]:
    """Share of rows of higher margin (`outputs.hard_margin`): larger is more suspicious."""
    return loss_rank(-jnp.asarray(margins))


def self_influence_rank(self_influence: Float[AnyArray, "n"]) -> Float[Array, "n"]:
    """Share of rows of lower ``||g_i||^2``, or `trak.self_influence`: larger is more suspicious."""
    return loss_rank(self_influence)


def knn_disagreement(
    x: Float[AnyArray, "n d"], y: Int[AnyArray, "n"], *, neighbours: int = 10, microbatch: int | None = 1024
) -> Float[Array, "n"]:
    """Share of other labels among the nearest rows (Euclidean, not the row itself; equally far ones all count).

    Larger is more suspicious. ``microbatch`` rows at a time against all.

    Raises:
      ValueError: if there are not as many other rows as ``neighbours``.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if not 1 <= neighbours < len(y):
        raise ValueError(f"neighbours: found {neighbours}, expected 1..{len(y) - 1}")
    squares = (x**2).sum(1)

    def rows(i):
        distance = squares[i][:, None] + squares[None] - 2 * dot(x[i], x.T)
        distance = jnp.where(i[:, None] == jnp.arange(len(y))[None], jnp.inf, distance)
        farthest = -jax.lax.top_k(-distance, neighbours)[0][:, -1:]
        near = distance <= farthest
        return (near & (y[i][:, None] != y[None])).sum(1) / near.sum(1)

    return map_microbatches(rows, jnp.arange(len(y)), microbatch=microbatch)


def outliers(x: Float[AnyArray, "n d"]) -> Float[Array, "n"]:
    """``max_j |x_ij - mean_j| / std_j`` over columns of numbers: larger is more suspicious.

    Mean and deviation are over the rows that have a number, broken ones among them; NaN and constant columns give 0.
    """
    x = jnp.asarray(x)
    away = jnp.abs(x - jnp.nanmean(x, axis=0, keepdims=True))
    std = jnp.nanstd(x, axis=0, keepdims=True)
    return jnp.nan_to_num(jnp.where(std > 0, away / jnp.where(std > 0, std, 1), 0)).max(1, initial=0)


def jtt_errors(logits: Float[AnyArray, "n C"], y: Int[AnyArray, "n"]) -> Float[Array, "n"]:
    """1 where a model, stopped early, is wrong, else 0 (Just train twice, Liu et al., 2021): suspects of minority."""
    return (jnp.argmax(jnp.asarray(logits), axis=1) != jnp.asarray(y)).astype(jnp.float32)


def confident_errors(probabilities: Float[AnyArray, "n C"], y: Int[AnyArray, "n"]) -> Bool[Array, "n"]:
    """Rows off the diagonal of the confident joint (Northcutt et al., 2021, arXiv 1911.00068).

    With ``t_k`` the mean of ``p_k`` over the rows labelled k, a row is counted as class k when ``p_k >= t_k``; where
    several are, as the most probable of all classes. Suspects are counted as another class than their label and not
    predicted as it. ``probabilities`` must be out of sample. No row is assigned to an empty class.
    """
    p, y = jnp.asarray(probabilities), jnp.asarray(y)
    member = jax.nn.one_hot(y, p.shape[1], dtype=p.dtype)
    thresholds = (p * member).sum(0) / member.sum(0)
    confident = p >= thresholds[None] - 1e-6
    predicted = jnp.argmax(p, axis=1)
    counted = jnp.where(confident.sum(1) > 1, predicted, jnp.argmax(confident, axis=1))
    return confident.any(1) & (counted != y) & (predicted != y)


def confident_learning(probabilities: Float[AnyArray, "n C"], y: Int[AnyArray, "n"]) -> Float[Array, "n"]:
    """`confident_errors` first, then by ``max_{k != y} p_k - p_y``: larger is more suspicious, suspects are above 1."""
    p = jnp.asarray(probabilities)
    own = jax.nn.one_hot(y, p.shape[1], dtype=bool)
    margin = jnp.where(own, p, 0).sum(1) - jnp.where(own, -jnp.inf, p).max(1)
    return confident_errors(p, y) + margin_rank(margin)


def mean_harm(influence: Float[AnyArray, "n t"]) -> Float[Array, "n"]:
    """Minus the mean over validation rows of the helpful-positive influence: larger is more suspicious."""
    return -jnp.asarray(influence).mean(1)


class Glitches(NamedTuple):
    """Training-free signals; larger is more suspicious."""

    cnci: Float[Array, "n"]  # label errors
    pcid: Float[Array, "n"]  # feature errors
    cfrank: Float[Array, "n 2"]  # both: the larger of the two ranks at its own type, 0 at the other


def glitches(
    influence: Callable[[Int[Array, "n"]], Float[AnyArray, "n t"]],
    y: Int[AnyArray, "n"],
    validation_y: Int[AnyArray, "t"],
    num_classes: int,
) -> Glitches:
    """All three signals from ``influence(labels)``, the helpful-positive matrix if the train rows had these labels.

    It is called three times: with ``y``, with the classes that rows harm most, and with those they help second most.
    With two classes and unit gradients another label is another sign, and nothing need be computed again.
    Source: "Data glitches discovery using influence-based model explanation", github.com/anonymoususr95/
    Influence-Based-Glitch-Detection.
    """
    dirty = influence(jnp.asarray(y))
    helped, harmed = _by_class(dirty, validation_y, num_classes)
    labels = cnci(influence(jnp.argmax(harmed, 1)), y, validation_y, num_classes)
    second = jnp.argsort(-helped, 1)[:, 1]
    features = pcid(dirty, influence(second), validation_y, num_classes)
    return Glitches(labels, features, cfrank(labels, features))


def own_class_harm(
    influence: Float[AnyArray, "n t"], y: Int[AnyArray, "n"], validation_y: Int[AnyArray, "t"], num_classes: int
) -> Float[Array, "n"]:
    """``NIL_i = -sum_{j: y_j = y_i} min(I_ij, 0)``: larger is more suspicious."""
    harmed = _by_class(influence, validation_y, num_classes)[1]
    return jnp.take_along_axis(harmed, jnp.asarray(y)[:, None], axis=1)[:, 0]


def cnci(
    counterfactual: Float[AnyArray, "n t"], y: Int[AnyArray, "n"], validation_y: Int[AnyArray, "t"], num_classes: int
) -> Float[Array, "n"]:
    """Minus `own_class_harm`, with the influence that rows have when labelled as the class they harm most.

    ``y`` are the labels as recorded: a row that harms its own class little even under another label does not belong to
    it. Larger is more suspicious; never above 0.
    """
    return -own_class_harm(counterfactual, y, validation_y, num_classes)


def pcid(
    influence: Float[AnyArray, "n t"],
    counterfactual: Float[AnyArray, "n t"],
    validation_y: Int[AnyArray, "t"],
    num_classes: int,
) -> Float[Array, "n"]:
    """``1 / (sum_j max(I_ij, 0) * max_c |PIL_ic - PIL_ic^cf|)``: rows that never help are suspicious.

    ``PIL_ic = sum_{j: y_j = c} max(I_ij, 0)``; ``counterfactual`` is the influence of rows labelled as the class they
    help second most. Larger is more suspicious; infinite where the product is 0.
    """
    helped, changed = (_by_class(i, validation_y, num_classes)[0] for i in (influence, counterfactual))
    return 1 / (helped.sum(1) * jnp.abs(helped - changed).max(1))


def cfrank(cnci: Float[AnyArray, "n"], pcid: Float[AnyArray, "n"]) -> Float[Array, "n 2"]:
    """The larger of the ranks in (0, 1) by `cnci` (label) and `pcid` (feature) at its own type, 0 at the other.

    The maximum along the last axis is the suspicion of a row, its position the type of error. Ties are label errors.
    """
    label, feature = loss_rank(cnci), loss_rank(pcid)
    return jnp.stack([jnp.where(label >= feature, label, 0), jnp.where(label >= feature, 0, feature)], 1)


def _by_class(influence, validation_y, num_classes) -> tuple[Float[Array, "n C"], Float[Array, "n C"]]:
    """Sums of helpful and of harmful influence over the validation rows of each class, both at least 0."""
    influence = jnp.asarray(influence)
    member = jax.nn.one_hot(validation_y, num_classes, dtype=influence.dtype)
    of = lambda part: dot(part, member)
    return of(jnp.maximum(influence, 0)), of(jnp.maximum(-influence, 0))
