"""Fashion-MNIST, from one of several sources that all have the same checksums, so results never depend on the source.

In this order: the directory the user names; the pullovers and coats at 14 x 14 that ship with the package, where
those are all that is asked for; Debian's package ``dataset-fashion-mnist``, if installed; a download, which is kept.
"""

import hashlib
import io
import lzma
import os
import urllib.request
from collections.abc import Collection
from pathlib import Path

import numpy as np

from d3mjax.data.sets import idx
from d3mjax.data.sets.idx import Pool

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CACHE = Path.home() / ".cache" / "d3mjax" / "fashion-mnist"  # of downloads
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(__file__).parent / "shipped" / "fashion_pullover_coat_14.npz.xz"
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

# SHA-256 of the idx files, decompressed.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_SHIPPED_SHA256 = "a01f59c4a26fb5cce5d636e31d2ac85759c49a83c2dff8137d4e22e33cb71ddb"


def read(classes: Collection[int], size: int, *, source_dir: str | Path | None = None) -> Pool:
    """All official images of the classes at 28 x 28, or at 14 x 14 by `idx.halved`.

    ``source_dir``: a directory with the four idx files. Raises ``ValueError`` naming the file that is missing, damaged
    or not the official one.
    """
    idx.check_size(size)
    if source_dir is None and size == 14 and set(classes) <= {2, 4}:
        pool = read_shipped()
    else:
        directory = Path(source_dir) if source_dir else DEBIAN if DEBIAN.is_dir() else _downloaded()
        train_x, train_y, test_x, test_y = idx.read_directory(directory, of="Fashion-MNIST", sha256=_SHA256).values()
        pool = idx.as_pool((train_x, train_y), (test_x, test_y), size=size)
    return idx.rows(pool, np.isin(pool.labels, list(classes)))


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


def write_shipped(path: str | Path, pool: Pool) -> str:
    """Write what `read_shipped` reads; returns the checksum of the file."""
    rows = pool.images[..., 0].transpose(1, 2, 0)
    differences = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # uint8 wraps around, and back
    file = io.BytesIO()
    np.savez(file, row_differences=differences, labels=pool.labels.astype(np.uint8), id=pool.id)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    raw = lzma.compress(file.getvalue(), filters=filters)
    Path(path).write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def _downloaded() -> Path:
    """The directory of the four files, downloaded where they are not there yet."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in (f"{name}.gz" for name in idx.NAMES):
            if not (CACHE / name).is_file():
                with urllib.request.urlopen(f"{URL}{name}", timeout=30) as response:
                    content = response.read()
                (CACHE / f".{name}.{os.getpid()}").write_bytes(content)
                os.replace(CACHE / f".{name}.{os.getpid()}", CACHE / name)
    except OSError as error:
        raise ValueError(
            f"Fashion-MNIST could not be downloaded from {URL} ({type(error).__name__}). Give source_dir, a directory "
            "with its four idx files; or install Debian's package dataset-fashion-mnist; or ask for classes (2,) and "
            "(4,) at size 14, which ship with d3mjax."
        ) from error
    return CACHE
