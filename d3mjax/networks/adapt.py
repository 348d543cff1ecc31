"""Networks as `Model(init, apply)`: from Flax linen, Flax nnx or plain functions."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen, nnx

from d3mjax.types import Model


def from_functions(init: Callable, apply: Callable) -> Model:
    """Model without state, from ``init(key, x) -> params`` and ``apply(params, x) -> logits [b C]``.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> model = d3mjax.from_functions(lambda key, x: jnp.zeros((x.shape[1], 3)), lambda params, x: x @ params)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    >>> logits, _ = model.apply(variables, jnp.ones((2, 5)))
    >>> logits.shape
    (2, 3)
    """
    return Model(
        init=lambda key, x: {"params": init(key, x)},
        apply=lambda variables, x, *, train=False: (apply(variables["params"], x), variables),
    )


def from_linen(module: linen.Module, *, rngs: Sequence[str] = ()) -> Model:
    """Model from a Flax linen module; its ``__call__`` gets ``train`` where it has such a parameter.

    Collections other than ``params`` (batch statistics) are updated in training and frozen in evaluation. Names in
    ``rngs`` (such as ``"dropout"``) get a new key every training step, derived from the key of the model.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from flax import linen
    >>> model = d3mjax.from_linen(linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)]))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    >>> logits, _ = model.apply(variables, jnp.ones((4, 5)))
    >>> logits.shape
    (4, 2)
    """
    takes_train = "train" in inspect.signature(module.__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        return {"train": train} if takes_train else {}

    def init(key, x):
        keys = {name: jax.random.fold_in(key, i + 1) for i, name in enumerate(rngs)}
        variables = module.init({"params": key, **keys}, x, **mode(False))
        return {**variables, "rngs": keys} if rngs else variables

    def apply(variables, x, *, train=False):
        arrays = {name: value for name, value in variables.items() if name != "rngs"}
        if not train:
            return module.apply(arrays, x, **mode(False)), variables
        keys = {name: jax.random.split(key) for name, key in variables.get("rngs", {}).items()}
        now, later = ({name: key[i] for name, key in keys.items()} for i in range(2))
        mutable = [name for name in arrays if name != "params"]
        logits, updates = module.apply(arrays, x, rngs=now, mutable=mutable, **mode(True))
        return logits, {**variables, **updates, "rngs": later} if rngs else {**variables, **updates}

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Model from the constructor ``make(rngs)`` of a Flax nnx module; ``nnx.Param`` is differentiated, the rest state.

    Training and evaluation call the methods ``train()`` and ``eval()`` of the module.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from flax import nnx
    >>> model = d3mjax.from_nnx(lambda rngs: nnx.Linear(5, 2, rngs=rngs))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    >>> logits, _ = model.apply(variables, jnp.ones((4, 5)))
    >>> logits.shape
    (4, 2)
    """
    graph, _, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)

    def init(key, x):
        del x  # nnx modules state their input sizes
        _, params, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(rest)}

    def apply(variables, x, *, train=False):
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        _, params, rest = nnx.split(abstract, nnx.Param, ...)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(rest, variables["state"])
        module = nnx.merge(graph, params, rest)
        module.train() if train else module.eval()
        logits = module(x)
        if not train:
            return logits, variables
        return logits, {**variables, "state": nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))}

    return Model(init, apply)
