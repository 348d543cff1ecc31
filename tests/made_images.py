"""Small files in the layout of published photographs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

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
