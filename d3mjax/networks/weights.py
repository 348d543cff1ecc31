"""Published tensors as variables of our networks, by rules from names to paths; nothing is left over or left out."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from d3mjax.types import Model

_SHOWN = 5  # mismatches in a message


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """Vectors and embeddings lie alike in PyTorch and JAX."""
    return tensor


def transposed(tensor: np.ndarray) -> np.ndarray:
    """The matrix of a dense layer, ``[out in]`` in PyTorch, as ``[in out]``."""
    return tensor.T


def rows_first(tensor: np.ndarray) -> np.ndarray:
    """The kernel of a convolution, ``[out in h w]`` in PyTorch, as ``[h w in out]``."""
    return tensor.transpose(2, 3, 1, 0)


class Rule(NamedTuple):
    """Where tensors go whose whole name matches the regular expression ``name``.

    ``path``: keys joined by slashes, ``\\1`` being the first group of ``name``; None for what no network needs.
    ``layout``: the tensor as our layer expects it. ``optional``: left out where the network has no such variable.
    """

    name: str
    path: str | None
    layout: Callable[[np.ndarray], np.ndarray] = unchanged
    optional: bool = False


def shapes(model: Model, x: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of the variables that ``model`` draws for inputs like ``x``, without random keys; computes nothing."""
    x = jax.tree.map(jnp.asarray, x)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    is_array = lambda a: not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return {name: value for name, value in variables.items() if all(map(is_array, jax.tree.leaves(value)))}


def convert(
    tensors: Mapping[str, np.ndarray],
    variables: PyTree[jax.ShapeDtypeStruct],
    rules: Sequence[Rule],
    *,
    fresh: Sequence[str] = (),
) -> PyTree[np.ndarray]:
    """``tensors`` by name as variables of the shapes ``variables``, in float32, each tensor by the first rule it meets.

    Every tensor is used once and every variable filled once, or the mismatches are raised. ``fresh`` are paths, such
    as ``"params/head"``, whose variables are left out, with the tensors that would fill them: a head for other classes,
    which `adapt.starting_from` draws anew.

    >>> import jax, numpy as np
    >>> from d3mjax.networks import weights
    >>> wanted = {"params": {"head": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)}}}
    >>> rule = weights.Rule(r"fc\\.weight", "params/head/kernel", weights.transposed)
    >>> weights.convert({"fc.weight": np.zeros((2, 3), np.float32)}, wanted, [rule])["params"]["head"]["kernel"].shape
    (3, 2)

    Raises:
      ValueError: tensors without a rule, two for one variable, shapes or types that differ, numbers that are not
        finite, variables without a tensor; the message has the first of them and their number.
    """
    wanted = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    is_fresh = lambda path: any(path == prefix or path.startswith(f"{prefix}/") for prefix in fresh)
    filled, mismatches = {}, []
    for name, tensor in tensors.items():
        rule, path = _destination(name, rules)
        if rule is None:
            mismatches.append(f"tensor {name} {_shape(tensor)} has no rule")
        elif path is None or is_fresh(path) or (rule.optional and path not in wanted):
            continue
        elif path not in wanted:
            mismatches.append(f"tensor {name} {_shape(tensor)} is for {path}, which is not in the network")
        elif path in filled:
            mismatches.append(f"tensor {name} is the second for {path}")
        elif reason := _unfit(tensor, rule.layout, wanted[path].shape):
            mismatches.append(f"tensor {name} {reason}, expected finite numbers for {path} {_shape(wanted[path])}")
            filled[path] = tensor
        else:
            filled[path] = np.ascontiguousarray(rule.layout(tensor), dtype=np.float32)
    missing = [path for path in wanted if path not in filled and not is_fresh(path)]
    mismatches += [f"no tensor for {path} {_shape(wanted[path])}" for path in missing]
    if mismatches:
        more = f"; and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
        raise ValueError(
            f"weights: found {len(mismatches)} mismatches, expected every tensor used and every variable filled: "
            f"{'; '.join(mismatches[:_SHOWN])}{more}. Are these the weights of another architecture?"
        )
    return _nested(filled)


def _destination(name: str, rules: Sequence[Rule]) -> tuple[Rule | None, str | None]:
    for rule in rules:
        if match := re.fullmatch(rule.name, name):
            return rule, None if rule.path is None else match.expand(rule.path)
    return None, None


def _unfit(tensor: np.ndarray, layout: Callable, shape: tuple[int, ...]) -> str | None:
    if tensor.dtype.kind != "f":
        return f"has type {tensor.dtype}"
    if tensor.ndim != len(shape) or layout(tensor).shape != shape:
        return f"has shape {_shape(tensor)}"
    return None if np.isfinite(tensor).all() else "is not finite"


def _shape(array: Any) -> str:
    return f"[{' '.join(map(str, array.shape))}]"


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
