"""Networks as `Model(init, apply)`: from Flax linen, Flax nnx or plain functions."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, linen, nnx
from jax.tree_util import keystr

from d3mjax.networks import modes
from d3mjax.types import Model

_NEVER_STATE = ("intermediates", "perturbations")  # Flax adds to them, and they depend on the batch


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


def from_linen(module: linen.Module) -> Model:
    """Model from a Flax linen module: batch norm, dropout, and any common spelling of the switch to training.

    The switch is a parameter of ``__call__`` or an attribute of the module: ``train``, ``training``, ``is_training``,
    or the opposite, ``deterministic``, ``use_running_average``, ``inference`` (all in `modes.SPELLINGS`). Inner layers
    whose switch is not set get it, too. Random streams that the module reads in training get a new key every step,
    derived from the key of the model. Collections that a training step keeps in shape (batch statistics) are state,
    updated in training and frozen in evaluation; others, which are sown, are not kept.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from flax import linen
    >>> model = d3mjax.from_linen(linen.Sequential([linen.Dense(8), linen.Dropout(0.1), linen.Dense(2)]))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    >>> logits, _ = model.apply(variables, jnp.ones((4, 5)))
    >>> logits.shape
    (4, 2)

    Raises:
      ValueError: if ``__call__`` needs more than features and a switch.
    """
    switches = modes.of_call(module.__call__)
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    attributes = modes.of_attributes(fields)

    def switched(train: bool) -> linen.Module:
        own: dict[str, Any] = modes.values(attributes, train) | dict.fromkeys(set(attributes) & set(switches))
        return module.clone(**own) if own else module

    def mode(train: bool) -> dict[str, Any]:
        return modes.values(switches, train)

    def call(variables, x, *, train, **options):
        with linen.intercept_methods(_set_open_switches(train)):
            return switched(train).apply(variables, x, **mode(train), **options)

    def trained(variables, x, keys):
        mutable = [name for name in variables if name != "params"]
        return call(variables, x, train=True, rngs=keys, mutable=mutable)

    def init(key, x):
        with linen.intercept_methods(_set_open_switches(False)):
            variables = switched(False).init({"params": key}, x, **mode(False))
        variables = {name: value for name, value in variables.items() if name not in _NEVER_STATE}
        after, streams = _one_step(trained, variables, x)
        kept = {name: value for name, value in variables.items() if name == "params" or _alike(value, after[name])}
        keys = {name: jax.random.fold_in(key, i + 1) for i, name in enumerate(streams)}
        return {**kept, "rngs": keys} if keys else kept

    def apply(variables, x, *, train=False):
        arrays = {name: value for name, value in variables.items() if name != "rngs"}
        if not train:
            return call(arrays, x, train=False), variables
        keys = {name: jax.random.split(key) for name, key in variables.get("rngs", {}).items()}
        now, later = ({name: key[i] for name, key in keys.items()} for i in range(2))
        logits, updates = trained(arrays, x, now)
        return logits, {**variables, **updates, "rngs": later} if keys else {**variables, **updates}

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> Model:
    """Model from the constructor ``make(rngs)`` of a Flax nnx module; ``nnx.Param`` is differentiated, the rest state.

    The switch between training and evaluation is set as in `from_linen`, wherever a module has such an attribute. A
    module in place of the constructor starts every model at its parameters; random streams differ all the same.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from flax import nnx
    >>> model = d3mjax.from_nnx(lambda rngs: nnx.Linear(5, 2, rngs=rngs))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
    >>> logits, _ = model.apply(variables, jnp.ones((4, 5)))
    >>> logits.shape
    (4, 2)

    Raises:
      ValueError: as `from_linen`.
    """

    def parts(rngs):
        module = nnx.clone(make) if isinstance(make, nnx.Module) else make(rngs)
        return nnx.split(module, nnx.Param, ...)

    abstract = nnx.eval_shape(lambda: parts(nnx.Rngs(0))[1:])
    module = make if isinstance(make, nnx.Module) else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, switches = nnx.split(module, nnx.Param, ...)[0], modes.of_call(module.__call__)

    def init(key, x):
        del x  # nnx modules state their input sizes
        _, params, rest = parts(nnx.Rngs(key))
        state = nnx.to_pure_dict(rest)
        if isinstance(make, nnx.Module):
            state = _with_new_keys(state, key)
        return {"params": nnx.to_pure_dict(params), "state": state}

    def apply(variables, x, *, train=False):
        params, rest = jax.tree.map(lambda a: a, abstract)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(rest, variables["state"])
        module = nnx.merge(graph, params, rest)
        for _, part in nnx.iter_modules(module):
            for name, value in modes.values(modes.of_attributes(vars(part)), train).items():
                setattr(part, name, value)
        logits = module(x, **modes.values(switches, train))
        if not train:
            return logits, variables
        after = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
        return logits, {**variables, "state": _restricted(after, variables["state"])}

    return Model(init, apply)


def starting_from(model: Model, variables: Any) -> Model:
    """``model`` whose every training starts at ``variables``, such as pretrained weights of `weights.convert`.

    What ``variables`` lack is drawn by the key of each model: a new head, and the random streams of dropout. The
    result is a model like any other. A compiled program reads the values when it runs instead of containing them, so a
    large network compiles as fast as without them; JAX does not keep such programs in its cache on disk.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from d3mjax.networks import adapt
    >>> pretrained = {"params": {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}}
    >>> model = adapt.starting_from(d3mjax.mlp((4,), 2), pretrained)
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    >>> float(params["Dense_0"]["kernel"].sum()), params["Dense_1"]["kernel"].shape
    (12.0, (4, 2))

    Raises:
      ValueError: in ``init``, if ``model`` has no variable of that name and shape.
    """
    given = {keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(variables)}

    def init(key, x):
        leaves, tree = jax.tree.flatten_with_path(model.init(key, x))
        drawn = {keystr(path): leaf for path, leaf in leaves}
        for name, value in given.items():
            shape = drawn[name].shape if name in drawn else None
            if value.shape != shape:
                expected = "no such name" if shape is None else shape
                raise ValueError(f"variables: found {name} of shape {value.shape}, expected {expected}")
        kinds = {name: jax.ShapeDtypeStruct(value.shape, drawn[name].dtype) for name, value in given.items()}
        values = lambda: {name: value.astype(kinds[name].dtype) for name, value in given.items()}
        start = drawn | jax.pure_callback(values, kinds)  # in a closure, they would be constants of the program
        return tree.unflatten([start[keystr(path)] for path, _ in leaves])

    return Model(init, model.apply)


def _set_open_switches(train: bool) -> Callable:
    """Interceptor of linen methods that gives layers the switches that are left open."""

    def intercept(method, args, kwargs, context):
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        return method(*args, **kwargs, **modes.values(modes.left_open(method, context.module, args, kwargs), train))

    return intercept


def _one_step(trained: Callable, variables: Any, x: Any) -> tuple[Any, list[str]]:
    """Shapes of the collections after a training step on twice as many examples, and the random streams it read."""
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2 * a.shape[0], *a.shape[1:]), a.dtype), x)
    streams: list[str] = []
    while True:
        keys = {name: jax.random.key(0) for name in streams}
        try:
            return jax.eval_shape(trained, variables, rows, keys)[1], streams
        except errors.InvalidRngError as error:
            name = re.search(r'needs PRNG for "(.+?)"', str(error))
            if name is None or name[1] in streams:
                raise
            streams.append(name[1])


def _alike(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure, shapes and types."""
    describe = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
    return describe(a) == describe(b)


def _with_new_keys(state: Any, key: jax.Array) -> Any:
    """``state`` with every random key derived from ``key``."""
    leaves, tree = jax.tree.flatten(state)
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return tree.unflatten([jax.random.fold_in(key, i) if is_key(a) else a for i, a in enumerate(leaves)])


def _restricted(tree: Any, to: Any) -> Any:
    """The entries of nested dicts that ``to`` has as well: what a module sows is none of its state."""
    if not isinstance(to, dict):
        return tree
    return {name: _restricted(tree[name], value) for name, value in to.items()}
