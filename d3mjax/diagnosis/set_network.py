"""The data error classifier: trained on rows whose errors are known, asked about rows whose errors are not.

``vectors [n k t]`` (float16 will do) hold what each training row and each validation row of some table have to do with
each other, in the k channels of `set_transformer`, channel 0 = minus the normalised influence, NEGATIVE = helpful. The
rows of all training cells lie one below the other. ``flags [n K]`` say which kinds of error each row has: label error,
feature error, spurious-correlation minority. The held-out rows are drawn by position in the stack, all else by
(key, step). Nothing here is jitted: jit the call.

Source: DeMix, Deng et al., arXiv 2606.11616, section on the data error classifier. Unlike its code, neither the epoch
is chosen on the held-out rows nor are rows of the table under test among them: that is left to the caller's cells.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax.attribution.outputs import map_microbatches
from d3mjax.diagnosis import calibration, claim_metrics, network_losses
from d3mjax.training import sampling
from d3mjax.training import trainer as trainers
from d3mjax.types import AnyArray, Model, Objective, Split, Trainer

GRID = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
"""Thresholds to choose among, those of the published code."""


class Diagnoser(NamedTuple):
    """All that is needed to diagnose besides the network it belongs to: a tree of arrays."""

    variables: Any
    thresholds: jax.Array  # Float[K], for the probabilities of `predict`
    calibration: jax.Array  # Float[K 2], slope and intercept of `calibration.platt`


class Fit(NamedTuple):
    """The diagnoser, and what shows how it came about."""

    diagnoser: Diagnoser
    loss: jax.Array  # Float[s]
    held_out: jax.Array  # Bool[n], the rows that were not trained on but chose thresholds and calibration
    probabilities: jax.Array  # Float[n K], of all rows


def fit(
    key: Key[Array, ""],
    network: linen.Module,
    vectors: Float[AnyArray, "n k t"],
    flags: Bool[AnyArray, "n K"],
    model_ids: Int[AnyArray, "n"],
    objective: Callable[[network_losses.Seen], Array],
    *,
    mask: Bool[AnyArray, "n t"] | None = None,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    t_batch: int | None = None,
    held_out: float = 0.2,
) -> Fit:
    """Train on all but the share ``held_out`` of the rows, and choose thresholds and calibration on the rest.

    ``objective`` is ``losses.demix(num_models)`` or a variant of it. ``mask`` is False where a row has padding (None:
    nowhere). ``t_batch``: validation rows that each step looks at, drawn anew for every row (None: all); cost is
    proportional to it. An epoch is as many steps as fill the training rows once. One scan, nothing comes to the host.

    Raises:
      ValueError: if ``epochs`` or ``t_batch`` is below 1, or ``held_out`` is not in (0, 1).
    """
    if epochs < 1 or not 0 < held_out < 1:
        raise ValueError(f"found epochs = {epochs}, held_out = {held_out}, expected at least 1 and a share in (0, 1)")
    data = as_split(vectors, flags, model_ids, mask)
    held = hold_out(jax.random.fold_in(key, 0), flags, share=held_out)
    num_train = round((1 - held_out) * len(flags))
    batch_size = max(min(batch_size, num_train), 1)
    num_steps = epochs * max(round(num_train / batch_size), 1)
    trainer = make_trainer(
        network,
        objective,
        network_losses.positive_weights(flags, ~held),
        num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        t_batch=t_batch,
    )
    state = trainer.init(jax.random.fold_in(key, 1), data.x)
    state, info = trainer.run(state, data, jnp.where(held, 0.0, 1.0), num_steps)
    diagnoser, probabilities = finish(network, state.variables, data, held)
    return Fit(diagnoser, info.loss, held, probabilities)


def make_trainer(
    network: linen.Module,
    objective: Callable[[network_losses.Seen], Array],
    positive_weight: Float[Array, "K"],
    num_steps: int,
    *,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    t_batch: int | None = None,
) -> Trainer:
    """The training of `fit` as a resumable pair over `as_split` data: AdamW, cosine to 0 over ``num_steps`` steps.

    ``trainer.run(state, split, weights, s)`` takes s of those steps on the rows of weight 1.

    Raises:
      ValueError: if ``t_batch`` is below 1.
    """
    if t_batch is not None and t_batch < 1:
        raise ValueError(f"t_batch: found {t_batch}, expected at least 1, or None for all validation rows")

    def init(key, x):
        return network.init(key, *(jnp.asarray(a)[:1] for a in x))

    def apply(variables, x, *, train=False):
        if not train:
            return network.apply(variables, *x)[0], variables
        (values, mask, view), key = x
        both = (jnp.concatenate([values, values]), jnp.concatenate([mask, view]))
        out = network.apply(variables, *both, train=True, rngs={"dropout": key})
        return jax.tree.map(lambda a: jnp.split(a, 2), out), variables

    def value(state, outputs, batch, weight):
        del weight  # of all rows in a batch it is 1
        (logits, view_logits), (anchors, views) = outputs
        seen = network_losses.Seen(logits, view_logits, anchors, views, batch.y, batch.group, positive_weight)
        return objective(seen), state

    def augment(key, x):
        return two_views(jax.random.fold_in(key, 0), *x, t_batch=t_batch), jax.random.fold_in(key, 1)

    tx = optax.adamw(optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=weight_decay)
    model = Model(init, apply)
    objective_pair = Objective(lambda: (), value)
    return trainers.make_trainer(model, objective_pair, tx, sampling.shuffled(), batch_size=batch_size, augment=augment)


def finish(
    network: linen.Module, variables: Any, data: Split, held: Bool[AnyArray, "n"], *, microbatch: int | None = 256
) -> tuple[Diagnoser, Float[Array, "n K"]]:
    """The diagnoser of trained ``variables``, thresholds and calibration from ``held`` rows, and all probabilities."""
    vectors, mask = data.x  # as `as_split` put them
    p = _probabilities(network, variables, vectors, mask, microbatch)
    of_held = lambda a: jnp.where(held[:, None], a, 0)  # what is no row has probability 0, and is never claimed
    thresholds = claim_metrics.best_thresholds(of_held(p), of_held(data.y).astype(bool), candidates=GRID)
    return Diagnoser(variables, thresholds, calibration.platt(p, data.y, rows=held)), p


def as_split(
    vectors: Float[AnyArray, "n k t"],
    flags: Bool[AnyArray, "n K"],
    model_ids: Int[AnyArray, "n"],
    mask: Bool[AnyArray, "n t"] | None,
) -> Split:
    """Rows as the trainer takes them: x = (vectors, mask), y = flags, group = model ids."""
    mask = _everywhere(vectors) if mask is None else mask
    return Split((vectors, mask), flags, model_ids, jnp.arange(len(vectors)))


def hold_out(key: Key[Array, ""], flags: Bool[AnyArray, "n K"], *, share: float = 0.2) -> Bool[Array, "n"]:
    """Rows to hold out: of those with the same flags, the nearest number to ``share`` of them, drawn by position."""
    flags = jnp.asarray(flags)
    stratum = (flags * 2 ** jnp.arange(flags.shape[1])[None]).sum(1)
    member = stratum[:, None] == jnp.arange(2 ** flags.shape[1])[None]  # [n S]
    draw = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(jnp.arange(len(flags)))
    order = jnp.lexsort((draw, stratum))
    count = member.sum(0)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(flags))) - (jnp.cumsum(count) - count)[stratum]
    return place < jnp.floor(share * count + 0.5)[stratum]


def two_views(
    key: Key[Array, ""],
    values: Float[Array, "b k t"],
    mask: Bool[Array, "b t"],
    *,
    t_batch: int | None = None,
) -> tuple[Float[Array, "b k s"], Bool[Array, "b s"], Bool[Array, "b s"]]:
    """``(values, mask, view mask)``: ``t_batch`` of each row's validation rows in random order, and part of them.

    The view is the first U[t / 2, t) of the t that a row has: the validation intervention, where other validation rows
    were given.
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


def predict(
    network: linen.Module,
    diagnoser: Diagnoser,
    vectors: Float[AnyArray, "n k t"],
    *,
    mask: Bool[AnyArray, "n t"] | None = None,
    microbatch: int | None = 256,
) -> Float[Array, "n K"]:
    """Probability of each kind of error for each row; ``microbatch`` rows at a time, which changes nothing.

    Flags are ``detection.flag(p, diagnoser.thresholds)``; probabilities to be believed are
    ``calibration.calibrated(p, diagnoser.calibration)``. t need not be that of the training rows.
    """
    return _probabilities(network, diagnoser.variables, vectors, mask, microbatch)


def _probabilities(network, variables, vectors, mask, microbatch):
    x = (vectors, _everywhere(vectors) if mask is None else mask)
    logits = map_microbatches(lambda part: network.apply(variables, *part)[0], x, microbatch=microbatch)
    return jax.nn.sigmoid(logits)


def _everywhere(vectors):
    return jnp.ones((vectors.shape[0], vectors.shape[2]), bool)
