"""EK-FAC: the Fisher matrix of a network of dense layers, block by block, in the eigenbasis of a Kronecker product.

Per dense layer with inputs a (1 appended where it has a bias), derivatives s of ``-log p(y | x)`` by its outputs, and
``dW = sum over positions of a s'``, expectations over examples by weight and over labels drawn from the model:

    A = E[a a'] = Qa La Qa'      S = E[s s'] = Qs Ls Qs'      L[j k] = E[ (Qa' dW Qs)[j k]^2 ]
    (W F + damping W)^-1 V  =  Qa [ (Qa' V Qs) / (W L + damping W) ] Qs'

Plain K-FAC has ``outer(La, Ls)`` for L. Parameters that are in no dense layer get the diagonal of the Fisher. Labels
are not drawn but weighed: one backward pass a class. Source: George et al., 2018; Grosse et al., 2023.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from d3mjax.attribution import dense_gradients
from d3mjax.attribution.curvatures import Inverse, Problem, at_once, cross_entropy, loss
from d3mjax.attribution.microbatches import scan_microbatches

Path = tuple
_einsum = lambda *args: jnp.einsum(*args, precision="highest")


class Layer(NamedTuple):
    """Eigenbases of a dense layer and the second moments of its gradient in them; the bias is the last input."""

    inputs: jax.Array  # Float[i i], columns
    outputs: jax.Array  # Float[o o], columns
    moments: jax.Array  # Float[i o]


class Fisher(NamedTuple):
    """Means over examples: a `Layer` by the path of each dense layer, and the diagonal of everything else by path."""

    layers: dict[Path, Layer]
    diagonal: dict[Path, Array]


def by_ekfac(*, corrected: bool = True) -> Inverse:
    """Inverse of the block-wise Fisher; ``corrected=False`` is K-FAC. No steps; the residual is by the curvature.

    It fits the parameters of whole layers: `Options.keep` must not part a kernel from its bias.
    """
    return by_fisher(partial(fit, corrected=corrected))


def by_fisher(fisher_of: Callable[[Problem], Fisher]) -> Inverse:
    """`by_ekfac` with the Fisher of a function of the problem."""

    def inverse(problem: Problem):
        fisher, (_, unravel) = fisher_of(problem), ravel_pytree(problem.params)
        return at_once(problem, lambda vector: ravel_pytree(apply(fisher, problem, unravel(vector)))[0])

    return inverse


def fit(problem: Problem, *, corrected: bool = True) -> Fisher:
    """Factors of every layer by one pass over the examples, the corrected moments by another."""

    def covariances(grads, weight):
        dense, others = _parted(grads)
        square = lambda x: _einsum("bsi,bsj,b->ij", x, x, weight)
        pairs = {path: (square(inputs), square(deltas)) for path, (inputs, deltas) in dense.items()}
        return pairs, {path: _einsum("b...,b->...", grad**2, weight) for path, grad in others.items()}

    pairs, diagonal = _expected(problem, covariances)
    eigen = {path: [jnp.linalg.eigh(a) for a in pair] for path, pair in pairs.items()}
    bases = {path: (a.eigenvectors, s.eigenvectors) for path, (a, s) in eigen.items()}

    def moments(grads, weight):
        dense, _ = _parted(grads)
        turned = {
            path: _einsum("bsi,ij,bso,ok->bjk", dense[path][0], qa, dense[path][1], qs)
            for path, (qa, qs) in bases.items()
        }
        return {path: _einsum("bjk,b->jk", grad**2, weight) for path, grad in turned.items()}

    if corrected:
        second = _expected(problem, moments)
    else:
        second = {path: a.eigenvalues[:, None] * s.eigenvalues[None] for path, (a, s) in eigen.items()}
    return Fisher({path: Layer(*bases[path], second[path]) for path in bases}, diagonal)


def apply(fisher: Fisher, problem: Problem, tree: PyTree) -> PyTree:
    """``(W F + damping)^-1`` times a tree like the parameters, W being the sum of weights."""
    leaves = {dense_gradients.names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    total, result = problem.weights.sum(), {}
    for path, diagonal in fisher.diagonal.items():
        result[path] = leaves[path] / (total * diagonal + problem.damping)
    for path, (inputs, outputs, moments) in fisher.layers.items():
        kernel, bias = leaves[(*path, "kernel")], leaves.get((*path, "bias"))
        joined = kernel if bias is None else jnp.concatenate([kernel, bias[None]])
        inside = _einsum("ij,io,ok->jk", inputs, joined, outputs) / (total * moments + problem.damping)
        joined = _einsum("ij,jk,ok->io", inputs, inside, outputs)
        result[(*path, "kernel")] = joined[: len(kernel)]
        if bias is not None:
            result[(*path, "bias")] = joined[-1]
    return jax.tree.map_with_path(lambda path, _: result[dense_gradients.names(path)], tree)


def _parted(grads: PyTree):
    """Inputs, 1 appended where there is a bias, and deltas ``[b s .]`` of dense layers; other gradients ``[b ...]``."""
    is_leaf = lambda a: isinstance(a, dense_gradients.Factors)
    given = {dense_gradients.names(path): leaf for path, leaf in jax.tree.leaves_with_path(grads, is_leaf=is_leaf)}
    dense = {}
    for path in [path[:-1] for path, leaf in given.items() if is_leaf(leaf)]:
        inputs, deltas = given.pop((*path, "kernel"))
        if given.pop((*path, "bias"), None) is not None:
            inputs = jnp.concatenate([inputs, jnp.ones((*inputs.shape[:-1], 1), inputs.dtype)], axis=-1)
        dense[path] = (inputs, deltas)
    return dense, given


def _expected(problem: Problem, fn: Callable) -> PyTree:
    """Mean over examples, and labels as the model has them, of ``fn(gradients, weight [b])``, which sums over b."""
    if problem.loss is not cross_entropy:
        raise ValueError(f"loss: found {problem.loss}, expected curvatures.cross_entropy, whose Fisher this is")
    output = lambda params, example: -loss(problem, params, example)

    def sums(part):
        examples, weight = part
        p = jax.nn.softmax(jax.vmap(problem.logits, (None, 0))(problem.params, examples), axis=-1)

        def of_class(c):
            rows = examples._replace(y=jnp.full_like(examples.y, c))
            _, grads = dense_gradients.value_and_factors(output, problem.params, rows)
            return fn(grads, weight * p[:, c])

        return jax.tree.map(lambda a: a.sum(0), jax.lax.map(of_class, jnp.arange(p.shape[1])))

    def add(total, part, valid):
        examples, weight = part
        return jax.tree.map(jnp.add, total, sums((examples, jnp.where(valid, weight, 0)))), None

    everything = (problem.examples, problem.weights)
    shapes = jax.eval_shape(sums, jax.tree.map(lambda a: a[:1], everything))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = scan_microbatches(add, zeros, everything, microbatch=problem.microbatch)
    return jax.tree.map(lambda a: a / problem.weights.sum(), total)
