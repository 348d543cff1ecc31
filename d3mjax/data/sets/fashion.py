"""Where Fashion-MNIST comes from. Every source is held to the same checksums, so results never depend on it.

In this order: the directory the user names; the pullovers and coats at 14 x 14 that ship with the package, where
those are all that is asked for; Debian's package ``dataset-fashion-mnist``, if installed; a download through TFDS.
"""

import hashlib
import io
import lzma
import os
import urllib.request
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from d3mjax.data.sets import idx

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(__file__).parent / "shipped" / "fashion_pullover_coat_14.npz.xz"
NUM_TRAIN, NUM_TEST = 60_000, 10_000
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

# SHA-256 of the idx files, decompressed: gzip headers differ between sources, contents must not.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_SHIPPED_SHA256 = "a01f59c4a26fb5cce5d636e31d2ac85759c49a83c2dff8137d4e22e33cb71ddb"


Download = Callable[[dict[str, str]], Mapping[str, str | os.PathLike]]  # {name: address} -> {name: path}


class Pool(NamedTuple):
    """Official images in official order; ids 0..59999 are the train files, 60000..69999 the test files."""

    images: UInt8[np.ndarray, "n h w 1"]
    labels: Int32[np.ndarray, " n"]
    id: Int32[np.ndarray, " n"]


def read(
    classes: Collection[int],
    size: int,
    *,
    source_dir: str | Path | None,
    download: Download,
) -> Pool:
    """All official images of the classes at 28 x 28, or at 14 x 14 by ``pool``.

    ``download`` maps names and addresses to local files; it is called only when no source is at hand. Raises
    ``ValueError`` naming the file that is missing, damaged or not the official one.
    """
    if size not in (14, 28):
        raise ValueError(f"size: found {size}, expected 14 or 28")
    if source_dir is None and size == 14 and set(classes) <= {2, 4}:
        found = read_shipped()
    else:
        if source_dir is None and not DEBIAN.is_dir():
            paths = _download(download)
        else:
            directory = DEBIAN if source_dir is None else Path(source_dir)
            paths = {name: idx.locate(directory, name, of="Fashion-MNIST") for name in idx.NAMES}
        train_x, train_y, test_x, test_y = (read_idx(paths[name], name) for name in idx.NAMES)
        images = np.concatenate([train_x, test_x])[..., None]
        labels = np.concatenate([train_y, test_y]).astype(np.int32)
        found = Pool(images, labels, np.arange(len(labels), dtype=np.int32))
    keep = np.isin(found.labels, list(classes))
    found = Pool(*(a[keep] for a in found))
    return found if found.images.shape[1] == size else found._replace(images=pool(found.images))


def pool(images: UInt8[np.ndarray, "n h w 1"]) -> UInt8[np.ndarray, "n h/2 w/2 1"]:
    """Mean over 2 x 2 blocks, rounded half up: whole numbers throughout, so exact everywhere."""
    n, h, w, _ = images.shape
    blocks = images.reshape(n, h // 2, 2, w // 2, 2, 1).astype(np.uint16)
    return ((blocks.sum((2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)


def read_idx(path: str | os.PathLike, name: str) -> UInt8[np.ndarray, "..."]:
    """One official idx file, compressed or not; raises unless its content is the official one."""
    raw = idx.decompressed(path, name, of="Fashion-MNIST")
    if hashlib.sha256(raw).hexdigest() != _SHA256[name]:
        raise ValueError(f"{path}: checksum differs, expected Fashion-MNIST's official {name}")
    return idx.parse(raw, path)


def read_shipped() -> Pool:
    """The 14,000 pullovers and coats at 14 x 14 in the package."""
    try:
        raw = SHIPPED.read_bytes()
    except OSError as error:
        raise ValueError(f"{SHIPPED}: missing. Install d3mjax anew, or give source_dir.") from error
    if hashlib.sha256(raw).hexdigest() != _SHIPPED_SHA256:
        raise ValueError(f"{SHIPPED}: checksum differs. Install d3mjax anew, or give source_dir.")
    with np.load(io.BytesIO(lzma.decompress(raw))) as file:
        # Stored as differences between rows, pixel by pixel: that is what compresses best.
        images = np.cumsum(file["row_differences"], axis=0, dtype=np.uint8).transpose(2, 0, 1)
        return Pool(np.ascontiguousarray(images)[..., None], file["labels"].astype(np.int32), file["id"])


def write_shipped(path: str | Path, found: Pool) -> str:
    """Writes what ``read_shipped`` reads, and returns the checksum of the file."""
    rows = found.images[..., 0].transpose(1, 2, 0)
    differences = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # uint8 wraps around, and back
    file = io.BytesIO()
    np.savez(file, row_differences=differences, labels=found.labels.astype(np.uint8), id=found.id)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    raw = lzma.compress(file.getvalue(), filters=filters)
    Path(path).write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def _download(download: Download) -> Mapping[str, str | os.PathLike]:
    try:
        # TFDS retries for minutes where there is no network: ask first.
        request = urllib.request.Request(f"{URL}train-labels-idx1-ubyte.gz", method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
        return download({name: f"{URL}{name}.gz" for name in idx.NAMES})
    except Exception as error:
        raise ValueError(
            f"Fashion-MNIST could not be downloaded from {URL} ({type(error).__name__}). Give source_dir, a directory "
            "with its four idx files; or install Debian's package dataset-fashion-mnist; or ask for classes (2,) and "
            "(4,) at size 14, which ship with d3mjax."
        ) from error
