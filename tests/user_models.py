"""Models as users write them, each a function of the number of classes; for `load_model` and the adapters."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import d3mjax


class A(nn.Module):
    c: int

    @nn.compact
    def __call__(self, x, training: bool = False):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not training)(x)
        return nn.Dense(self.c)(nn.relu(x))


class C(nn.Module):
    c: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.c)(x)


class Deterministic(nn.Module):
    c: int

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dense(16)(x).reshape(-1, 4, 4)
        x += nn.MultiHeadDotProductAttention(2, dropout_rate=0.3)(x, deterministic=deterministic)
        return nn.Dense(self.c)(x.reshape(-1, 16))


class RunningAverage(nn.Module):
    c: int

    @nn.compact
    def __call__(self, x, *, use_running_average=True):
        return nn.Dense(self.c)(nn.BatchNorm()(nn.Dense(16)(x), use_running_average=use_running_average))


class Inference(nn.Module):
    """Dropout of a stream of its own, and noise."""

    c: int

    @nn.compact
    def __call__(self, x, inference=True):
        x = nn.relu(nn.Dense(16)(x))
        if not inference:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(self.c)(nn.Dropout(0.3, rng_collection="masks")(x, deterministic=inference))


class Merged(nn.Module):
    """The switch as an attribute or in the call, as layers of Flax have it."""

    c: int
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(self.c)(nn.Dropout(0.5)(nn.relu(nn.Dense(16)(x)), deterministic=deterministic))


class Attribute(nn.Module):
    c: int
    is_training: bool = False

    def setup(self):
        self.first, self.last = nn.Dense(16), nn.Dense(self.c)
        self.norm = nn.BatchNorm(use_running_average=not self.is_training)

    def __call__(self, x):
        return self.last(nn.relu(self.norm(self.first(x))))


class Sows(nn.Module):
    """Sown values, of which a penalty adds up, a perturbation, and a count that is state."""

    c: int

    @nn.compact
    def __call__(self, x, train=False):
        h = self.perturb("h", nn.relu(nn.Dense(16)(x)))
        self.sow("intermediates", "h", h)
        self.sow("losses", "penalty", (h**2).mean())
        count = self.variable("counts", "steps", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value += 1
        return nn.Dense(self.c)(h)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x + nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Dense(x.shape[-1])(x)))


class Deep(nn.Module):
    """Blocks that are computed again in the backward pass, and a weight of which the norm is tracked."""

    c: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(16)(x)
        for _ in range(2):
            x = nn.remat(Block, static_argnums=(2,))()(x, train)
        return nn.SpectralNorm(nn.Dense(self.c))(x, update_stats=train)


class Scanned(nn.Module):
    """One block scanned over its depth, with parameters and dropout of its own in each layer."""

    c: int

    @nn.compact
    def __call__(self, x, train=False):
        layers = nn.scan(
            lambda block, x, _: (block(x, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=2,
        )
        x, _ = layers(Block(), nn.Dense(16)(x), None)
        return nn.Dense(self.c)(x)


class Nnx(nnx.Module):
    def __init__(self, c, *, rngs):
        self.first, self.norm = nnx.Linear(2, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(16, c, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norm(self.first(x)))
        self.sow(nnx.Intermediate, "h", h)
        return self.last(self.dropout(h))


class NnxCall(nnx.Module):
    def __init__(self, c, rngs):
        self.first, self.last = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, c, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x, training=False):
        h = nnx.relu(self.first(x))
        return self.last(h + 0.1 * jax.random.normal(self.rngs.noise(), h.shape) if training else h)


class NnxAttribute(nnx.Module):
    """A switch that hides the method of the same name."""

    def __init__(self, c, rngs):
        self.first, self.last = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, c, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.train = False  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x)), deterministic=not self.train))


def sequential(c):
    """Layers whose switch nobody sets."""
    return nn.Sequential([nn.Dense(16), nn.BatchNorm(), nn.relu, nn.Dropout(0.2), nn.Dense(c)])


def nnx_class(c):
    return functools.partial(Nnx, c)


def nnx_constructor(c):
    return lambda rngs: NnxAttribute(c, rngs)


def nnx_module(c):
    return Nnx(c, rngs=nnx.Rngs(0))


def own(c):
    return d3mjax.mlp((8,), c)


DRAWS = ("C", "Deterministic", "Inference", "Merged", "sequential", "Deep", "Scanned", "NnxCall")
DRAWS += ("nnx_class", "nnx_constructor", "nnx_module")
"""Models that draw random numbers in training."""
KEEPS = ("A", "RunningAverage", "Attribute", "Sows", "Deep", "sequential", "nnx_class", "nnx_module")
"""Models with state that training changes."""
NAMES = tuple(dict.fromkeys((*DRAWS, *KEEPS, "own")))
