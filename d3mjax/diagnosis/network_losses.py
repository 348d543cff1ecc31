"""What the data error classifier is trained on, ``L = L_pred + 0.1 L_val + 0.1 L_model``, and variants of its parts.

Letters: ``b`` rows of a batch, ``p`` projected dimension, ``K`` kinds of error. Source: DeMix, Deng et al., arXiv
2606.11616, section on intervention training; the constants are those of the published code.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3mjax.types import AnyArray


class Seen(NamedTuple):
    """A batch as an objective sees it: each row as it is (anchor) and with part of its validation rows (view)."""

    logits: jax.Array  # Float[b K], of the anchors
    view_logits: jax.Array  # Float[b K]
    anchors: jax.Array  # Float[b p], projections
    views: jax.Array  # Float[b p]
    flags: jax.Array  # Bool[b K], the truth
    model_ids: jax.Array  # Int[b], the task model whose influences the row holds
    positive_weight: jax.Array  # Float[K]


def demix(
    num_models: int,
    *,
    contrast: Callable[[Seen], Array] = lambda seen: info_nce(seen.anchors, seen.views),
    invariance: Callable[[Seen, int], Array] = lambda seen, num_models: centroid_spread(
        seen.anchors, seen.flags, seen.model_ids, num_models
    ),
    contrast_weight: float = 0.1,
    invariance_weight: float = 0.1,
    gamma: float = 1.0,
) -> Callable[[Seen], Float[Array, ""]]:
    """The objective ``L_pred + contrast_weight L_val + invariance_weight L_model`` of a batch; model ids are below
    ``num_models``. For ablations pass another ``contrast(seen)`` or ``invariance(seen, num_models)``.
    """

    def objective(seen: Seen) -> Float[Array, ""]:
        prediction = prediction_losses(seen.logits, seen.flags, seen.positive_weight, gamma=gamma).mean()
        return prediction + contrast_weight * contrast(seen) + invariance_weight * invariance(seen, num_models)

    return objective


def positive_weights(flags: Bool[AnyArray, "n K"], rows: Bool[AnyArray, "n"]) -> Float[Array, "K"]:
    """``w = (n - n_kind) / (2 n_kind)`` over the rows that count; a kind that never occurs is taken to occur once."""
    positive = (jnp.asarray(flags) & jnp.asarray(rows)[:, None]).sum(0)
    return (jnp.asarray(rows).sum() - positive) / (2.0 * jnp.maximum(positive, 1))


def prediction_losses(
    logits: Float[Array, "b K"], flags: Bool[AnyArray, "b K"], positive_weight: Float[Array, "K"], *, gamma: float = 1.0
) -> Float[Array, "b"]:
    """Focal loss of each row in nats, ``sum_k (1 - p_true)^gamma (-w_k y_k log p_k - (1 - y_k) log(1 - p_k))``.

    ``p = sigmoid(logits)`` and p_true is the probability of the true outcome, p or 1 - p. L_pred is the mean over rows.
    """
    signed = jnp.where(flags, logits, -logits)
    weight = jnp.where(flags, positive_weight[None], 1)
    focus = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    return (-weight * focus * jax.nn.log_sigmoid(signed)).sum(1)


def info_nce(anchors: Float[Array, "b p"], views: Float[Array, "b p"], *, temperature: float = 0.1) -> Float[Array, ""]:
    """L_val, ``- mean_i log softmax_j(cos(anchor_i, view_j) / temperature)[i]``: a row is known again by its view.

    One direction; all other rows are negatives, those of the same kind as well.
    """
    return -jnp.diagonal(_log_match(anchors, views, temperature)).mean()


def symmetric_info_nce(
    anchors: Float[Array, "b p"], views: Float[Array, "b p"], *, temperature: float = 0.1
) -> Float[Array, ""]:
    """Mean of `info_nce` from anchors to views and from views to anchors."""
    there = info_nce(anchors, views, temperature=temperature)
    return (there + info_nce(views, anchors, temperature=temperature)) / 2


def supervised_info_nce(
    anchors: Float[Array, "b p"], views: Float[Array, "b p"], flags: Bool[AnyArray, "b K"], *, temperature: float = 0.1
) -> Float[Array, ""]:
    """`info_nce` where the views of all rows with the very same flags are positives (Khosla et al., 2020, L_out)."""
    flags = jnp.asarray(flags)
    same = (flags[:, None] == flags[None]).all(-1)
    return -(jnp.where(same, _log_match(anchors, views, temperature), 0).sum(1) / same.sum(1)).mean()


def centroid_spread(
    projections: Float[Array, "b p"], flags: Bool[AnyArray, "b K"], model_ids: Int[AnyArray, "b"], num_models: int
) -> Float[Array, ""]:
    """L_model: for each kind, how far the centroids of its rows under each task model lie apart; summed over kinds.

    With c_m the mean projection of the rows that have the kind and come from model m: the mean over models and over
    the p coordinates of ``(c_m - mean_m c_m)^2``. Models without such a row are left out; one model alone gives 0.
    """
    member = jax.nn.one_hot(model_ids, num_models, dtype=projections.dtype)
    member = member[:, :, None] * jnp.asarray(flags, projections.dtype)[:, None]  # [b m K]
    count = member.sum(0)[:, :, None]
    centroids = jnp.einsum("bmk,bp->mkp", member, projections, precision="highest") / jnp.maximum(count, 1)
    present = (count > 0).astype(projections.dtype)
    models = jnp.maximum(present.sum(0, keepdims=True), 1)
    centre = (present * centroids).sum(0, keepdims=True) / models
    return ((present * (centroids - centre) ** 2) / models).sum((0, 1)).mean()


def risk_variance(
    risks: Float[Array, "b"], environments: Int[AnyArray, "b"], num_environments: int
) -> Float[Array, ""]:
    """V-REx: the variance over environments of their mean risk (Krueger et al., 2021); absent ones are left out."""
    member = jax.nn.one_hot(environments, num_environments, axis=0, dtype=risks.dtype)  # [e b]
    count = member.sum(1)
    mean = jnp.matmul(member, risks, precision="highest") / jnp.maximum(count, 1)
    present = (count > 0).astype(risks.dtype)
    centre = (present * mean).sum() / present.sum()
    return (present * (mean - centre) ** 2).sum() / present.sum()


def vrex(seen: Seen, num_models: int) -> Float[Array, ""]:
    """`risk_variance` over (task model, all or part of the validation rows); pass it to `demix` as ``invariance``."""
    logits = jnp.concatenate([seen.logits, seen.view_logits])
    flags = jnp.concatenate([seen.flags, seen.flags])
    environments = jnp.concatenate([seen.model_ids, seen.model_ids + num_models])
    return risk_variance(prediction_losses(logits, flags, seen.positive_weight), environments, 2 * num_models)


def _log_match(anchors, views, temperature):
    """Row i: the logarithm of how likely each view is to be that of anchor i."""
    scores = jnp.matmul(_unit(anchors), _unit(views).T, precision="highest") / temperature
    return jax.nn.log_softmax(scores, axis=1)


def _unit(x):
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(1, keepdims=True), 1e-24))
