"""One training run as traceable functions, over any Optax transformation."""

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
    """Trainer of ``model`` by stochastic gradients: ``objective`` on batches of ``sampler``, updates of ``tx``.

    ``init(key, x [b, ...]) -> state`` draws the parameters; ``run(state, split, weights [n], num_steps) -> (state,
    info)`` takes ``num_steps`` (static) steps of ``batch_size`` examples, ``step`` on each batch of ``draw``. Step s of
    a model is the same function of
    ``(state.key, s)`` in one call or several, so stopping and resuming does not change the result. The indices of a
    call (``num_steps * batch_size`` integers) are computed before its loop, where they vectorise. ``augment(key, x)``
    changes the inputs of a batch by a key of that model and step. ``constrain((batch, weight))`` may set how the
    examples of a batch lie on devices (`runtime.sharded`). For many models see `ensemble.train_many`.

    >>> import jax, jax.numpy as jnp, numpy as np, optax, d3mjax
    >>> x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    >>> split = d3mjax.Split(x, (x[:, 0] > 0).astype(int), np.zeros(40, int), np.arange(40))
    >>> model, objective = d3mjax.linear(2), d3mjax.cross_entropy()
    >>> trainer = d3mjax.make_trainer(model, objective, optax.sgd(0.5), d3mjax.shuffled(), batch_size=10)
    >>> state = trainer.init(jax.random.key(0), split.x)
    >>> state, info = trainer.run(state, split, jnp.ones(40), 100)
    >>> int(state.step), bool(info.loss[-1] < 0.3)
    (100, True)

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

    def draw(state: TrainState, weights: Float[Array, "n"], num_steps: int):
        steps = state.step + jnp.arange(num_steps)
        return sampler.draw(jax.random.fold_in(state.key, 1), sampler.prepare(weights), steps, batch_size)

    def run(
        state: TrainState, split: Split, weights: Float[Array, "n"], num_steps: int
    ) -> tuple[TrainState, TrainInfo]:
        split = jax.tree.map(jnp.asarray, split)
        draws = draw(state, weights, num_steps)
        state, values = jax.lax.scan(lambda s, batch: step(s, split, *batch), state, draws)
        return state, TrainInfo(values)

    return Trainer(init, run, draw, step)
