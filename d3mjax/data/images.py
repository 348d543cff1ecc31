"""Folders of the user's images as one array: RGB, of one size, in [0, 1].

names = frame[images.name_column(frame, "photos")]
x = images.read("photos", names, size=64)  # [n, 64, 64, 3]
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

LARGEST = 2 << 30  # bytes of the array in float32 beyond which it is float16
PARTS = {"train": 0, "val": 1, "test": 2}  # the column `split` of Waterbirds, CelebA and WILDS
_THREADS = 8


def read(directory: str | Path, names: Sequence[str], *, size: int = 64) -> Float[np.ndarray, "n h w 3"]:
    """Pixels in [0, 1] of the images ``directory / name``, each resized to ``size`` x ``size``.

    float32, or float16 where that would take more than ``LARGEST`` bytes. The rotation that cameras note is undone;
    transparent pixels become white; grey, indexed and 16-bit images become RGB. Needs Pillow.

    Raises:
      ValueError: naming how many images are missing or damaged, and the first of them with the reason.
    """
    paths = check_files(directory, names)
    dtype = np.float32 if 12 * size**2 * len(paths) <= LARGEST else np.float16
    x, faults = np.empty((len(paths), size, size, 3), dtype), {}

    def fill(i: int) -> None:
        try:
            x[i] = _pixels(paths[i], size)
        except Exception as error:  # a damaged image raises nearly anything
            faults[paths[i]] = (str(error).splitlines() or [type(error).__name__])[0]

    with ThreadPoolExecutor(_THREADS) as threads:  # Pillow decodes without the lock of Python
        for _ in threads.map(fill, range(len(paths))):
            pass
    _check_readable({path: faults[path] for path in paths if path in faults}, directory, len(paths))
    return x


def check_files(directory: str | Path, names: Sequence[str]) -> list[str]:
    """Paths ``directory / name``, each of a file that is there. Raises as `read`."""
    paths = [os.path.join(directory, str(name)) for name in names]
    _check_readable({p: "no such file" for p in dict.fromkeys(paths) if not os.path.isfile(p)}, directory, len(paths))
    return paths


def name_column(frame: pd.DataFrame, directory: str | Path) -> str:
    """The first column of text that names files in ``directory``, judged by its first 20 rows.

    Raises:
      ValueError: naming the columns, if there is none.
    """
    for column in map(str, frame):
        names = frame[column].head(20).dropna().tolist()
        if names and all(isinstance(n, str) and os.path.isfile(os.path.join(directory, n)) for n in names):
            return column
    raise ValueError(f"--images: found no column that names files in {directory}, among {list(frame)}")


def part(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one part, ``train``, ``val`` or ``test``, of a ``metadata.csv`` in the layout of Waterbirds or WILDS.

    Their column ``split`` holds 0, 1, 2, or the names.

    Raises:
      ValueError: the column ``split`` is absent, or that part is empty.
    """
    if "split" not in frame:
        raise ValueError(f"found columns {list(frame)}, expected 'split' among them, with 0 (train), 1 (val), 2 (test)")
    rows = frame.loc[frame["split"].astype(str).str.strip().isin([name, str(PARTS[name])]).astype(bool)]
    if not len(rows):
        values = sorted(set(frame["split"].astype(str)))[:5]
        raise ValueError(f"found no row of part {name!r}: 'split' holds {values}, expected {PARTS[name]} or {name!r}")
    return rows.reset_index(drop=True)


def _check_readable(faults: dict[str, str], directory: str | Path, count: int) -> None:
    if faults:
        listed = ", ".join(
            f"{os.path.relpath(path, directory)} ({reason})" for path, reason in list(faults.items())[:3]
        )
        raise ValueError(f"{directory}: found {len(faults)} of {count} images missing or damaged: {listed}")


def _pixels(path: str, size: int) -> Any:
    """One image as [size, size, 3] in [0, 1]."""
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(path) as image:
        image.draft("RGB", (size, size))  # JPEG is decoded at a fraction of its size where that suffices
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = PIL.Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        image = image.convert("RGB").resize((size, size), PIL.Image.Resampling.BILINEAR, reducing_gap=2.0)
        return np.asarray(image, np.float32) / 255
