"""Where MNIST comes from: a directory with its four idx files, or TFDS's ``mnist``."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from d3mjax.data import files as readers
from d3mjax.data import splits
from d3mjax.data.sets import fashion, idx

COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
"""Images of each digit. Fashion-MNIST's files have the same names, and 6000 and 1000 of each class."""


def read(
    size: int,
    *,
    source_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    counts: splits.Counts | None = COUNTS,
) -> fashion.Pool:
    """All images at 28 x 28, or at 14 x 14 by ``fashion.pool``, from ``source_dir`` or else TFDS.

    Ids are row numbers, 0.. in train and 60000.. in test. TFDS has an order of its own, so there the same id, and the
    same seed, is another image. ``data_dir`` is where TFDS keeps ``mnist`` (None: its default); it must be on disk as
    ``array_record`` or be downloadable. Raises ``ValueError`` for a source that is missing or damaged, or digits that
    are not as many as ``counts`` says (None: any).
    """
    if size not in (14, 28):
        raise ValueError(f"size: found {size}, expected 14 or 28")
    if source_dir is None:
        parts = {name: _from_tfds(name, data_dir) for name in ("train", "test")}
    else:
        train_x, train_y, test_x, test_y = (_from_idx(Path(source_dir), name) for name in idx.NAMES)
        parts = {"train": (train_x[..., None], train_y), "test": (test_x[..., None], test_y)}
    for name, (images, labels) in parts.items():
        if images.shape != (len(labels), 28, 28, 1) or labels.ndim != 1 or labels.max(initial=0) > 9:
            found = f"images {images.shape[:-1]}, labels {labels.shape} up to {labels.max(initial=0)}"
            raise ValueError(f"{name}: found {found}, expected images of 28 x 28 with a label in 0..9 each")
        if counts is not None:
            splits.check_counts(labels, counts[name], name=f"{name}.label")
    images, labels = (np.concatenate(both) for both in zip(*parts.values(), strict=True))
    ids = [np.arange(len(parts["train"][1])), fashion.NUM_TRAIN + np.arange(len(parts["test"][1]))]
    found = fashion.Pool(images, labels.astype(np.int32), np.concatenate(ids).astype(np.int32))
    return found if size == 28 else found._replace(images=fashion.pool(found.images))


def _from_idx(directory: Path, name: str) -> UInt8[np.ndarray, "..."]:
    path = idx.locate(directory, name, of="MNIST")
    return idx.parse(idx.decompressed(path, name, of="MNIST"), path)


def _from_tfds(split: str, data_dir: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    rows = readers.read_tfds("mnist", split=split, data_dir=data_dir)
    return np.stack([row["image"] for row in rows]), np.array([row["label"] for row in rows])
