"""ResNet-18, -34 and -50 with the arithmetic of torchvision, so that published ImageNet weights convert to ours.

The stride lies in the 3 x 3 convolution of a block (v1.5). Batch normalisation keeps running means and unbiased
variances in ``batch_stats``, which training updates and evaluation reads. Images are ``[b h w 3]``, normalised as
`data.sets.images.normalise` does. Parameters are float32; ``dtype=jnp.bfloat16`` of a config computes in bfloat16,
with statistics, pooled features and the head in float32.
Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2016.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float, PyTree, Real

from d3mjax.networks import weights
from d3mjax.networks.adapt import from_linen
from d3mjax.networks.conv import convolve_lax
from d3mjax.networks.weights import Rule, rows_first, transposed, unchanged
from d3mjax.types import AnyArray, Model, checked_names

_MOMENTUM, _EPSILON = 0.9, 1e-5


@checked_names
class ResnetConfig(NamedTuple):
    """Blocks of the four stages, what a block is, and how convolutions are computed (see `conv`)."""

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True  # 1 x 1, 3 x 3, 1 x 1 to four times the channels, instead of two 3 x 3
    width: int = 64  # channels of the stem
    convolve: Callable = convolve_lax  # `conv.convolve_shifted` is faster on CPUs
    dtype: Any = jnp.float32  # of the computation; parameters and statistics are float32

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return self.width * (32 if self.bottleneck else 8)


RESNET18 = ResnetConfig((2, 2, 2, 2), bottleneck=False)
"""11.7 million parameters with 1,000 classes."""
RESNET34 = ResnetConfig((3, 4, 6, 3), bottleneck=False)
"""21.8 million parameters with 1,000 classes."""
RESNET50 = ResnetConfig()
"""25.6 million parameters with 1,000 classes."""


def _norm_rules(name: str, path: str) -> list[Rule]:
    collections = {"weight": ("params", "scale"), "bias": ("params", "bias")}
    collections |= {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
    return [Rule(rf"{name}\.{tensor}", f"{top}/{path}/{ours}") for tensor, (top, ours) in collections.items()]


_BLOCK = r"layer(\d)\.(\d+)\."
RULES: tuple[Rule, ...] = (
    Rule(r"conv1\.weight", "params/conv1", rows_first),
    *_norm_rules("bn1", "norm1"),
    Rule(_BLOCK + r"conv(\d)\.weight", r"params/block_\1_\2/conv\3", rows_first),
    *_norm_rules(_BLOCK + r"bn(\d)", r"block_\1_\2/norm\3"),
    Rule(_BLOCK + r"downsample\.0\.weight", r"params/block_\1_\2/conv0", rows_first),
    *_norm_rules(_BLOCK + r"downsample\.1", r"block_\1_\2/norm0"),
    Rule(r"fc\.weight", "params/head/kernel", transposed, optional=True),
    Rule(r"fc\.bias", "params/head/bias", unchanged, optional=True),
    Rule(r".*\.num_batches_tracked", None),
)
"""Names of torchvision and timm files to paths of ours; ``conv0`` and ``norm0`` are the shortcut of a block."""


class _BatchNorm(linen.Module):
    """Each channel by the mean and variance of the batch in training, of `batch_stats` in evaluation.

    The statistics include all rows of the batch, whatever their weights, as `conv.batch_norm` says.
    """

    @linen.compact
    def __call__(self, x: Float[Array, "c h w b"], train: bool) -> Float[Array, "c h w b"]:
        channels, count = x.shape[0], x[0].size
        scale = self.param("scale", linen.initializers.ones, (channels,))
        bias = self.param("bias", linen.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        centre, spread = mean.value, var.value
        if train:
            wide = x.astype(jnp.float32)
            centre, spread = wide.mean((1, 2, 3)), wide.var((1, 2, 3))
            unbiased = spread * (count / max(count - 1, 1))
            mean.value = _MOMENTUM * mean.value + (1 - _MOMENTUM) * centre
            var.value = _MOMENTUM * var.value + (1 - _MOMENTUM) * unbiased
        slope = scale * jax.lax.rsqrt(spread + _EPSILON)
        each = lambda a: a[:, None, None, None]
        return ((x - each(centre)) * each(slope) + each(bias)).astype(x.dtype)


class _Layers(linen.Module):
    """What the stem and the blocks share: convolutions without bias, each followed by its batch normalisation."""

    config: ResnetConfig

    def _convolved(self, x, i: int, features: int, train: bool, *, size: int = 3, stride: int = 1):
        shape, pad = (size, size, x.shape[0], features), (size // 2, size // 2)
        kernel = self.param(f"conv{i}", linen.initializers.variance_scaling(2.0, "fan_out", "normal"), shape)
        y = self.config.convolve(x, jnp.asarray(kernel, x.dtype), stride=stride, padding=(pad, pad))
        return _BatchNorm(name=f"norm{i}")(y, train)


class _Block(_Layers):
    features: int
    stride: int

    @linen.compact
    def __call__(self, x: Float[Array, "c h w b"], train: bool) -> Float[Array, "o h2 w2 b"]:
        features, stride = self.features, self.stride
        if self.config.bottleneck:
            inner = linen.relu(self._convolved(x, 1, features // 4, train, size=1))
            inner = linen.relu(self._convolved(inner, 2, features // 4, train, stride=stride))
            inner = self._convolved(inner, 3, features, train, size=1)
        else:
            inner = linen.relu(self._convolved(x, 1, features, train, stride=stride))
            inner = self._convolved(inner, 2, features, train)
        if x.shape != inner.shape:
            x = self._convolved(x, 0, features, train, size=1, stride=stride)
        return linen.relu(x + inner)


class _Resnet(_Layers):
    num_classes: int  # 0: no head

    @linen.compact
    def __call__(self, x: Float[AnyArray, "b h w 3"], train: bool) -> Float[Array, "b _"]:
        y = jnp.asarray(x, self.config.dtype).transpose(3, 1, 2, 0)
        y = linen.relu(self._convolved(y, 1, self.config.width, train, size=7, stride=2))
        y = jax.lax.reduce_window(
            y, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        for stage, blocks in enumerate(self.config.blocks):
            features = self.config.features >> 3 - stage
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                y = _Block(self.config, features, stride, name=f"block_{stage + 1}_{i}")(y, train)
        pooled = y.astype(jnp.float32).mean((1, 2)).T
        return linen.Dense(self.num_classes, name="head")(pooled) if self.num_classes else pooled


def encoder(config: ResnetConfig) -> Model:
    """Features ``[b d]``, float32: the mean over the pixels of the last stage, of ``config.features`` channels."""
    return from_linen(_Resnet(config, 0))


def classifier(config: ResnetConfig, num_classes: int) -> Model:
    """Logits ``[b C]`` of a dense head on the features of `encoder`."""
    return from_linen(_Resnet(config, num_classes))


def of_bytes(model: Model, *, mean: Sequence[float], std: Sequence[float]) -> Model:
    """``model`` on images of whole numbers 0..255: ``(x / 255 - mean) / std`` by channel, computed on the device."""

    def scaled(x: Real[AnyArray, "b h w 3"]) -> Float[Array, "b h w 3"]:
        centre, spread = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (mean, std))
        return (jnp.asarray(x, jnp.float32) / 255 - centre) / spread

    return Model(
        lambda key, x: model.init(key, scaled(x)),
        lambda variables, x, *, train=False: model.apply(variables, scaled(x), train=train),
    )


def from_published(model: Model, tensors: Mapping[str, np.ndarray], *, fresh: Sequence[str] = ()) -> PyTree[np.ndarray]:
    """Parameters and ``batch_stats`` of a network of images from the tensors of a torchvision or timm file, by `RULES`.

    ``fresh=("head",)`` leaves the published classes out, for `adapt.starting_from` to draw a head for others. Raises as
    `weights.convert`.
    """
    shapes = weights.shapes(model, np.zeros((1, 32, 32, 3), np.float32))
    return weights.convert(tensors, shapes, RULES, fresh=[f"params/{name}" for name in fresh])
