"""CIFAR-10 in any of its forms, and CIFAR-10N, human labels of its training images.

Images are numbered by class, and within a class in published order, whatever their form: 0..49999 are the training
images, 5,000 a class, 50000..59999 the test images.

Sources: Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html; Wei et al., "Learning with noisy labels revisited", 2022, for CIFAR-10N.
"""

import hashlib
import pickle
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8

from d3mjax.data import splits
from d3mjax.data.planted import cues
from d3mjax.data.sets import builders, idx, images
from d3mjax.types import Data, Split

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": (5000,) * 10, "test": (1000,) * 10}
HUMAN_LABELS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")
"""CIFAR-10N: the majority of three annotators, each of them, and one of their wrong labels where there is one."""

_TEN = tuple((y,) for y in range(len(NAMES)))
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_EXPECTED = (
    "cifar-10-batches-py/ of cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, or a folder or "
    "one .tar.gz of images train/CLASS/NUMBER.jpg and test/CLASS/NUMBER.jpg, or TFDS's cifar10 as array_record"
)
_FILE = re.compile(r"(train|test)/(\w+)/(\d+)\.(?:jpg|jpeg|png)")


class Part(NamedTuple):
    """Images of train or test, ordered by class."""

    images: UInt8[np.ndarray, "n 32 32 3"]
    labels: Int32[np.ndarray, " n"]


def load_cifar10(
    seed: int = 0,
    *,
    source_dir: str | Path,
    size: int = 32,
    train: cues.Counts = 10_000,
    targets: cues.Counts = 500,
    selection: cues.Counts = 1000,
    test: cues.Counts = 8500,
    counts: splits.Counts | None = COUNTS,
    data_dir: str | Path | None = None,
) -> Data:
    """Training images; targets, selection and test are disjoint parts of the test images. group = y, classes balanced.

    x is float32 in 0..1, [n, size * size * 3], at ``size`` 16 and 8 means over blocks of pixels. ``source_dir``,
    ``counts``, ``data_dir`` and errors are those of `read`; ``ValueError`` also where a class has too few images.
    """
    if size not in (8, 16, 32):
        raise ValueError(f"size: found {size}, expected 8, 16 or 32")
    even = (1.0,) * len(NAMES)
    sizes = zip(Data._fields, (train, targets, selection, test), strict=True)
    drawn_counts = [cues.split_counts(name, size, even) for name, size in sizes]
    parts, first, drawn = read(source_dir, counts=counts, data_dir=data_dir), 0, []
    for part, asked in zip(parts.values(), (drawn_counts[:1], drawn_counts[1:]), strict=True):
        for row, _, _ in cues.draw(seed, part.labels, _TEN, 1, asked):
            pixels, y = part.images[row], part.labels[row]
            while pixels.shape[1] > size:
                pixels = idx.halved(pixels)
            x, ids = pixels.reshape(len(row), -1).astype(np.float32) / 255, (first + row).astype(np.int32)
            drawn.append(Split(x, y, y, ids))
        first += len(part.labels)
    return Data(*drawn)


def read(
    source_dir: str | Path, *, counts: splits.Counts | None = COUNTS, data_dir: str | Path | None = None
) -> dict[str, Part]:
    """All images, ``train`` and ``test``.

    ``source_dir``: a directory with the published batches, or with folders or one ``.tar.gz`` of image files, or one
    that TFDS prepared. Batches are pickles, read by an unpickler that makes arrays and built-in types and refuses
    everything else. Image files are decoded once and kept by TFDS in ``data_dir`` (None: its default).

    Raises:
      ValueError: nothing of this kind, saying how to get it; missing images, by name; damaged files; classes that are
        not of the sizes ``counts`` (None: any).
    """
    source = Path(source_dir)
    archives = sorted(source.glob("*.tar.gz"))
    batches = [path for path in (source / "cifar-10-batches-py", source) if (path / "data_batch_1").is_file()]
    prepared = sorted(source.glob("*/dataset_info.json"))
    if batches:
        parts = {name: _published(batches[0], files) for name, files in _BATCHES.items()}
    elif (source / "train").is_dir():
        parts = _decoded(source, counts, data_dir)
    elif len(archives) == 1:
        parts = _decoded(archives[0], counts, data_dir)
    elif prepared:
        parts = {name: _prepared(source, prepared[-1].parent.name, name) for name in COUNTS}
    else:
        raise ValueError(f"source_dir: found no CIFAR-10 in {source}, expected {_EXPECTED}")
    for name, expected in (counts or {}).items():
        splits.check_counts(parts[name].labels, expected, name=f"{source}: {name}")
    orders = {name: np.argsort(part.labels, kind="stable") for name, part in parts.items()}
    return {name: Part(*(a[orders[name]] for a in part)) for name, part in parts.items()}


def human_labels(
    path: str | Path, name: str, *, counts: Sequence[int] | None = COUNTS["train"]
) -> Int32[np.ndarray, " n"]:
    """Labels of CIFAR-10N, by number of the training image; ``name`` is one of `HUMAN_LABELS`.

    ``path``: an ``.npz`` with the arrays of the published ``CIFAR-10_human.pt``. They are in the order of the published
    training batches; ``clean_label`` tells the class of each, so that the k-th of a class belongs to its k-th image.

    Raises:
      ValueError: another name; a file that is missing, damaged or without such arrays; classes of ``clean_label`` that
        are not of the sizes ``counts`` (None: any); labels that are not as many.
    """
    if name not in HUMAN_LABELS:
        raise ValueError(f"name: found {name!r}, expected one of {HUMAN_LABELS}")
    try:
        with np.load(path) as file:
            clean, labels = (file[key].astype(np.int32) for key in ("clean_label", name))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: missing or damaged ({error}), expected an .npz of the arrays in CIFAR-10_human.pt of "
            "https://github.com/UCSC-REAL/cifar-10-100n"
        ) from error
    if labels.shape != clean.shape:
        raise ValueError(f"{path}: {name}: found shape {labels.shape}, expected {clean.shape} as of clean_label")
    if counts is not None:
        splits.check_counts(clean, counts, name=f"{path}: clean_label")
    return labels[np.argsort(clean, kind="stable")]


def _published(directory: Path, names: tuple[str, ...]) -> Part:
    parts = []
    for name in names:
        try:
            with open(directory / name, "rb") as file:
                content = _ArraysOnly(file, encoding="bytes").load()
            pixels = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            parts.append(Part(pixels, np.asarray(content[b"labels"], np.int32)))
        except (OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{directory / name}: missing or damaged ({error}), expected {_EXPECTED}") from error
    return Part(*map(np.concatenate, zip(*parts, strict=True)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays beside the built-in types: a pickle that names anything else raises."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"found {module}.{name}, expected arrays alone") from None


def _prepared(source: Path, version: str, name: str) -> Part:
    """A split that TFDS prepared, in published order, which its ids give."""
    try:
        with builders.quiet():
            rows = builders.read_rows(tfds.builder(f"cifar10:{version}", data_dir=source.parent), name)
        rows.sort(key=lambda row: row["id"])
        return Part(np.array([row["image"] for row in rows]), np.array([row["label"] for row in rows], np.int32))
    except Exception as error:  # TFDS raises nearly anything
        raise ValueError(f"{source}: cannot be read by TFDS ({error}), expected {_EXPECTED}") from error


def _decoded(source: Path, counts: splits.Counts | None, data_dir: str | Path | None) -> dict[str, Part]:
    """Image files of a folder or archive, decoded unless they are kept from before."""
    config = builders.CachedConfig(
        name=f"cifar10_{_fingerprint(source)}",
        read=lambda: _decode(source, counts),
        features={  # one record a split: one an image takes three times as long to read
            "image": tfds.features.Tensor(shape=(None, 32, 32, 3), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        },
    )
    return {name: Part(part["image"][0], part["label"][0]) for name, part in builders.load(config, data_dir).items()}


def _decode(source: Path, counts: splits.Counts | None) -> dict[str, builders.Arrays]:
    """All images of both splits by class and number; without ``counts``, up to the last number of each class."""
    pixels: dict[str, dict[tuple[int, int], np.ndarray]] = {name: {} for name in COUNTS}
    try:
        for path, content in _files(source):
            if (match := _FILE.fullmatch(path)) and match[2] in NAMES:
                position = NAMES.index(match[2]), int(match[3])
                pixels[match[1]][position] = images.read_image(f"{source}/{path}", content=content)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{source}: missing or damaged ({error}), expected {_EXPECTED}") from error
    parts = {}
    for name, of_split in pixels.items():
        last = np.bincount([y for y, _ in of_split], minlength=len(NAMES)) if counts is None else counts[name]
        positions = [(y, k) for y, count in enumerate(last) for k in range(count)]
        missing = [f"{name}/{NAMES[y]}/{k:04}.jpg" for y, k in positions if (y, k) not in of_split]
        if missing or not positions:
            named = ", ".join(missing[:3]) or f"{name}/CLASS/NUMBER.jpg"
            raise ValueError(f"{source}: found no {named}; {len(missing)} of {len(positions)} {name} images missing")
        sizes = {of_split[at].shape for at in positions}
        if sizes != {(32, 32, 3)}:
            raise ValueError(f"{source}: found {name} images of {sorted(sizes)}, expected 32 x 32 pixels")
        image, label = np.array([of_split[at] for at in positions]), np.array([y for y, _ in positions], np.int32)
        parts[name] = {"image": image[None], "label": label[None]}
    return parts


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Paths inside a folder or .tar.gz, and contents."""
    if source.is_dir():
        for path in _listed(source):
            yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                yield member.name.removeprefix("./"), file.read()


def _listed(source: Path) -> list[Path]:
    return [path for name in COUNTS for path in sorted((source / name).glob("*/*")) if path.is_file()]


def _fingerprint(source: Path) -> str:
    """Hash of an archive's bytes, or of the names, sizes and times of a folder's files."""
    if source.is_file():
        raw = source.read_bytes()
    else:
        facts = [(str(path), path.stat()) for path in _listed(source)]
        raw = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in facts).encode()
    return hashlib.sha256(raw).hexdigest()[:16]
