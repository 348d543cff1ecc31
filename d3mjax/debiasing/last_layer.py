"""Refits of the last layer: deep feature reweighting (DFR; Kirichenko, Izmailov and Wilson, ICLR 2023).

The head is the dense layer that makes the logits: a dict with ``kernel [p C]`` and ``bias [C]`` somewhere in
``variables["params"]``, named by the path of keys to it. Everything below it is frozen.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.debiasing.baselines import subsample_balanced
from d3mjax.linalg import logistic
from d3mjax.linalg.products import LARGEST, dot
from d3mjax.types import AnyArray, Linear, Model

Path = tuple[str, ...]


class Scale(NamedTuple):
    """Mean and deviation of standardised features ``(features - mean) / std``; std is 1 for a constant feature."""

    mean: jax.Array  # Float[p]
    std: jax.Array  # Float[p]


def find(params: PyTree, num_classes: int) -> Path:
    """Path of the last layer in ``params``: the only dense layer with ``num_classes`` outputs.

    Raises:
      ValueError: if no layer or several layers match; pass the path instead.
    """

    def paths(node: Any, path: Path):
        if isinstance(node, dict):
            if {"kernel", "bias"} <= node.keys() and node["kernel"].ndim == 2 and len(node["bias"]) == num_classes:
                yield path
            for name, child in node.items():
                yield from paths(child, (*path, name))

    found = list(paths(params, ()))
    if len(found) != 1:
        raise ValueError(f"params: found dense layers {found} with {num_classes} outputs, expected exactly one")
    return found[0]


def features(
    model: Model, variables: PyTree, x: PyTree[AnyArray], path: Path, *, microbatch: int | None = LARGEST
) -> Float[Array, "n p"]:
    """Inputs ``[n p]`` of the last layer in evaluation mode, as the gradient of logit 0 by column 0 of its kernel.

    Exact for every model, as logits are linear in the head.
    """
    kernel = _at(variables["params"], path)["kernel"]

    def logit(column, row):
        changed = _changed(variables, path, kernel=kernel.at[:, 0].set(column))
        return model.apply(changed, jax.tree.map(lambda a: jnp.asarray(a)[None], row))[0][0, 0]

    one_by_one = lambda part: jax.vmap(jax.grad(logit), (None, 0))(kernel[:, 0], part)
    return map_microbatches(one_by_one, x, microbatch=microbatch)


def scale_of(features: Float[AnyArray, "n p"]) -> Scale:
    """Mean and standard deviation of each feature; use those of the training set for all splits."""
    std = jnp.std(jnp.asarray(features), axis=0)
    return Scale(jnp.mean(jnp.asarray(features), axis=0), jnp.where(std > 0, std, 1))


def standardise(features: Float[AnyArray, "n p"], scale: Scale) -> Float[Array, "n p"]:
    """Standardised features ``(features - mean) / std``."""
    return (jnp.asarray(features) - scale.mean[None]) / scale.std[None]


def balanced_subsets(
    key: Key[Array, ""], group: Int[AnyArray, "n"], num_groups: int, *, num_subsets: int = 20
) -> Float[Array, "r n"]:
    """Weights 0 or 1 of ``num_subsets`` random subsets in which all groups are as large as the smallest."""
    keys = jax.random.split(key, num_subsets)
    return jax.vmap(lambda k: subsample_balanced(k, group, num_groups))(keys).astype(jnp.float32)


def average_fits(
    features: Float[AnyArray, "n p"],
    y: Int[AnyArray, "n"],
    num_classes: int,
    subsets: Float[AnyArray, "r n"],
    *,
    inverse_strength: Float[Array, ""] | float = 1.0,
    max_size: int | None = None,
) -> Linear:
    """DFR: L1 logistic regression on each subset of standardised ``features``, coefficients averaged.

    ``inverse_strength`` is scikit-learn's C: the penalty against the *sum* of losses is its inverse. `balanced_subsets`
    of validation data give DFR_val, of training data DFR_train. Weight ``[C p]``, bias ``[C]``. With ``max_size``, an
    upper bound of the size of all subsets, the cost is proportional to it instead of n.
    """
    features, y = jnp.asarray(features), jnp.asarray(y)

    def one(weights):
        l1 = 1 / (inverse_strength * weights.sum())
        weights, rows = jax.lax.top_k(weights, max_size or len(weights))
        return logistic.fit(features[rows], y[rows], num_classes, weights=weights, l1=l1).head

    return jax.tree.map(lambda a: a.mean(0), jax.vmap(one)(jnp.asarray(subsets)))


def with_head(variables: PyTree, path: Path, head: Linear, scale: Scale) -> PyTree:
    """Variables of the model whose logits are ``head`` applied to features standardised by ``scale``."""
    weight = head.weight / scale.std[None]
    bias = head.bias - dot(weight, scale.mean)
    return _changed(variables, path, kernel=weight.T, bias=bias)


def _at(params, path: Path):
    for name in path:
        params = params[name]
    return params


def _changed(variables, path: Path, **leaves):
    def change(node, rest: Path):
        return {**node, rest[0]: change(node[rest[0]], rest[1:])} if rest else {**node, **leaves}

    return {**variables, "params": change(variables["params"], path)}
