"""Training-free scores of suspicion for labels that are numbers; **larger is more suspicious**.

| score | a label is suspicious if it is |
|---|---|
| `absolute_residuals` | far from a prediction; give one by models that have not seen the row |
| `local_residuals` | farther from it than rows of similar prediction are |
| `neighbour_gaps` | far from the labels of the nearest rows |
| `far_labels` | far from all labels: what its value alone tells |

Scores of features do not depend on labels: `oddity`, `baseline_scores.outliers`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.diagnosis.vectors import cosine
from d3mjax.types import AnyArray

NAMES = ("left out, among its like", "neighbours' labels", "more neighbours' labels", "far label")
NEIGHBOURS = (10, 40)


def absolute_residuals(predictions: Float[AnyArray, "n"], y: Float[AnyArray, "n"]) -> Float[np.ndarray, "n"]:
    """``|y - prediction|``, in the label's unit."""
    return np.abs(np.asarray(y) - np.asarray(predictions))


def local_residuals(
    predictions: Float[AnyArray, "n"], y: Float[AnyArray, "n"], *, like: int = 50
) -> Float[np.ndarray, "n"]:
    """``|y - prediction|`` over its median among the ``like`` rows of closest prediction, the row itself among them.

    The errors of many regressions grow with the prediction: 30 of 600 bicycles are few, of 20 many. The median is at
    least a hundredth of that of all rows.
    """
    residuals, order = absolute_residuals(predictions, y), np.argsort(np.asarray(predictions), kind="stable")
    count = min(like, len(order))
    windows = np.lib.stride_tricks.sliding_window_view(residuals[order], count)
    first = np.clip(np.arange(len(order)) - count // 2, 0, len(windows) - 1)
    scale = np.empty(len(order))
    scale[order] = np.median(windows, axis=1)[first]
    return residuals / np.maximum(scale, max(np.median(residuals) / 100, np.finfo(np.float32).tiny))


def neighbour_gaps(
    x: Float[AnyArray, "n d"], y: Float[AnyArray, "n"], *, neighbours: int = 10, microbatch: int | None = 1024
) -> Float[Array, "n"]:
    """``|y - median label of the nearest rows|`` by the cosine of their features, not of the row itself.

    Raises:
      ValueError: if there are not as many other rows as ``neighbours``.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if not 1 <= neighbours < len(y):
        raise ValueError(f"neighbours: found {neighbours}, expected 1..{len(y) - 1}")

    def rows(i):
        closeness = jnp.where(i[:, None] == jnp.arange(len(y))[None], -jnp.inf, cosine(x[i], x))
        nearest = jnp.argsort(-closeness, axis=1)[:, :neighbours]
        return jnp.abs(y[i] - jnp.median(y[nearest], axis=1))

    return map_microbatches(rows, jnp.arange(len(y)), microbatch=microbatch)


def far_labels(y: Float[AnyArray, "n"]) -> Float[np.ndarray, "n"]:
    """``|y - median|``, in the label's unit."""
    return np.abs(np.asarray(y) - np.median(y))


def columns(
    x: Float[AnyArray, "n d"], y: Float[AnyArray, "n"], left_out: Float[AnyArray, "n"]
) -> Float[np.ndarray, "n 4"]:
    """`NAMES` of every row, from standardised labels and the predictions of models that have not seen the row."""
    near = [np.asarray(neighbour_gaps(x, y, neighbours=min(count, len(y) - 1))) for count in NEIGHBOURS]
    return np.stack([local_residuals(left_out, y), *near, far_labels(y)], axis=1).astype(np.float32)
