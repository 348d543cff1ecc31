"""Small files of CIFAR-10 in its published forms: image i of a class is grey, of brightness ``shade(class, i)``."""

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image

from d3mjax.data.sets import cifar


def shade(y, k):
    return (20 * y + 3 * k + 10) % 256


def picture(y: int, k: int) -> io.BytesIO:
    """The image as a PNG file."""
    pixels = np.full((32, 32, 3), shade(y, k), np.uint8)
    pixels[0, 0, 0] = 255  # red of the first pixel
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def labels(per_class: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(10), per_class))


def ranks(y: np.ndarray) -> np.ndarray:
    """Position of each image among those of its class."""
    return np.array([(y[:i] == y[i]).sum() for i in range(len(y))])


_Pickler: Any = pickle._Pickler  # that of C has no table of types


class _Python2(_Pickler):
    """Writes as Python 2 did, with which the published batches were made: bytes are its strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(_Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_batches(source: Path, *, train: int, test: int) -> None:
    """``cifar-10-batches-py`` with so many images of each class in train and in test."""
    directory = source / "cifar-10-batches-py"
    directory.mkdir(parents=True)
    y = labels(train, 0)
    parts = np.array_split(np.arange(len(y)), 5)
    files = [(f"data_batch_{i}", y[part], ranks(y)[part]) for i, part in enumerate(parts, start=1)]
    y = labels(test, 1)
    for name, of_file, rank in (*files, ("test_batch", y, ranks(y))):
        data = np.repeat(shade(of_file, rank).astype(np.uint8)[:, None], 3072, axis=1)
        data[:, 0] = 255
        content = {b"batch_label": b"", b"labels": of_file.tolist(), b"data": data}
        file = io.BytesIO()
        _Python2(file, 2).dump(content)
        raw = file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        (directory / name).write_bytes(raw)


def write_images(source: Path, *, train: int, test: int) -> None:
    """Folders of image files, without loss."""
    for name, count in (("train", train), ("test", test)):
        for y, class_name in enumerate(cifar.NAMES):
            (source / name / class_name).mkdir(parents=True)
            for k in range(count):
                (source / name / class_name / f"{k:04}.png").write_bytes(picture(y, k).read())


def pack(source: Path, archive: Path) -> None:
    """A folder of image files as one ``.tar.gz``."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as file:
        for name in ("train", "test"):
            file.add(source / name, name)
