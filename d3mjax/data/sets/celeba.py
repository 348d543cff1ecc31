"""CelebA with sex as the spurious attribute: blond or not (CelebA-Blond), young or not (CelebA-Age).

Read through TFDS's ``celeb_a``, which must be on disk as ``array_record`` or be downloadable; works without TensorFlow.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from d3mjax.data import pairs, splits
from d3mjax.data.sets import builders, images
from d3mjax.types import Data, Split

BLOND_GROUP_NAMES = ("not blond, female", "not blond, male", "blond, female", "blond, male")
AGE_GROUP_NAMES = ("old, female", "old, male", "young, female", "young, male")

BLOND_COUNTS = {
    "train": (71_629, 66_874, 22_880, 1_387),
    "val": (8_535, 8_276, 2_874, 182),
    "test": (9_767, 7_535, 2_480, 180),
}
"""Published group sizes (Sagawa et al. 2020, arXiv:1911.08731; in analysis code built on kohpangwei/group_DRO)."""

SEX_COUNTS = {name: (a + c, b + d) for name, (a, b, c, d) in BLOND_COUNTS.items()}
"""Women and men in each split. The published group sizes of CelebA-Age could not be found: these are asserted there."""

_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # our names, and those of TFDS


def load_celeba_blond(
    seed: int = 0,
    *,
    size: int = 64,
    normalise: bool = True,
    counts: splits.Counts | None = BLOND_COUNTS,
    data_dir: str | Path | None = None,
) -> Data:
    """Blond hair, groups ``BLOND_GROUP_NAMES``: ``group = 2 * y + male``.

    Published train and test; target and selection are random halves of the published validation split. x is
    [n, size, size, 3]: the middle 178 x 178 resized, then float32 as in ``images.normalise`` (8.0 GB for training at
    64, 98 GB at 224), or uint8. Ids are row numbers in TFDS's own order, train, validation, test. ``data_dir`` is where
    TFDS keeps ``celeb_a`` and the resized images (None: its default). Raises ``ValueError`` where ``celeb_a`` cannot be
    had, or its groups are not of the sizes ``counts`` (None: any).
    """
    return splits.from_published(_parts(size, normalise, data_dir, "blond"), seed, counts=counts)


def load_celeba_age(
    seed: int = 0,
    *,
    size: int = 64,
    normalise: bool = True,
    sex_counts: splits.Counts | None = SEX_COUNTS,
    data_dir: str | Path | None = None,
) -> Data:
    """As ``load_celeba_blond`` for youth, groups ``AGE_GROUP_NAMES``; only numbers of women and men are asserted."""
    parts = _parts(size, normalise, data_dir, "young")
    for name, expected in (sex_counts or {}).items():
        splits.check_counts(parts[name].group % 2, expected, name=f"{name}.male")
    return splits.from_published(parts, seed, counts=None)


def load_blond_pairs(
    *,
    num_reference: int = 100,
    size: int = 64,
    normalise: bool = True,
    counts: splits.Counts | None = BLOND_COUNTS,
    data_dir: str | Path | None = None,
) -> pairs.PairSets:
    """The i-th blond woman (``x``, aligned) with the i-th blond man: unrelated people, see `pairs.group_paired`.

    Reference is the first 100 pairs of the published validation split (Chen et al. 2023), selection the rest of it,
    here 82, and report all 180 of the test split. The target and selection splits of ``load_celeba_blond`` hold the
    same validation images. x, ``data_dir`` and errors as there; ``ValueError`` where no pair is left to select on.
    """
    parts = _parts(size, normalise, data_dir, "blond", names=("val", "test"))
    for name in parts:
        if counts is not None:
            splits.check_counts(parts[name].group, counts[name], name=f"{name}.group")
    val, test = (pairs.group_paired(parts[name], num_attributes=2, label=1) for name in ("val", "test"))
    if not 0 < num_reference < len(val.y):
        raise ValueError(f"num_reference: found {num_reference}, expected 1..{len(val.y) - 1} of {len(val.y)} pairs")
    order = np.arange(len(val.y))
    return pairs.PairSets(splits.take(val, order[:num_reference]), splits.take(val, order[num_reference:]), test)


def _parts(
    size: int,
    normalise: bool,
    data_dir: str | Path | None,
    label: str,
    names: Collection[str] = tuple(_SPLITS),
) -> dict[str, Split]:
    config = builders.CachedConfig(
        name=f"celeba_{size}",
        read=lambda: _read(size, data_dir),
        features={
            "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
            "blond": np.int32,
            "young": np.int32,
            "male": np.int32,
            "id": np.int32,
        },
    )
    pixels = images.normalise if normalise else np.asarray
    return {
        name: Split(pixels(part["image"]), part[label], 2 * part[label] + part["male"], part["id"])
        for name, part in builders.load(config, data_dir).items()
        if name in names
    }


def _read(size: int, data_dir: str | Path | None) -> dict[str, builders.Arrays]:
    try:
        builder: Any = tfds.builder("celeb_a", data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads fail in many ways
        raise ValueError(
            f"data_dir: found no celeb_a in {data_dir or 'the default of TFDS'}, and it could not be made ({error}). "
            "Prepare it elsewhere with download_and_prepare(file_format='array_record') and give its data_dir."
        ) from error
    parts, first = {}, 0
    for name, theirs in _SPLITS.items():
        source = builder.as_data_source(theirs)
        n = len(source)
        part = {"image": np.empty((n, size, size, 3), np.uint8)}
        part |= {key: np.empty(n, np.int32) for key in ("blond", "young", "male")}
        for i, row in enumerate(_stream(source)):
            part["image"][i] = images.resize(images.centre(row["image"], 178, 178), size, size)
            for key, attribute in {"blond": "Blond_Hair", "young": "Young", "male": "Male"}.items():
                part[key][i] = row["attributes"][attribute]
        parts[name] = part | {"id": np.arange(first, first + n, dtype=np.int32)}
        first += n
    return parts


def _stream(source: Any, block: int = 1000) -> Iterator[dict[str, Any]]:
    for start in range(0, len(source), block):  # all at once would be 19 GB of pixels
        yield from source.__getitems__(range(start, min(start + block, len(source))))
