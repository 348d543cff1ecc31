"""Images with labels in the file format of MNIST and its kin, and pools of them that tasks are drawn from."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NUM_TRAIN, NUM_TEST = 60_000, 10_000


class Pool(NamedTuple):
    """Official images in official order; ids 0..59999 are the train files, 60000..69999 the test files."""

    images: UInt8[np.ndarray, "n h w 1"]
    labels: Int32[np.ndarray, " n"]
    id: Int32[np.ndarray, " n"]


def rows(pool: Pool, index: np.ndarray) -> Pool:
    """The images at ``index``, positions or a mask, ids kept."""
    return Pool(*(a[index] for a in pool))


def read_directory(directory: Path, *, of: str, sha256: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The four arrays of a directory by name, from files that are compressed or not.

    ``of`` is whose files they are, ``sha256`` the checksums of their contents: gzip headers differ between sources.
    Raises ``ValueError`` that names a file that is missing, damaged, or not the official one.
    """
    return {name: read_file(_locate(directory, name, of), name, of=of, sha256=sha256) for name in NAMES}


def read_file(path: Path, name: str, *, of: str, sha256: Mapping[str, str] | None = None) -> UInt8[np.ndarray, "..."]:
    """The array of one idx file; arguments and errors as of `read_directory`."""
    try:
        raw = Path(path).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: missing or damaged, expected {of}'s {name}") from error
    if sha256 and hashlib.sha256(raw).hexdigest() != sha256[name]:
        raise ValueError(f"{path}: checksum differs, expected {of}'s official {name}")
    ndim = raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * ndim
    shape = np.frombuffer(raw[4:start], ">u4").tolist() if len(raw) >= start else []
    if raw[:3] != b"\x00\x00\x08" or len(shape) != ndim or len(raw) != start + math.prod(shape):
        raise ValueError(f"{path}: found {len(raw)} bytes that begin {raw[:4].hex()}, expected an idx file of uint8")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def as_pool(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, size: int) -> Pool:
    """Images ``[n 28 28]`` and labels of train and test as one pool, at ``size`` 28, or 14 by `halved`."""
    images, labels = (np.concatenate(both) for both in zip(train, test, strict=True))
    ids = np.concatenate([np.arange(len(train[1])), NUM_TRAIN + np.arange(len(test[1]))])
    pool = Pool(images.reshape(*images.shape[:3], 1), labels.astype(np.int32), ids.astype(np.int32))
    return pool if size == 28 else pool._replace(images=halved(pool.images))


def halved(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h/2 w/2 c"]:
    """Mean over 2 x 2 blocks, rounded half up: whole numbers throughout, so exact everywhere."""
    n, h, w, channels = images.shape
    blocks = images.reshape(n, h // 2, 2, w // 2, 2, channels).astype(np.uint16)
    return ((blocks.sum((2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)


def check_size(size: int) -> None:
    """Raises ``ValueError`` unless images are asked for at 14 or 28 pixels."""
    if size not in (14, 28):
        raise ValueError(f"size: found {size}, expected 14 or 28")


def _locate(directory: Path, name: str, of: str) -> Path:
    paths = [directory / name, directory / f"{name}.gz"]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(f"source_dir: found neither {paths[0]} nor {paths[1].name}, expected {of}'s idx files")
