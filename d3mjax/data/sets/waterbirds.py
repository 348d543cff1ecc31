"""Waterbirds: land or water bird, on a land or water background that agrees for 95 % of the training images.

The files are the user's: ``waterbird_complete95_forest2water2`` with its ``metadata.csv`` and 11,788 images, published
by Sagawa et al. (2020), arXiv:1911.08731, at https://nlp.stanford.edu/data/dro/.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from d3mjax.data import splits
from d3mjax.data.sets import builders, images
from d3mjax.types import Data, Split

GROUP_NAMES = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
"""``group = 2 * y + place`` with y = waterbird and place 0 = land, 1 = water."""

COUNTS = {"train": (3498, 184, 56, 1057), "val": (467, 466, 133, 133), "test": (2255, 2255, 642, 642)}
"""Published group sizes: as public loaders assert them of the released metadata.csv, and analysis code built on
kohpangwei/group_DRO lists them."""


def load_waterbirds(
    seed: int = 0,
    *,
    source_dir: str | Path,
    size: int = 224,
    normalise: bool = True,
    counts: splits.Counts | None = COUNTS,
    data_dir: str | Path | None = None,
) -> Data:
    """Published train and test; target and selection are random halves of the published validation split.

    x is [n, size, size, 3]: resized to 256 / 224 of ``size`` both ways, the middle cut out, then float32 as in
    ``images.normalise`` (2.9 GB for training at 224), or uint8. Groups are ``GROUP_NAMES``; ids are row numbers in
    metadata.csv. ``data_dir`` is where TFDS keeps the decoded images (None: its default). Raises ``ValueError`` for a
    file that is missing or damaged, or groups that are not of the sizes ``counts`` (None: any).
    """
    source = Path(source_dir)
    try:
        raw = (source / "metadata.csv").read_bytes()
        config = builders.CachedConfig(
            name=f"waterbirds_{size}_{hashlib.sha256(raw).hexdigest()[:16]}",
            read=lambda: _read(source, raw.decode(), size),
            features={
                "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                "y": np.int32,
                "group": np.int32,
                "id": np.int32,
            },
        )
    except OSError as error:
        raise ValueError(f"source_dir: found no {source / 'metadata.csv'}, expected Waterbirds' directory") from error
    parts = builders.load(config, data_dir)
    pixels = images.normalise if normalise else np.asarray
    return splits.from_published(
        {name: Split(pixels(part["image"]), part["y"], part["group"], part["id"]) for name, part in parts.items()},
        seed,
        counts=counts,
    )


def _read(source: Path, metadata: str, size: int) -> dict[str, builders.Arrays]:
    larger = int(size * 256 / 224)
    rows = list(csv.DictReader(metadata.splitlines()))
    try:
        split, y, place = (np.array([int(row[key]) for row in rows], np.int32) for key in ("split", "y", "place"))
        paths = [source / row["img_filename"] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source / 'metadata.csv'}: damaged ({error!r}), expected that of Waterbirds") from error
    images.check_files(paths)
    parts = {}
    for code, name in enumerate(COUNTS):
        ids = np.flatnonzero(split == code).astype(np.int32)
        pixels = np.empty((len(ids), size, size, 3), np.uint8)
        for i, row in enumerate(ids):
            pixels[i] = images.centre(images.resize(images.read_image(paths[row]), larger, larger), size, size)
        parts[name] = {"image": pixels, "y": y[ids], "group": 2 * y[ids] + place[ids], "id": ids}
    return parts
