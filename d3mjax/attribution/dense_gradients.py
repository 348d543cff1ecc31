"""Gradients of dense kernels as their two factors, never multiplied out.

For one example the gradient of a dense layer's kernel is ``sum_s a_s d_s'``: inputs times derivatives by the layer's
output, summed over the positions s (one for an MLP, one a token for a transformer). An MLP 784-64-10 has 50,890
parameters and 932 numbers in its factors, which suffice for inner products and linear maps of gradients.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float, PyTree

from d3mjax.attribution.gradients import Output


class Factors(NamedTuple):
    """Gradients of one kernel, ``sum_s inputs[b, s] deltas[b, s]'``, one ``[i, o]`` matrix for each example b."""

    inputs: jax.Array  # Float[b s i]
    deltas: jax.Array  # Float[b s o]

    def matrix(self) -> Float[Array, "b i o"]:
        """The gradients themselves."""
        return jnp.einsum("bsi,bso->bio", self.inputs, self.deltas, precision="highest")


def value_and_factors(output: Output, params: PyTree, examples: PyTree) -> tuple[Float[Array, "b"], PyTree]:
    """Output of every row and its gradient, with `Factors` in place of the kernel of each linen ``Dense`` layer.

    The gradients are the tree of ``params`` with a leading axis ``b``. Other parameters, and models that are not of
    linen, keep ordinary gradients. A kernel must not be used outside its layer's ``__call__``, nor the layer inside
    ``linen.scan`` or ``linen.remat``.
    """
    paths = []

    def tapped(taps, params, example):
        """The output with ``taps[k]`` added to the k-th dense layer's, and what went into and came out of each."""
        inputs, outputs = [], []
        paths.clear()

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if type(context.module) is not linen.Dense or context.method_name != "__call__":
                return out
            out = out if taps is None else out + taps[len(paths)]
            paths.append((*context.module.path, "kernel"))
            inputs.append(args[0])
            outputs.append(out)
            return out

        with linen.intercept_methods(intercept):
            return output(params, example), (inputs, outputs)

    def one(example):
        _, (_, outputs) = jax.eval_shape(tapped, None, params, example)
        taps = [jnp.zeros(o.shape, o.dtype) for o in outputs]
        run = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
        (value, (inputs, _)), (deltas, grads) = run(taps, params, example)
        return value, inputs, deltas, grads

    values, inputs, deltas, grads = jax.vmap(one)(examples)
    rows = lambda arrays, calls: jnp.concatenate([_positions(arrays[k]) for k in calls], axis=1)

    def factor(path, grad):
        calls = [k for k, called in enumerate(paths) if called == names(path)]
        return Factors(rows(inputs, calls), rows(deltas, calls)) if calls else grad

    return values, jax.tree.map_with_path(factor, grads)


def leaves(grads: PyTree) -> list[Any]:
    """Leaves of a tree of gradients, each `Factors` being one."""
    return jax.tree.leaves(grads, is_leaf=lambda a: isinstance(a, Factors))


def _positions(array):
    return array.reshape(array.shape[0], -1, array.shape[-1])


def names(path: tuple) -> tuple:
    """The keys of a path into nested dictionaries."""
    return tuple(getattr(key, "key", None) for key in path)
