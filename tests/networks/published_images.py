"""Tensors of a small ResNet in torchvision's naming, with random values, and a NumPy oracle that reads them."""

from typing import Any

import numpy as np

from d3mjax.networks.resnets import ResnetConfig

Tensors = dict[str, np.ndarray]


def resnet_tensors(config: ResnetConfig, num_classes: int = 3, *, seed: int = 0) -> Tensors:
    """A file of ``config`` with a head, float32, all values random; variances are positive."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    tensors: Tensors = {}

    def convolution(name: str, norm: str, inputs: int, outputs: int, size: int) -> None:
        tensors[f"{name}.weight"] = normal(outputs, inputs, size, size) / np.float32(size * inputs**0.5)
        for part in ("weight", "bias", "running_mean"):
            tensors[f"{norm}.{part}"] = normal(outputs) / 4 + np.float32(part == "weight")
        tensors[f"{norm}.running_var"] = np.exp(normal(outputs))
        tensors[f"{norm}.num_batches_tracked"] = np.array(3)

    convolution("conv1", "bn1", 3, config.width, 7)
    before = config.width
    for stage, blocks in enumerate(config.blocks):
        features = config.features >> 3 - stage
        inner = features // 4 if config.bottleneck else features
        for i in range(blocks):
            name = f"layer{stage + 1}.{i}"
            if config.bottleneck:
                sizes = [(before, inner, 1), (inner, inner, 3), (inner, features, 1)]
            else:
                sizes = [(before, inner, 3), (inner, features, 3)]
            for j, size in enumerate(sizes):
                convolution(f"{name}.conv{j + 1}", f"{name}.bn{j + 1}", *size)
            if before != features or (stage and not i):
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", before, features, 1)
            before = features
    return tensors | {"fc.weight": normal(num_classes, before), "fc.bias": normal(num_classes)}


def resnet_features(
    config: ResnetConfig, tensors: Tensors, x: np.ndarray, *, train: bool
) -> tuple[np.ndarray, Tensors]:
    """Features ``[b d]`` in float64, and the running statistics by name after the call."""
    running = {name: np.asarray(tensor, float) for name, tensor in tensors.items() if "running" in name}

    def windows(x: np.ndarray, size: int, stride: int, fill: float) -> np.ndarray:  # [b c h w] to [b c h2 w2 k k]
        pad = (size // 2, size // 2)
        x = np.pad(x, ((0, 0), (0, 0), pad, pad), constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]

    def convolved(x: np.ndarray, name: str, norm: str, stride: int = 1) -> np.ndarray:
        kernel = tensors[f"{name}.weight"].astype(float)
        y = np.einsum("bchwij,ocij->bohw", windows(x, kernel.shape[-1], stride, 0.0), kernel)
        part: Any = lambda name: np.asarray(tensors[f"{norm}.{name}"], float)[:, None, None]
        mean, var = part("running_mean"), part("running_var")
        if train:
            mean, var = y.mean((0, 2, 3), keepdims=True)[0], y.var((0, 2, 3), keepdims=True)[0]
            unbiased = y.var((0, 2, 3), ddof=1)
            running[f"{norm}.running_mean"] = 0.9 * running[f"{norm}.running_mean"] + 0.1 * mean.ravel()
            running[f"{norm}.running_var"] = 0.9 * running[f"{norm}.running_var"] + 0.1 * unbiased
        return (y - mean) / np.sqrt(var + 1e-5) * part("weight") + part("bias")

    x = np.asarray(x, float).transpose(0, 3, 1, 2)
    x = np.maximum(convolved(x, "conv1", "bn1", 2), 0)
    x = windows(x, 3, 2, -np.inf).max((4, 5))
    for stage, blocks in enumerate(config.blocks):
        for i in range(blocks):
            name, stride = f"layer{stage + 1}.{i}", 2 if stage and not i else 1
            strides = (1, stride, 1) if config.bottleneck else (stride, 1)
            inner = x
            for j, s in enumerate(strides):
                inner = np.maximum(inner, 0) if j else inner
                inner = convolved(inner, f"{name}.conv{j + 1}", f"{name}.bn{j + 1}", s)
            if f"{name}.downsample.0.weight" in tensors:
                x = convolved(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = np.maximum(x + inner, 0)
    return x.mean((2, 3)), running
