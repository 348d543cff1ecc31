"""Inverse curvatures for influence functions and edits: ``by_*(...)`` makes ``inverse(problem) -> solve``.

    cost                          exact     for
    by_cg          products       to rtol   any curvature that is positive definite with its damping; the default
    by_dense       d products     yes       some thousands of parameters
    by_last_layer  C^2 / 2 Grams  yes       a dense last layer on its features
    by_lissa       products       to depth  comparison with the literature
    by_arnoldi     num products   no        many directions; the smallest eigenvalues count as zero
    by_nystrom     num products   no        preconditioner of `by_cg` for many directions
    ekfac.by_ekfac two passes     no        many directions, networks of dense layers

Where an inverse draws, it does so from ``problem.key``.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from d3mjax.attribution import curvatures
from d3mjax.attribution.curvatures import Inverse, Problem
from d3mjax.linalg import iterative
from d3mjax.linalg.products import dot
from d3mjax.types import Solve


def by_cg(*, rtol: float = 1e-4, max_steps: int = 200, precondition: Inverse | None = None) -> Inverse:
    """Conjugate gradients to a relative residual of ``rtol``; a product costs two passes over all examples.

    ``precondition``: an inverse that is symmetric and positive definite, made once and applied at every step; the
    solution is the same, to ``rtol``. `by_nystrom` divides the steps by 3 to 5. `ekfac.by_ekfac` adds a quarter, and
    saves a fifth at 100 times the damping (bench ``solves``).
    """

    def inverse(problem: Problem):
        matvec = problem.curvature(problem)
        solve = partial(iterative.cg, matvec, damping=problem.damping, rtol=rtol, max_steps=max_steps)
        if precondition is None:
            return solve
        guess = precondition(problem)
        return partial(solve, precondition=lambda vector: guess(vector).value)

    return inverse


def by_dense() -> Inverse:
    """Cholesky of the whole curvature ``[d d]``: for some thousands of parameters, such as a last layer (``keep``)."""
    return lambda problem: partial(iterative.dense, problem.curvature(problem), damping=problem.damping)


def by_lissa(*, depth: int) -> Inverse:
    """LiSSA with full products, scaled by 1.05 times the largest eigenvalue, which `iterative.extremes` estimates.

    Source: Agarwal, Bullins and Hazan, 2017.
    """

    def inverse(problem: Problem):
        matvec, like = problem.curvature(problem), ravel_pytree(problem.params)[0]
        _, largest = iterative.extremes(problem.key, matvec, like)
        scale = 1.05 * (largest + problem.damping)
        return partial(iterative.lissa, matvec, damping=problem.damping, scale=scale, depth=depth)

    return inverse


def by_arnoldi(*, num: int, keep: int) -> Inverse:
    """The ``keep`` largest of ``num`` Ritz pairs, computed once for all directions; the rest counts as zero.

    Source: Schioppa et al., 2022.
    """

    def inverse(problem: Problem):
        like = ravel_pytree(problem.params)[0]
        space = iterative.lanczos(problem.key, problem.curvature(problem), like, num)
        return partial(iterative.arnoldi, space, damping=problem.damping, keep=keep)

    return inverse


def by_nystrom(num: int = 50) -> Inverse:
    """`iterative.low_rank_inverse` of the curvature on ``num`` random directions, whose products are computed at once.

    For positive semi-definite curvatures, such as `curvatures.ggn`. Memory: ``num`` vectors of the parameters.
    """

    def inverse(problem: Problem):
        matvec, like = problem.curvature(problem), ravel_pytree(problem.params)[0]
        matrix = iterative.nystrom(problem.key, matvec, like, num)
        return curvatures.at_once(problem, partial(iterative.low_rank_inverse, matrix, damping=problem.damping))

    return inverse


def by_last_layer() -> Inverse:
    """Cholesky of ``sum_i w_i Lambda_i (x) phi_i phi_i'``, formed by ``C (C + 1) / 2`` weighted Gram matrices.

    ``phi``: features and a 1 for the bias; ``Lambda = diag(p) - p p'`` for `curvatures.ggn`, ``diag(s (1 - s))`` for
    `curvatures.one_vs_rest`. The same as `by_dense`, for a fraction of its cost; factored once for all
    directions. The parameters are one dict of ``kernel [p C]`` and ``bias [C]``, at any depth, as of `dense.linear`.

    Raises:
      ValueError: other parameters, features that are not ``[n p]``, another loss or curvature.
    """

    def inverse(problem: Problem):
        matrix = last_layer_curvature(problem)
        factor = jax.scipy.linalg.cho_factor(matrix + problem.damping * jnp.eye(len(matrix), dtype=matrix.dtype))

        def solve(vector):
            x = jax.scipy.linalg.cho_solve(factor, vector)
            apply = lambda x: dot(matrix, x) + problem.damping * x
            return Solve(x, iterative.relative_residual(apply, x, vector), jnp.int32(0))

        return solve

    return inverse


def last_layer_curvature(problem: Problem) -> Float[Array, "d d"]:
    """The undamped matrix, rows and columns as the parameters are flattened: ``bias [C]``, ``kernel [p C]``."""
    if problem.loss is not curvatures.cross_entropy:
        raise ValueError(f"loss: found {problem.loss}, expected curvatures.cross_entropy")
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params)}
    phi = problem.examples.x
    if leaves.keys() != {"kernel", "bias"} or phi.ndim != 2 or phi.shape[1] != len(leaves["kernel"]):
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        raise ValueError(f"problem: found parameters {shapes} on x {phi.shape}, expected a kernel [p C] and a bias [C]")
    rows = jnp.concatenate([jnp.ones((len(phi), 1), phi.dtype), phi], axis=1)
    logits = dot(phi, leaves["kernel"]) + leaves["bias"][None]
    num_classes = logits.shape[1]
    if problem.curvature is curvatures.ggn:
        p = jax.nn.softmax(logits)
        pairs = list(itertools.combinations_with_replacement(range(num_classes), 2))
    elif problem.curvature is curvatures.one_vs_rest:
        p, pairs = jax.nn.sigmoid(logits), [(c, c) for c in range(num_classes)]
    else:
        raise ValueError(f"curvature: found {problem.curvature}, expected curvatures.ggn or curvatures.one_vs_rest")
    first, second = jnp.array(pairs).T

    def block(at):
        c, k = at
        weight = problem.weights * p[:, c] * (jnp.where(c == k, 1, 0) - p[:, k])
        return dot(rows.T, rows * weight[:, None])

    blocks = jax.lax.map(block, (first, second))
    width = rows.shape[1]
    full = jnp.zeros((num_classes, num_classes, width, width), rows.dtype)
    full = full.at[first, second].set(blocks).at[second, first].set(blocks)
    return full.transpose(2, 0, 3, 1).reshape(width * num_classes, width * num_classes)
