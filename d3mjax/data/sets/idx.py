"""The file format of MNIST and its kin: arrays of unsigned bytes, compressed or not."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def locate(directory: Path, name: str, *, of: str) -> Path:
    """The file of that name, or its ``.gz``. Raises ``ValueError`` where there is neither; ``of``: whose file."""
    paths = [directory / name, directory / f"{name}.gz"]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(f"source_dir: found neither {paths[0]} nor {paths[1].name}, expected {of}'s idx files")


def decompressed(path: str | os.PathLike, name: str, *, of: str) -> bytes:
    """All bytes of one file. Raises ``ValueError`` that names it where it is missing or damaged."""
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: missing or damaged, expected {of}'s {name}") from error


def parse(raw: bytes, path: str | os.PathLike) -> UInt8[np.ndarray, "..."]:
    """The array that the bytes hold. Raises ``ValueError`` that names the path where they hold none."""
    ndim = raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * ndim
    shape = np.frombuffer(raw[4:start], ">u4").tolist() if len(raw) >= start else []
    if raw[:3] != b"\x00\x00\x08" or len(shape) != ndim or len(raw) != start + math.prod(shape):
        raise ValueError(f"{path}: found {len(raw)} bytes that begin {raw[:4].hex()}, expected an idx file of uint8")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
