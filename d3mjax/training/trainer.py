"""One training run as a traceable `init` / `run(num_steps)` pair over any Optax transformation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from d3mjax.types import Model, Objective, Sampler, Split, Trainer, TrainInfo, TrainState


def make_trainer(
    model: Model,
    objective: Objective,
    tx: optax.GradientTransformation,
    sampler: Sampler,
    *,
    batch_size: int,
    augment: Callable = lambda key, x: x,
    constrain: Callable = lambda batch: batch,
) -> Trainer:
    """Stochastic gradient training of ``model`` on ``split`` under ``weights``.

    ``run(state, split, weights, num_steps)`` takes ``num_steps`` (static) steps of ``batch_size`` examples chosen by
    ``sampler``. Step s of a model is the same function of ``(state.key, s)`` whether reached in one call or several,
    so stopping and resuming changes nothing. The indices of a call (``num_steps * batch_size`` integers) are made
    before its loop, where they vectorise. ``augment(key, x)`` changes the inputs of a batch by a key of that model and
    step. ``constrain((batch, weight))`` may say how the examples of a batch lie on devices (`runtime.sharded`).
    Nothing here knows of other models: map it with `ensemble.map_models`.

    Raises:
      ValueError: if ``batch_size`` is below 1, or the model's variables have no ``"params"``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: found {batch_size}, expected at least 1")

    def init(key: Key[Array, ""], x) -> TrainState:
        variables = model.init(jax.random.fold_in(key, 0), x)
        if "params" not in variables:
            raise ValueError(
                f'model.init: found variables with keys {sorted(variables)}, expected a "params" among them'
            )
        return TrainState(key, jnp.int32(0), variables, tx.init(variables["params"]), objective.init())

    def step(state: TrainState, split: Split, index, weight):
        batch = jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), split)
        batch, weight = constrain((batch, weight))
        x = augment(jax.random.fold_in(jax.random.fold_in(state.key, 2), state.step), batch.x)
        frozen = {name: value for name, value in state.variables.items() if name != "params"}

        def loss(params):
            logits, variables = model.apply({"params": params, **frozen}, x, train=True)
            value, objective_state = objective.value(state.objective_state, logits, batch, weight)
            return value, (variables, objective_state)

        (value, (variables, objective_state)), grads = jax.value_and_grad(loss, has_aux=True)(state.variables["params"])
        updates, opt_state = tx.update(grads, state.opt_state, state.variables["params"])
        params = optax.apply_updates(state.variables["params"], updates)
        return TrainState(state.key, state.step + 1, {**variables, "params": params}, opt_state, objective_state), value

    def run(
        state: TrainState, split: Split, weights: Float[Array, "n"], num_steps: int
    ) -> tuple[TrainState, TrainInfo]:
        split = jax.tree.map(jnp.asarray, split)
        steps = state.step + jnp.arange(num_steps)
        draws = sampler.draw(jax.random.fold_in(state.key, 1), sampler.prepare(weights), steps, batch_size)
        state, values = jax.lax.scan(lambda s, draw: step(s, split, *draw), state, draws)
        return state, TrainInfo(values)

    return Trainer(init, run)
