"""The tangent of dense layers: outputs to first order in changes of their kernels, without the network around them.

    output(kernels + K)  ~  output(kernels) + sum over layers and positions t of inputs_t' K deltas_t

for the positions t of a row, ``inputs`` going into a layer and ``deltas`` being derivatives of the output by what
comes out of it. Both are computed once; every gradient, curvature product and step in K then costs a few small
products, however large the rest of the network is, such as the vocabulary of a language model. Exact at K = 0, with its
gradient.

    values, factors = of_layers(model, variables, paths, x)
    model = tangent()                     # parameters: kernels K like `factors`, zero at first; x is `as_rows(...)`
    edited = with_change(variables, K)    # the network itself at kernels + K

`kronecker` is K-FAC's curvature of such layers, `ekfac.by_fisher` its inverse for edits. Sources: Jacot et al.,
"Neural tangent kernel", 2018; Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
curvature".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, PyTree

from d3mjax.attribution import ekfac
from d3mjax.attribution.dense_gradients import Factors
from d3mjax.types import AnyArray, Model

Path = tuple[str, ...]
"""Of a dense layer in ``params``, such as ``("block_29", "down")``."""


def of_layers(
    model: Model, variables: PyTree, paths: Sequence[Path], x: PyTree[AnyArray]
) -> tuple[Float[Array, "b"], PyTree[Factors]]:
    """Outputs ``[b]`` of a linen model and the factors of their gradients by the kernels of the layers at ``paths``.

    Factors are a tree like these kernels in ``params``. Rows must not depend on each other: one reverse pass over
    their sum gives the deltas of all.

    Raises:
      ValueError: a path at which no dense layer is called exactly once.
    """
    paths = [tuple(path) for path in paths]

    def tapped(taps):
        calls: dict[Path, list] = {path: [] for path in paths}

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            path = context.module.path
            if context.method_name != "__call__" or path not in calls:
                return out
            calls[path].append((args[0], out))
            return out if taps is None else out + taps[path]

        with linen.intercept_methods(intercept):
            values = model.apply(variables, x)[0]
        for path, of_path in calls.items():
            if len(of_path) != 1:
                raise ValueError(f"paths: found {len(of_path)} calls of a layer at {'/'.join(path)}, expected one")
        return values.sum(), (values, {path: of_path[0] for path, of_path in calls.items()})

    _, (_, shapes) = jax.eval_shape(lambda: tapped(None))
    taps = {path: jnp.zeros(out.shape, out.dtype) for path, (_, out) in shapes.items()}
    (_, (values, calls)), deltas = jax.value_and_grad(tapped, has_aux=True)(taps)
    return values, unflatten_dict({(*path, "kernel"): Factors(calls[path][0], deltas[path]) for path in paths})


def as_rows(
    values: Float[AnyArray, "b"], factors: PyTree[Factors], positions: Bool[AnyArray, "b t"], length: int
) -> dict[str, Any]:
    """Inputs of `tangent`: values, and the factors at the True ``positions``, ``length`` of them at most, 0 behind.

    Raises:
      ValueError: more than ``length`` positions in a row.
    """
    positions = np.asarray(positions)
    if (most := int(positions.sum(1).max(initial=0))) > length:
        raise ValueError(f"positions: found {most} in a row, expected at most {length}")
    index = np.argsort(~positions, axis=1, kind="stable")[:, :length]
    real = np.take_along_axis(positions, index, 1)[:, :, None]

    def at_positions(a):
        rows = np.where(real, np.take_along_axis(np.asarray(a), index[:, :, None], 1), 0)
        return np.pad(rows, ((0, 0), (0, length - rows.shape[1]), (0, 0)))

    return {"values": np.asarray(values), "factors": jax.tree.map(at_positions, factors)}


def tangent() -> Model:
    """Outputs ``[b]`` to first order in changes ``K[i o]`` of kernels, which are zero at first, from `as_rows`."""
    is_factors = lambda a: isinstance(a, Factors)

    def init(key, x):
        zeros = lambda factors: jnp.zeros((factors.inputs.shape[-1], factors.deltas.shape[-1]))
        return {"params": jax.tree.map(zeros, x["factors"], is_leaf=is_factors)}

    def apply(variables, x, *, train=False):
        def moved(factors, change):
            outputs = jnp.einsum("bti,io->bto", factors.inputs, change, precision="highest")
            return jnp.einsum("bto,bto->b", outputs, factors.deltas, precision="highest")

        terms = jax.tree.map(moved, x["factors"], variables["params"], is_leaf=is_factors)
        return x["values"] + sum(jax.tree.leaves(terms)), variables

    return Model(init, apply)


def with_change(variables: Mapping[str, Any], change: PyTree[Float[AnyArray, "..."]]) -> dict[str, Any]:
    """Variables of the network with ``change`` added: nested dictionaries like a part of ``params``."""
    params: dict[Path, Any] = flatten_dict(variables["params"])
    params |= {path: params[path] + leaf for path, leaf in flatten_dict(change).items()}
    return {**variables, "params": unflatten_dict(params)}


def kronecker(factors: PyTree[Factors]) -> ekfac.Fisher:
    """K-FAC of kernels: eigenbases of ``A = mean a a'`` of inputs and ``S = mean d d'`` of deltas over positions.

    Deltas are those of ``log p(y)`` with y drawn from the model (Fisher) or as observed (empirical Fisher); positions
    whose deltas are all 0, such as padding, do not count. Layers are independent of each other.
    """
    kernels: dict[Path, Any] = flatten_dict(factors)
    return ekfac.Fisher({path[:-1]: _of_layer(layer) for path, layer in kernels.items()}, {})


def _of_layer(factors: Factors) -> ekfac.Layer:
    a, d = (np.asarray(part, np.float64).reshape(-1, np.shape(part)[-1]) for part in factors)
    real = np.abs(d).max(1) > 0
    a, d = a[real], d[real]
    eigen = [np.linalg.eigh(part.T @ part / len(part)) for part in (a, d)]
    (of_inputs, inputs), (of_outputs, outputs) = ((np.maximum(e.eigenvalues, 0), e.eigenvectors) for e in eigen)
    return ekfac.Layer(*(jnp.asarray(m, jnp.float32) for m in (inputs, outputs, np.outer(of_inputs, of_outputs))))
