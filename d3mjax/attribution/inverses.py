"""The exact curvature of a dense last layer, an `influence.Inverse` for problems whose examples are its features."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3mjax.attribution import influence
from d3mjax.attribution.influence import Inverse, Problem
from d3mjax.types import Solve

_dot = partial(jnp.matmul, precision="highest")


def by_last_layer() -> Inverse:
    """Cholesky of ``sum_i w_i Lambda_i (x) phi_i phi_i'``, formed by ``C (C + 1) / 2`` weighted Gram matrices.

    ``phi``: features and a 1 for the bias; ``Lambda = diag(p) - p p'`` for `influence.ggn`, ``diag(s (1 - s))`` for
    `influence.one_vs_rest`. The same as `influence.by_dense`, for a fraction of its cost; factored once for all
    directions. The parameters are one dict of ``kernel [p C]`` and ``bias [C]``, at any depth, as of `models.linear`.

    Raises:
      ValueError: other parameters, features that are not ``[n p]``, another loss or curvature.
    """

    def inverse(problem: Problem):
        matrix = curvature(problem)
        factor = jax.scipy.linalg.cho_factor(matrix + problem.damping * jnp.eye(len(matrix), dtype=matrix.dtype))

        def solve(vector):
            x = jax.scipy.linalg.cho_solve(factor, vector)
            error = jnp.linalg.norm(_dot(matrix, x) + problem.damping * x - vector)
            norm = jnp.linalg.norm(vector)
            return Solve(x, error / jnp.where(norm > 0, norm, 1), jnp.int32(0))

        return solve

    return inverse


def curvature(problem: Problem) -> Float[Array, "d d"]:
    """The undamped matrix, rows and columns as the parameters are flattened: ``bias [C]``, ``kernel [p C]``."""
    if problem.loss is not influence.cross_entropy:
        raise ValueError(f"loss: found {problem.loss}, expected influence.cross_entropy")
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params)}
    phi = problem.examples.x
    if leaves.keys() != {"kernel", "bias"} or phi.ndim != 2 or phi.shape[1] != len(leaves["kernel"]):
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        raise ValueError(f"problem: found parameters {shapes} on x {phi.shape}, expected a kernel [p C] and a bias [C]")
    rows = jnp.concatenate([jnp.ones((len(phi), 1), phi.dtype), phi], axis=1)
    logits = _dot(phi, leaves["kernel"]) + leaves["bias"][None]
    num_classes = logits.shape[1]
    if problem.curvature is influence.ggn:
        p = jax.nn.softmax(logits)
        pairs = list(itertools.combinations_with_replacement(range(num_classes), 2))
    elif problem.curvature is influence.one_vs_rest:
        p, pairs = jax.nn.sigmoid(logits), [(c, c) for c in range(num_classes)]
    else:
        raise ValueError(f"curvature: found {problem.curvature}, expected influence.ggn or influence.one_vs_rest")
    first, second = jnp.array(pairs).T

    def block(at):
        c, k = at
        weight = problem.weights * p[:, c] * (jnp.where(c == k, 1, 0) - p[:, k])
        return _dot(rows.T, rows * weight[:, None])

    blocks = jax.lax.map(block, (first, second))
    width = rows.shape[1]
    full = jnp.zeros((num_classes, num_classes, width, width), rows.dtype)
    full = full.at[first, second].set(blocks).at[second, first].set(blocks)
    return full.transpose(2, 0, 3, 1).reshape(width * num_classes, width * num_classes)
