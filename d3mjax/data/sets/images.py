"""Photographs as arrays: the crops and the normalisation of the published group-robustness pipelines.

Needs Pillow: ``pip install 'd3mjax[images]'``.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel, pixels in 0..1

Image = UInt8[np.ndarray, "h w 3"]


def read_image(path: str | Path, *, content: bytes | None = None) -> Image:
    """One file as RGB, its ``content`` given where it is not a file of its own; ``ValueError`` names what is wrong."""
    try:
        with _pillow().open(path if content is None else io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path}: missing or not an image ({error})") from error


def check_files(paths: Sequence[Path]) -> None:
    """Raises ``ValueError`` with the number of files that do not exist, and the first of them."""
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{missing[0]}: missing, one of {len(missing)} of {len(paths)} images that are")


def resize(image: Image, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bilinear, with antialiasing; the aspect ratio is not kept."""
    pillow = _pillow()
    return np.array(pillow.fromarray(image).resize((width, height), pillow.Resampling.BILINEAR))


def centre(image: Image, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The middle of an image that is at least as large."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def normalise(images: UInt8[np.ndarray, "... 3"]) -> Float32[np.ndarray, "... 3"]:
    """Pixels in 0..1 less ``MEAN``, over ``STD``, as pretrained networks expect: four times the memory of uint8."""
    x = images.astype(np.float32)
    x /= 255
    x -= np.array(MEAN, np.float32)
    x /= np.array(STD, np.float32)
    return x


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'd3mjax[images]'") from error
    return PIL.Image
