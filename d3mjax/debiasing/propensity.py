"""Weights that make what was observed look like what could have been: balance of a kernel's features.

In a recommender items are seen because somebody chose them. Weights of inverse propensity undo that; *kernel balancing*
gets them without a model of the choice. Of all weights of mean 1 those of least variance are taken that give observed
examples the mean kernel features of the population:

    w = 1 + F (F'F / n + damping I)^-1 (mean of the population - mean of the observed)

F are centred random Fourier features of a Gaussian kernel. Sources: Hazlett, "Kernel balancing", Statistica Sinica
2020; Li et al., "Debiased collaborative filtering with kernel-based causal balancing", ICLR 2024, which chooses among
kernels, too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray


def kernel_balanced(
    key: Key[Array, ""],
    observed: Float[AnyArray, "n d"],
    population: Float[AnyArray, "q d"],
    *,
    num_features: int = 128,
    damping: float = 0.01,
    scale: float | None = None,
) -> Float[Array, "n"]:
    """Weights ``[n]`` of mean 1, none negative, under which ``observed`` has the kernel's means of ``population``.

    The kernel is ``exp(-||x - z||^2 / (2 scale^2))``; ``scale`` None is the root of d, for standardised features.
    Negative weights become 0 and the rest is scaled to mean 1, so that balance is exact only where there is none.

    Raises:
      ValueError: ``damping`` is not positive.
    """
    observed, population = jnp.asarray(observed), jnp.asarray(population)
    if not damping > 0:
        raise ValueError(f"damping: found {damping}, expected a positive number")
    width = observed.shape[1] ** 0.5 if scale is None else scale
    at, phase = jax.random.split(key)
    directions = jax.random.normal(at, (observed.shape[1], num_features)) / width
    phases = jax.random.uniform(phase, (1, num_features), maxval=2 * jnp.pi)
    fourier = lambda x: jnp.sqrt(2.0) * jnp.cos(dot(x, directions) + phases)
    features, mean = fourier(observed), fourier(population).mean(0)
    own = features.mean(0)
    centred = features - own[None]
    covariance = dot(centred.T, centred) / len(centred) + damping * jnp.eye(num_features)
    weights = jnp.maximum(1 + dot(centred, jnp.linalg.solve(covariance, mean - own)), 0)
    return weights / weights.mean()
