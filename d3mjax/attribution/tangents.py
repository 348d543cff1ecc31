"""The tangent of one dense layer: outputs to first order in a change of its kernel, without the network around it.

    output(kernel + K)  ~  output(kernel) + sum_t inputs_t' K deltas_t

for the positions t of a row, ``inputs`` going into the layer and ``deltas`` being derivatives of the output by what
comes out of it. Both are computed once; every gradient, curvature product and step in K then costs a few small
products, however large the rest of the network is, such as the vocabulary of a language model. Exact at K = 0, with its
gradient.

    values, factors = of_layer(model, variables, path, x)
    model = tangent(inputs, outputs)           # parameters {"kernel": K}, zero at first; x is `as_rows(...)`
    edited = with_change(variables, path, K)   # the network itself at kernel + K

`kronecker` is K-FAC's curvature of such a layer, `ekfac.by_fisher` its inverse for edits. Sources: Jacot et al.,
"Neural tangent kernel", 2018; Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
curvature".
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Bool, Float, PyTree

from d3mjax.attribution import ekfac
from d3mjax.attribution.dense_gradients import Factors
from d3mjax.types import AnyArray, Model

Path = tuple[str, ...]
"""Of a dense layer in ``params``, such as ``("block_29", "down")``."""


def of_layer(model: Model, variables: PyTree, path: Path, x: PyTree[AnyArray]) -> tuple[Float[Array, "b"], Factors]:
    """Outputs ``[b]`` of a linen model and the factors of their gradients by the kernel of the layer at ``path``.

    Rows must not depend on each other: one reverse pass over their sum gives the deltas of all.

    Raises:
      ValueError: no dense layer at ``path`` is called exactly once.
    """

    def tapped(tap):
        inputs, shapes = [], []

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != tuple(path):
                return out
            inputs.append(args[0])
            shapes.append(out)
            return out if tap is None else out + tap

        with linen.intercept_methods(intercept):
            values = model.apply(variables, x)[0]
        if len(inputs) != 1:
            raise ValueError(f"path: found {len(inputs)} calls of a layer at {'/'.join(path)}, expected one")
        return values.sum(), (values, inputs[0], shapes[0])

    _, (_, _, out) = jax.eval_shape(lambda: tapped(None))
    (_, (values, inputs, _)), deltas = jax.value_and_grad(tapped, has_aux=True)(jnp.zeros(out.shape, out.dtype))
    return values, Factors(inputs, deltas)


def as_rows(
    values: Float[AnyArray, "b"], factors: Factors, positions: Bool[AnyArray, "b t"], length: int
) -> dict[str, np.ndarray]:
    """Inputs of `tangent`: values, and the factors at the True ``positions``, ``length`` of them at most, 0 behind.

    Raises:
      ValueError: more than ``length`` positions in a row.
    """
    positions = np.asarray(positions)
    if (most := int(positions.sum(1).max(initial=0))) > length:
        raise ValueError(f"positions: found {most} in a row, expected at most {length}")
    index = np.argsort(~positions, axis=1, kind="stable")[:, :length]
    real = np.take_along_axis(positions, index, 1)[:, :, None]
    rows = [np.where(real, np.take_along_axis(np.asarray(a), index[:, :, None], 1), 0) for a in factors]
    rows = [np.pad(a, ((0, 0), (0, length - a.shape[1]), (0, 0))) for a in rows]
    return {"values": np.asarray(values), "inputs": rows[0], "deltas": rows[1]}


def tangent(inputs: int, outputs: int) -> Model:
    """Outputs ``[b]`` to first order in ``{"kernel": K[inputs outputs]}``, which is zero at first, from `as_rows`."""

    def init(key, x):
        return {"params": {"kernel": jnp.zeros((inputs, outputs))}}

    def apply(variables, x, *, train=False):
        moved = jnp.einsum("bti,io->bto", x["inputs"], variables["params"]["kernel"], precision="highest")
        return x["values"] + jnp.einsum("bto,bto->b", moved, x["deltas"], precision="highest"), variables

    return Model(init, apply)


def with_change(variables: Mapping[str, Any], path: Path, change: Float[AnyArray, "i o"]) -> dict[str, Any]:
    """Variables of the network with ``change`` added to the kernel of the layer at ``path``."""
    kernel = reduce(lambda tree, name: tree[name], path, variables["params"])["kernel"] + change
    return {**variables, "params": _put(variables["params"], (*path, "kernel"), kernel)}


def kronecker(factors: Factors) -> ekfac.Fisher:
    """K-FAC of one kernel: eigenbases of ``A = mean a a'`` of inputs and ``S = mean d d'`` of deltas over positions.

    Deltas are those of ``log p(y)`` with y drawn from the model (Fisher) or as observed (empirical Fisher); positions
    whose deltas are all 0, such as padding, do not count.
    """
    a, d = (np.asarray(part, np.float64).reshape(-1, np.shape(part)[-1]) for part in factors)
    real = np.abs(d).max(1) > 0
    a, d = a[real], d[real]
    eigen = [np.linalg.eigh(part.T @ part / len(part)) for part in (a, d)]
    (of_inputs, inputs), (of_outputs, outputs) = ((np.maximum(e.eigenvalues, 0), e.eigenvectors) for e in eigen)
    arrays = (jnp.asarray(m, jnp.float32) for m in (inputs, outputs, np.outer(of_inputs, of_outputs)))
    return ekfac.Fisher({(): ekfac.Layer(*arrays)}, {})


def _put(tree: Mapping[str, Any], path: Path, leaf: Any) -> dict[str, Any]:
    name, *rest = path
    return {**tree, name: _put(tree[name], tuple(rest), leaf) if rest else leaf}
