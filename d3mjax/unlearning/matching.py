"""Unlearning by datamodel matching: outputs that attribution predicts for retraining, and training towards them.

Without the examples F, the margin of target x is predicted as

    f(x) - sum_{i in F} tau[x, i]            `without`: nothing is trained

(tau: the change per unit of training weight, of any attribution), and `match` trains the model for a few steps until
its margins are those, on the forgotten examples and on some that stay.
Source: Georgiev et al., "Attribute-to-delete: machine unlearning via datamodel matching", 2024 (arXiv 2410.23232).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from d3mjax.attribution import outputs
from d3mjax.linalg.products import dot
from d3mjax.training import ensemble
from d3mjax.types import AnyArray, Model, Split


def without(
    margins: Float[AnyArray, "*m t"], tau: Float[AnyArray, "t n"], forgotten: Bool[AnyArray, "n"]
) -> Float[Array, "*m t"]:
    """Margins predicted for models trained without the ``forgotten`` examples, from margins of models with them."""
    margins, tau = jnp.asarray(margins), jnp.asarray(tau)
    return margins - jnp.broadcast_to(dot(tau, jnp.asarray(forgotten, tau.dtype)), margins.shape)


def match(
    key: Key[Array, ""],
    model: Model,
    variables: PyTree,
    examples: Split,
    margins: Float[AnyArray, "k"],
    *,
    steps: int = 200,
    rate: float = 1e-3,
    batch_size: int = 50,
) -> PyTree:
    """Variables after ``steps`` Adam steps on the mean squared difference to ``margins`` of the examples.

    Batches are random with replacement. The statistics of batch norm stay as they are.

    Raises:
      ValueError: if there is not one margin an example.
    """
    if len(margins) != len(examples.y):
        raise ValueError(f"margins: found {len(margins)}, expected one for each of {len(examples.y)} examples")
    tx = optax.adam(optax.linear_schedule(rate, 0.0, steps))
    rows = jax.tree.map(jnp.asarray, (examples, margins))

    def loss(params, batch, wanted):
        after = outputs.soft_margins(model, {**variables, "params": params}, batch, microbatch=None)
        return jnp.mean((after - wanted) ** 2)

    def step(state, key):
        params, moments = state
        index = jax.random.randint(key, (batch_size,), 0, len(examples.y))
        gradient = jax.grad(loss)(params, *jax.tree.map(lambda a: a[index], rows))
        updates, moments = tx.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), None

    start = variables["params"], tx.init(variables["params"])
    (params, _), _ = jax.lax.scan(step, start, ensemble.model_keys(key, jnp.arange(steps)))
    return {**variables, "params": params}
