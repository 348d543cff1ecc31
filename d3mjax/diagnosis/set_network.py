"""A neural diagnoser: networks over sets of influence vectors, their losses, and their training (DeMix).

A row is the set of its t vectors ``values[:, j]`` of k channels, one for each validation row j (`vectors`; channel 0 is
minus the normalised influence, NEGATIVE = helpful). `SetTransformer` and `MeanPool` map it to a logit for each of the
``e`` types of error and to a projection ``p``: ``network(values [b k t], mask [b t], train=False) -> (logits [b e],
projection [b p])``. The result depends neither on the order of the set nor on values where ``mask`` is False. For a set
of padding alone it is finite and meaningless.

Source: DeMix, Deng et al., arXiv 2606.11616; the constants are those of the published code. Unlike that code, the
epoch is not chosen on held-out rows. Lee et al., "Set Transformer", ICML 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.diagnosis import claims
from d3mjax.linalg.products import dot
from d3mjax.training import sampling
from d3mjax.training import trainer as trainers
from d3mjax.types import AnyArray, Model, Objective, Split

THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
"""Thresholds to choose among, those of the published code."""


class SetTransformer(linen.Module):
    """Embedding, ``num_blocks`` ISAB, PMA, dropout, heads: the published sizes are the defaults.

    ``as_coded``: attention without the residual ``Q + A V``, as the published code has it.
    """

    width: int = 128
    num_inducing: int = 32
    num_heads: int = 4
    num_blocks: int = 2
    num_seeds: int = 1
    projection: int = 32
    num_types: int = 3
    dropout: float = 0.5
    as_coded: bool = False

    @linen.compact
    def __call__(
        self, values: Float[AnyArray, "b k t"], mask: Bool[AnyArray, "b t"], *, train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b p"]]:
        if self.width % self.num_heads:
            raise ValueError(f"width: found {self.width}, expected a multiple of num_heads = {self.num_heads}")

        def attend(queries, elements, mask=None):
            return _Attend(self.num_heads, self.dropout, self.as_coded)(queries, elements, mask, train)

        def learnt(name: str, number: int):
            points = self.param(name, linen.initializers.xavier_uniform(), (number, self.width))
            return jnp.broadcast_to(points[None], (len(values), number, self.width))

        x = _Embed(self.width, self.dropout)(values, mask, train)
        for i in range(self.num_blocks):
            x = attend(x, attend(learnt(f"inducing_{i}", self.num_inducing), x, mask))
        x = attend(learnt("seeds", self.num_seeds), x, mask).reshape(len(values), -1)
        return _Heads(self.width, self.num_types, self.projection, self.dropout)(x, train)


class MeanPool(linen.Module):
    """Embedding, mean over the set, one GELU layer, heads: the baseline of attention."""

    width: int = 128
    projection: int = 32
    num_types: int = 3
    dropout: float = 0.5

    @linen.compact
    def __call__(
        self, values: Float[AnyArray, "b k t"], mask: Bool[AnyArray, "b t"], *, train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b p"]]:
        x = _Embed(self.width, self.dropout)(values, mask, train)
        count = jnp.maximum(jnp.asarray(mask).sum(1), 1)[:, None]
        x = jnp.where(mask[:, :, None], x, 0).sum(1) / count.astype(x.dtype)
        x = _gelu(linen.Dense(self.width)(x))
        return _Heads(self.width, self.num_types, self.projection, self.dropout)(x, train)


class Options(NamedTuple):
    """How a network is trained: AdamW, its learning rate falling to 0 along a cosine."""

    epochs: int = 100  # an epoch is as many steps as fill the training rows once
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    t_batch: int | None = None  # validation rows a step, drawn anew for every row (None: all); cost is proportional
    held_out: float = 0.2  # share of the rows that choose thresholds


class Diagnoser(NamedTuple):
    """A trained network as a tree of arrays."""

    variables: Any
    thresholds: jax.Array  # Float[e], for the probabilities of `predict`


class Fit(NamedTuple):
    """A diagnoser and the diagnostics of its training."""

    diagnoser: Diagnoser
    loss: jax.Array  # Float[s]
    held_out: jax.Array  # Bool[n], the rows that chose thresholds and were not trained on
    probabilities: jax.Array  # Float[n e], of all rows


class Seen(NamedTuple):
    """The input of an objective: each row of a batch (anchor), and with part of its validation rows (view)."""

    logits: jax.Array  # Float[b e], of the anchors
    view_logits: jax.Array  # Float[b e]
    anchors: jax.Array  # Float[b p], projections
    views: jax.Array  # Float[b p]
    flags: jax.Array  # Bool[b e], the truth
    model_ids: jax.Array  # Int[b], the task model of the row's influences
    positive_weight: jax.Array  # Float[e]


def fit(
    key: Key[Array, ""],
    network: linen.Module,
    vectors: Float[AnyArray, "n k t"],
    flags: Bool[AnyArray, "n e"],
    model_ids: Int[AnyArray, "n"],
    objective: Callable[[Seen], Array],
    *,
    mask: Bool[AnyArray, "n t"] | None = None,
    options: Options = Options(),
) -> Fit:
    """Train on all but the held-out rows, and choose thresholds on the rest: one scan, nothing comes to the host.

    The rows of all training cells lie one below the other; float16 ``vectors`` will do. ``flags`` are the true errors
    of each row, ``objective`` is ``demix(num_models)`` or a variant. ``mask`` is False where a row has padding (None:
    nowhere). Held-out rows are drawn by position, all else by (key, step). Jit the call.

    Raises:
      ValueError: if ``epochs`` or ``t_batch`` is below 1, or ``held_out`` is not in (0, 1).
    """
    epochs, batch_size, learning_rate, weight_decay, t_batch, share = options
    if epochs < 1 or not 0 < share < 1:
        raise ValueError(f"found epochs = {epochs}, held_out = {share}, expected at least 1 and a share in (0, 1)")
    if t_batch is not None and t_batch < 1:
        raise ValueError(f"t_batch: found {t_batch}, expected at least 1, or None for all validation rows")
    x = (vectors, _everywhere(vectors) if mask is None else mask)
    held = hold_out(jax.random.fold_in(key, 0), flags, share=share)
    num_train = round((1 - share) * len(flags))
    batch_size = max(min(batch_size, num_train), 1)
    num_steps = epochs * max(round(num_train / batch_size), 1)
    positive_weight = positive_weights(flags, ~held)

    def init(key, x):
        return network.init(key, *(jnp.asarray(a)[:1] for a in x))

    def apply(variables, x, *, train=False):
        del train  # `predict` is the evaluation
        (values, mask, view), key = x
        both = (jnp.concatenate([values, values]), jnp.concatenate([mask, view]))
        out = network.apply(variables, *both, train=True, rngs={"dropout": key})
        return jax.tree.map(lambda a: jnp.split(a, 2), out), variables

    def value(state, outputs, batch, weight):
        del weight  # of all rows in a batch it is 1
        (logits, view_logits), (anchors, views) = outputs
        return objective(Seen(logits, view_logits, anchors, views, batch.y, batch.group, positive_weight)), state

    def augment(key, x):
        return two_views(jax.random.fold_in(key, 0), *x, t_batch=t_batch), jax.random.fold_in(key, 1)

    tx = optax.adamw(optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=weight_decay)
    objective_pair = Objective(lambda: (), value)
    trainer = trainers.make_trainer(
        Model(init, apply), objective_pair, tx, sampling.shuffled(), batch_size=batch_size, augment=augment
    )
    state = trainer.init(jax.random.fold_in(key, 1), x)
    data = Split(x, flags, model_ids, jnp.arange(len(vectors)))
    state, info = trainer.run(state, data, jnp.where(held, 0.0, 1.0), num_steps)
    p = predict(network, state.variables, vectors, mask=mask)
    of_held = lambda a: jnp.where(held[:, None], a, 0)  # other rows get probability 0, and are never claimed
    thresholds = claims.best_thresholds(of_held(p), of_held(flags).astype(bool), candidates=THRESHOLDS)
    return Fit(Diagnoser(state.variables, thresholds), info.loss, held, p)


def predict(
    network: linen.Module,
    variables: Any,
    vectors: Float[AnyArray, "n k t"],
    *,
    mask: Bool[AnyArray, "n t"] | None = None,
    microbatch: int | None = 256,
) -> Float[Array, "n e"]:
    """Probability of each type of error for each row, not calibrated; t need not be that of the training rows.

    Flags are ``claims.flag(p, diagnoser.thresholds)``. ``microbatch`` rows at a time, which changes nothing.
    """
    x = (vectors, _everywhere(vectors) if mask is None else mask)
    logits = map_microbatches(lambda part: network.apply(variables, *part)[0], x, microbatch=microbatch)
    return jax.nn.sigmoid(logits)


def hold_out(key: Key[Array, ""], flags: Bool[AnyArray, "n e"], *, share: float = 0.2) -> Bool[Array, "n"]:
    """Rows to hold out: of those with the same flags, the nearest number to ``share`` of them, drawn by position."""
    flags = jnp.asarray(flags)
    stratum = (flags * 2 ** jnp.arange(flags.shape[1])[None]).sum(1)
    member = stratum[:, None] == jnp.arange(2 ** flags.shape[1])[None]  # [n S]
    draw = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(jnp.arange(len(flags)))
    order = jnp.lexsort((draw, stratum))
    count = member.sum(0)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(flags))) - (jnp.cumsum(count) - count)[stratum]
    return rank < jnp.floor(share * count + 0.5)[stratum]


def two_views(
    key: Key[Array, ""], values: Float[Array, "b k t"], mask: Bool[Array, "b t"], *, t_batch: int | None = None
) -> tuple[Float[Array, "b k s"], Bool[Array, "b s"], Bool[Array, "b s"]]:
    """``(values, mask, view mask)``: ``t_batch`` of each row's validation rows in random order, and part of them.

    The view is the first U[t / 2, t) of the t that a row has: the validation intervention, a row seen through other
    validation rows.
    """
    order_key, length_key = jax.random.split(key)
    noise = jnp.where(mask, jax.random.uniform(order_key, mask.shape), 2)  # padding comes last
    order = jnp.argsort(noise, axis=1)[:, :t_batch]
    values = jnp.take_along_axis(values, order[:, None], axis=2)
    number = jnp.minimum(mask.sum(1), order.shape[1])
    half = number // 2
    length = half + jnp.floor(jax.random.uniform(length_key, number.shape) * (number - half)).astype(number.dtype)
    position = jnp.arange(order.shape[1])[None]
    return values, position < number[:, None], position < jnp.clip(length, 1, number)[:, None]


def demix(
    num_models: int,
    *,
    invariance: Callable[[Seen, int], Array] = lambda seen, num_models: centroid_spread(
        seen.anchors, seen.flags, seen.model_ids, num_models
    ),
    contrast_weight: float = 0.1,
    invariance_weight: float = 0.1,
    gamma: float = 1.0,
) -> Callable[[Seen], Float[Array, ""]]:
    """The objective ``L_pred + contrast_weight L_val + invariance_weight L_model``; model ids are below ``num_models``.

    L_pred is the mean of `prediction_losses`, L_val is `info_nce`, L_model ``invariance(seen, num_models)``.
    """

    def objective(seen: Seen) -> Float[Array, ""]:
        prediction = prediction_losses(seen.logits, seen.flags, seen.positive_weight, gamma=gamma).mean()
        contrast = info_nce(seen.anchors, seen.views)
        return prediction + contrast_weight * contrast + invariance_weight * invariance(seen, num_models)

    return objective


def positive_weights(flags: Bool[AnyArray, "n e"], rows: Bool[AnyArray, "n"]) -> Float[Array, "e"]:
    """``w_e = (n - n_e) / (2 n_e)`` over the rows that count; a type that never occurs is counted once."""
    positive = (jnp.asarray(flags) & jnp.asarray(rows)[:, None]).sum(0)
    return (jnp.asarray(rows).sum() - positive) / (2.0 * jnp.maximum(positive, 1))


def prediction_losses(
    logits: Float[Array, "b e"], flags: Bool[AnyArray, "b e"], positive_weight: Float[Array, "e"], *, gamma: float = 1.0
) -> Float[Array, "b"]:
    """Focal loss of each row in nats, ``sum_e (1 - p_true)^gamma (-w_e y_e log p_e - (1 - y_e) log(1 - p_e))``.

    ``p = sigmoid(logits)`` and p_true is the probability of the true outcome, p or 1 - p.
    """
    signed = jnp.where(flags, logits, -logits)
    weight = jnp.where(flags, positive_weight[None], 1)
    focus = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    return (-weight * focus * jax.nn.log_sigmoid(signed)).sum(1)


def info_nce(anchors: Float[Array, "b p"], views: Float[Array, "b p"], *, temperature: float = 0.1) -> Float[Array, ""]:
    """L_val, ``- mean_i log softmax_j(cos(anchor_i, view_j) / temperature)[i]``: all other rows are negatives."""
    scores = dot(_unit(anchors), _unit(views).T) / temperature
    return -jnp.diagonal(jax.nn.log_softmax(scores, axis=1)).mean()


def centroid_spread(
    projections: Float[Array, "b p"], flags: Bool[AnyArray, "b e"], model_ids: Int[AnyArray, "b"], num_models: int
) -> Float[Array, ""]:
    """L_model: for each type, the distance between the centroids of its rows under each task model; summed over types.

    With c_m the mean projection of the rows of a type that come from model m: the mean over models and over the p
    coordinates of ``(c_m - mean_m c_m)^2``. Models without such a row are left out; one model alone gives 0.
    """
    member = jax.nn.one_hot(model_ids, num_models, dtype=projections.dtype)
    member = member[:, :, None] * jnp.asarray(flags, projections.dtype)[:, None]  # [b m e]
    count = member.sum(0)[:, :, None]
    centroids = jnp.einsum("bme,bp->mep", member, projections, precision="highest") / jnp.maximum(count, 1)
    present = (count > 0).astype(projections.dtype)
    models = jnp.maximum(present.sum(0, keepdims=True), 1)
    centre = (present * centroids).sum(0, keepdims=True) / models
    return ((present * (centroids - centre) ** 2) / models).sum((0, 1)).mean()


def vrex(seen: Seen, num_models: int) -> Float[Array, ""]:
    """V-REx over (task model, all or part of the validation rows); pass it to `demix` as ``invariance``.

    The variance over environments of their mean risk (Krueger et al., 2021); absent environments are left out.
    """
    logits = jnp.concatenate([seen.logits, seen.view_logits])
    flags = jnp.concatenate([seen.flags, seen.flags])
    environments = jnp.concatenate([seen.model_ids, seen.model_ids + num_models])
    risks = prediction_losses(logits, flags, seen.positive_weight)
    member = jax.nn.one_hot(environments, 2 * num_models, axis=0, dtype=risks.dtype)
    count = member.sum(1)
    mean = dot(member, risks) / jnp.maximum(count, 1)
    present = (count > 0).astype(risks.dtype)
    centre = (present * mean).sum() / present.sum()
    return (present * (mean - centre) ** 2).sum() / present.sum()


class _Embed(linen.Module):
    """Each vector of the set by itself: ``Dense, LayerNorm, GELU, dropout, Dense``; [b k t] -> [b t d]."""

    width: int
    dropout: float

    @linen.compact
    def __call__(self, values, mask, train):
        values = jnp.asarray(values)
        x = jnp.where(mask[:, None, :], values, 0).swapaxes(1, 2)  # before anything else: padding may hold NaN
        x = x.astype(jnp.promote_types(values.dtype, jnp.float32))
        x = _gelu(linen.LayerNorm()(linen.Dense(self.width)(x)))
        return linen.Dense(self.width)(linen.Dropout(self.dropout, deterministic=not train)(x))


class _Attend(linen.Module):
    """``H = LN(Q + A V)``, then ``LN(H + relu(Dense(H)))``; A by ``num_heads`` over the elements where mask is True."""

    num_heads: int
    dropout: float
    as_coded: bool

    @linen.compact
    def __call__(self, queries, elements, mask, train):
        width = queries.shape[-1]

        def heads(name, x):
            return linen.Dense(width, name=name)(x).reshape(*x.shape[:-1], self.num_heads, -1)

        q, k, v = heads("query", queries), heads("key", elements), heads("value", elements)
        scores = jnp.einsum("bqhd,bshd->bhqs", q, k) / width**0.5  # the whole width, as Lee et al. have it
        if mask is not None:  # [b 1 1 s]: every head and query of a row has that row's mask
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        share = linen.Dropout(self.dropout, deterministic=not train)(jax.nn.softmax(scores))
        mixed = jnp.einsum("bhqs,bshd->bqhd", share, v)
        h = (mixed if self.as_coded else q + mixed).reshape(queries.shape)
        h = linen.LayerNorm()(h)
        return linen.LayerNorm()(h + linen.relu(linen.Dense(width)(h)))


class _Heads(linen.Module):
    """Dropout, then ``Dense, GELU, Dense`` to a logit for each type, and ``Dense, ReLU, Dense`` to the projection."""

    width: int
    num_types: int
    projection: int
    dropout: float

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dropout(self.dropout, deterministic=not train)(x)
        logits = [linen.Dense(1)(_gelu(linen.Dense(self.width // 2)(x))) for _ in range(self.num_types)]
        return jnp.concatenate(logits, axis=1), linen.Dense(self.projection)(linen.relu(linen.Dense(self.width)(x)))


def _everywhere(vectors):
    return jnp.ones((vectors.shape[0], vectors.shape[2]), bool)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _unit(x):
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(1, keepdims=True), 1e-24))
