"""CelebA with sex as the spurious attribute: blond or not (CelebA-Blond), young or not (CelebA-Age).

From the published folder (``img_align_celeba``, ``list_attr_celeba.txt``, ``list_eval_partition.txt``), that of Kaggle
(``.csv`` for ``.txt``), or through TFDS's ``celeb_a``, which must be on disk as ``array_record`` or be downloadable.
"""

import csv
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

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

_ATTRIBUTES = {"blond": "Blond_Hair", "young": "Young", "male": "Male"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # our names, and those of TFDS


def load_celeba_blond(
    seed: int = 0,
    *,
    size: int = 64,
    normalise: bool = True,
    counts: splits.Counts | None = BLOND_COUNTS,
    source_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Data:
    """Blond hair, groups ``BLOND_GROUP_NAMES``: ``group = 2 * y + male``.

    Published train and test; target and selection are random halves of the published validation split. x is
    [n, size, size, 3]: the middle 178 x 178 resized, then float32 as in ``images.normalise`` (8.0 GB for training at
    64, 98 GB at 224), or uint8. ``source_dir`` is the published folder, None for TFDS's ``celeb_a``; ids are the row
    numbers of its lists, or those in TFDS's own order, train, validation, test. ``data_dir`` is where TFDS keeps
    ``celeb_a`` and the resized images (None: its default). Raises ``ValueError`` where ``celeb_a`` cannot be had, for
    files that are missing or damaged, and for groups that are not of the sizes ``counts`` (None: any).
    """
    parts = _parts(size, normalise, "blond", source_dir=source_dir, data_dir=data_dir)
    return splits.from_published(parts, seed, counts=counts)


def load_celeba_age(
    seed: int = 0,
    *,
    size: int = 64,
    normalise: bool = True,
    sex_counts: splits.Counts | None = SEX_COUNTS,
    source_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Data:
    """As ``load_celeba_blond`` for youth, groups ``AGE_GROUP_NAMES``; only numbers of women and men are asserted."""
    parts = _parts(size, normalise, "young", source_dir=source_dir, data_dir=data_dir)
    for name, expected in (sex_counts or {}).items():
        splits.check_counts(parts[name].group % 2, expected, name=f"{name}.male")
    return splits.from_published(parts, seed, counts=None)


def load_blond_pairs(
    *,
    num_reference: int = 100,
    size: int = 64,
    normalise: bool = True,
    counts: splits.Counts | None = BLOND_COUNTS,
    source_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> pairs.PairSets:
    """The i-th blond woman (``x``, aligned) with the i-th blond man: unrelated people, see `pairs.group_paired`.

    Reference is the first 100 pairs of the published validation split (Chen et al. 2023), selection the rest of it,
    here 82, and report all 180 of the test split. The target and selection splits of ``load_celeba_blond`` hold the
    same validation images. x, sources and errors as there; ``ValueError`` where no pair is left to select on.
    """
    parts = _parts(size, normalise, "blond", source_dir=source_dir, data_dir=data_dir, names=("val", "test"))
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
    label: str,
    *,
    source_dir: str | Path | None,
    data_dir: str | Path | None,
    names: Collection[str] = tuple(_SPLITS),
) -> dict[str, Split]:
    rows = None if source_dir is None else _read_rows(Path(source_dir))
    config = builders.CachedConfig(
        name=f"celeba_{size}" + (f"_{rows.digest}" if rows else ""),
        read=lambda: _from_folder(rows, size) if rows else _from_tfds(size, data_dir),
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


class _Rows(NamedTuple):
    """The two lists of the published folder, joined by the names of images."""

    paths: Sequence[Path]
    attributes: Mapping[str, np.ndarray]  # Int32[n], 0 or 1
    split: np.ndarray  # Int[n], 0 train, 1 validation, 2 test
    digest: str


def _read_rows(source: Path) -> _Rows:
    attributes, partition = (_read_list(source, name) for name in ("list_attr_celeba", "list_eval_partition"))
    try:
        split = {row["image_id"]: int(row["partition"]) for row in partition}
        names = [row["image_id"] for row in attributes]
        columns = {
            key: np.array([int(row[name]) > 0 for row in attributes], np.int32) for key, name in _ATTRIBUTES.items()
        }
        codes = np.array([split[name] for name in names])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: the lists are damaged ({error!r}), expected those of CelebA") from error
    nested = source / "img_align_celeba" / "img_align_celeba"  # as Kaggle packs it
    folder = nested if nested.is_dir() else nested.parent
    sha = hashlib.sha256(b"".join([a.tobytes() for a in (*columns.values(), codes)] + [str(names).encode()]))
    return _Rows([folder / name for name in names], columns, codes, sha.hexdigest()[:16])


def _read_list(source: Path, stem: str) -> list[dict[str, str]]:
    """Rows by column: of a ``.csv`` with a header, or of a ``.txt`` in columns of blanks."""
    for path in (source / f"{stem}.txt", source / f"{stem}.csv"):
        if path.is_file():
            break
    else:
        raise ValueError(f"source_dir: found neither {stem}.txt nor {stem}.csv in {source}, expected CelebA's folder")
    lines = path.read_text().splitlines()
    if path.suffix == ".csv":
        return list(csv.DictReader(lines))
    if stem == "list_eval_partition":
        return [dict(zip(("image_id", "partition"), line.split(), strict=False)) for line in lines if line.strip()]
    names = ["image_id", *(lines[1].split() if len(lines) > 1 else ())]  # below the number of rows
    return [dict(zip(names, line.split(), strict=False)) for line in lines[2:] if line.strip()]


def _from_folder(rows: _Rows, size: int) -> dict[str, builders.Arrays]:
    images.check_files(rows.paths)
    parts = {}
    for code, name in enumerate(_SPLITS):
        ids = np.flatnonzero(rows.split == code).astype(np.int32)
        pixels = (_square(images.read_image(rows.paths[row]), size) for row in ids.tolist())
        part = {key: values[ids] for key, values in rows.attributes.items()}
        parts[name] = {"image": _filled(pixels, len(ids), size), **part, "id": ids}
    return parts


def _from_tfds(size: int, data_dir: str | Path | None) -> dict[str, builders.Arrays]:
    try:
        builder: Any = tfds.builder("celeb_a", data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads fail in many ways
        raise ValueError(
            f"data_dir: found no celeb_a in {data_dir or 'the default of TFDS'}, and it could not be made ({error}). "
            "Prepare it elsewhere with download_and_prepare(file_format='array_record') and give its data_dir, or give "
            "the published folder as source_dir."
        ) from error
    parts, first = {}, 0
    for name, theirs in _SPLITS.items():
        source = builder.as_data_source(theirs)
        n, attributes = len(source), []

        def pixels(source=source, attributes=attributes):
            for row in _stream(source):
                attributes.append([row["attributes"][attribute] for attribute in _ATTRIBUTES.values()])
                yield _square(row["image"], size)

        image = _filled(pixels(), n, size)
        columns = dict(zip(_ATTRIBUTES, np.array(attributes, np.int32).T, strict=True))
        parts[name] = {"image": image, **columns, "id": np.arange(first, first + n, dtype=np.int32)}
        first += n
    return parts


def _square(image: images.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    return images.resize(images.centre(image, 178, 178), size, size)


def _filled(pixels: Iterator[images.Image], n: int, size: int) -> UInt8[np.ndarray, "n size size 3"]:
    out = np.empty((n, size, size, 3), np.uint8)
    for i, image in enumerate(pixels):
        out[i] = image
    return out


def _stream(source: Any, block: int = 1000) -> Iterator[dict[str, Any]]:
    for start in range(0, len(source), block):  # all at once would be 19 GB of pixels
        yield from source.__getitems__(range(start, min(start + block, len(source))))
