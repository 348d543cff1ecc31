"""LoRA: products of two thin matrices added to chosen matrices of a frozen network; they alone are trained.

    model = lora.adapted(adapt.starting_from(network, pretrained), lambda path: "['query']" in path, rank=8)

``W + scale A B`` takes the place of ``W``, whatever the network does with it; ``scale = alpha / rank``. A and B are all
of ``variables["params"]``: optimizers, attribution and edits see nothing else. The frozen parameters are the collection
``"frozen"``. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Float, Key, PyTree

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Model


class Adapter(NamedTuple):
    """What is added to a matrix ``[i o]``, over the scale: ``A B``."""

    A: Float[AnyArray, "i r"]
    B: Float[AnyArray, "r o"]


def adapted(model: Model, choose: Callable[[str], bool], *, rank: int = 8, alpha: float = 16.0) -> Model:
    """``model`` with an `Adapter` of ``rank`` for every parameter whose path ``choose`` accepts; all others are frozen.

    A path looks like ``"['block_1']['query']['kernel']"``. A starts normal with variance 1 / rows of the matrix, B at
    0, so the outputs start as those of ``model``. Its variables are ``"params"``, the tree of the network's with
    adapters at chosen matrices and None elsewhere; ``"frozen"``, the network's parameters; ``"lora"`` with the scale;
    and the network's state.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from d3mjax.networks import lora
    >>> model = lora.adapted(d3mjax.mlp((4,), 2), lambda path: "Dense_0" in path and "kernel" in path, rank=2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> jax.tree.map(jnp.shape, variables["params"]["Dense_0"]["kernel"])
    Adapter(A=(3, 2), B=(2, 4))

    Raises:
      ValueError: in ``init``: ``choose`` accepts no path, or a parameter that is not a matrix of ``rank`` rows and
        columns or more.
    """
    if rank < 1:
        raise ValueError(f"rank: found {rank}, expected at least 1")

    def init(key: Key[Array, ""], x: PyTree) -> dict[str, Any]:
        variables = model.init(key, x)
        params = variables["params"]
        paths = [keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        if not any(map(choose, paths)):
            raise ValueError(f"choose: accepts none of the parameters {paths}")
        of_path = lambda path, leaf: _drawn(key, keystr(path), leaf, rank) if choose(keystr(path)) else None
        adapters = jax.tree.map_with_path(of_path, params)
        scale = {"scale": jnp.float32(alpha / rank)}
        return {**variables, "params": adapters, "frozen": params, "lora": scale}

    def apply(variables: Mapping[str, Any], x: PyTree, *, train: bool = False) -> tuple[Any, Mapping[str, Any]]:
        outputs, after = model.apply(merged(variables), x, train=train)
        own = {name: variables[name] for name in ("params", "frozen", "lora")}
        return outputs, {**after, **own} if train else variables

    return Model(init, apply)


def merged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the network itself, the adapters added to its matrices: the same outputs without LoRA."""
    scale = variables["lora"]["scale"]

    def of_leaf(adapter: Adapter | None, matrix: Any) -> Any:
        if adapter is None:
            return matrix
        return matrix + scale * dot(adapter.A, adapter.B)

    is_leaf = lambda a: a is None or isinstance(a, Adapter)
    params = jax.tree.map(of_leaf, variables["params"], variables["frozen"], is_leaf=is_leaf)
    state = {name: value for name, value in variables.items() if name not in ("frozen", "lora")}
    return {**state, "params": params}


def with_collections(model: Model, collections: Mapping[str, Any]) -> Model:
    """``model`` whose variables lack ``collections``, which are put in: one frozen network for many checkpoints.

    Pass ``{name: variables[name] for name in ("frozen", "lora")}`` into a jitted function and close over it there;
    outside of one, compiled programs contain it as constants.
    """

    def own(variables: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in variables.items() if name not in collections}

    def apply(variables: Mapping[str, Any], x: PyTree, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        outputs, after = model.apply({**variables, **collections}, x, train=train)
        return outputs, own(after)

    return Model(lambda key, x: own(model.init(key, x)), apply)


def _drawn(key: Key[Array, ""], path: str, matrix: Any, rank: int) -> Adapter:
    if matrix.ndim != 2 or min(matrix.shape) < rank:
        shape = list(matrix.shape)
        raise ValueError(
            f"choose: found {path} of shape {shape}, expected a matrix with {rank} rows and columns or more"
        )
    rows, columns = matrix.shape
    draw = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), (rows, rank), matrix.dtype)
    return Adapter(draw / rows**0.5, jnp.zeros((rank, columns), matrix.dtype))
