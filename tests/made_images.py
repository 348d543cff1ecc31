"""Small files in the layout of published photographs and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors.numpy

from d3mjax.networks.resnets import ResnetConfig

COUNTS = {"train": (8, 4, 4, 8), "val": (8, 8, 8, 8), "test": (3, 3, 3, 3)}
"""Images of each group, ``2 y + attribute``, of the made data sets."""


def _groups(counts: Mapping[str, Sequence[int]]) -> list[tuple[int, int, int]]:
    """Split, label and attribute of every image."""
    codes = [(code, g) for code, name in enumerate(counts) for g, n in enumerate(counts[name]) for _ in range(n)]
    return [(code, *divmod(group, 2)) for code, group in codes]


def _write(path: Path, row: int, y: int, attribute: int, shape: tuple[int, int]) -> None:
    """A noisy image whose left half is bright by label and whose right half is red by attribute."""
    pixels = np.random.default_rng(row).integers(0, 60, (*shape, 3))
    pixels[:, : shape[1] // 2] += 120 * y
    pixels[:, shape[1] // 2 :, 0] += 180 * attribute
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)


def waterbirds(directory: Path, counts: Mapping[str, Sequence[int]] = COUNTS) -> None:
    """``metadata.csv`` and images of 80 x 90 pixels."""
    (directory / "001.Albatross").mkdir(parents=True)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for row, (code, y, place) in enumerate(_groups(counts)):
        name = f"001.Albatross/{row}.png"
        _write(directory / name, row, y, place, (80, 90))
        lines.append(f"{row + 1},{name},{y},{code},{place},/f/forest/1.jpg")
    (directory / "metadata.csv").write_text("\n".join(lines) + "\n")


def celeba(directory: Path, counts: Mapping[str, Sequence[int]] = COUNTS) -> None:
    """The two lists and images of 218 x 178 pixels; blond and young are the same people."""
    (directory / "img_align_celeba").mkdir(parents=True)
    rows = _groups(counts)
    attributes, partition = [str(len(rows)), "Blond_Hair Male Young"], []
    for row, (code, y, male) in enumerate(rows):
        name = f"{row + 1:06}.png"
        _write(directory / "img_align_celeba" / name, row, y, male, (218, 178))
        attributes.append(f"{name} {2 * y - 1:2} {2 * male - 1:2} {2 * y - 1:2}")
        partition.append(f"{name} {code}")
    (directory / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (directory / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


def resnet_weights(path: Path, config: ResnetConfig) -> None:
    """Random tensors under the names of torchvision, for a network with the head of ImageNet."""
    rng, tensors = np.random.default_rng(0), {}

    def convolution(name: str, norm: str, inputs: int, outputs: int, size: int) -> None:
        scale = (2 / (inputs * size**2)) ** 0.5
        tensors[f"{name}.weight"] = scale * rng.normal(size=(outputs, inputs, size, size))
        for part in ("weight", "running_var"):
            tensors[f"{norm}.{part}"] = rng.uniform(0.5, 1.5, outputs)
        for part in ("bias", "running_mean"):
            tensors[f"{norm}.{part}"] = 0.1 * rng.normal(size=outputs)

    convolution("conv1", "bn1", 3, 64, 7)
    inputs = 64
    for stage, blocks in enumerate(config.blocks):
        outputs = config.features >> 3 - stage
        width = outputs // 4 if config.bottleneck else outputs
        sizes = [(width, 1), (width, 3), (outputs, 1)] if config.bottleneck else [(outputs, 3), (outputs, 3)]
        for block in range(blocks):
            name, before = f"layer{stage + 1}.{block}", inputs
            for i, (channels, size) in enumerate(sizes):
                convolution(f"{name}.conv{i + 1}", f"{name}.bn{i + 1}", before, channels, size)
                before = channels
            if inputs != outputs:
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", inputs, outputs, 1)
            inputs = outputs
    tensors |= {"fc.weight": rng.normal(size=(1000, inputs)), "fc.bias": np.zeros(1000)}
    safetensors.numpy.save_file({name: a.astype(np.float32) for name, a in tensors.items()}, path)
