"""The user's arrays by name: .npz files, and any data set of TFDS. Needs neither pandas nor TensorFlow."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def read(source: str | Path, *, data_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, or the features of a split ``tfds:NAME:SPLIT``, by name, one row an example."""
    return _read_tfds_columns(str(source), data_dir) if str(source).startswith("tfds:") else read_npz(source)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file by name."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a damaged zip raises nearly anything
        raise ValueError(f"path: {path} is missing or damaged, expected an .npz file ({error})") from error


def read_tfds(name: str, *, split: str, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """The examples of one TFDS split as they are, by name of feature, without TensorFlow.

    The data set must be on disk as ``array_record``; if it is not prepared yet, it is built where its builder works
    without TensorFlow.
    """
    import tensorflow_datasets as tfds

    from d3mjax.data.sets import builders

    try:
        with builders.quiet():
            builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(name.split("/")[0].split(":")[0], known) or " See tfds.list_builders()."
        raise ValueError(f"name: TFDS knows no data set {name!r}.{hint}") from error
    try:
        with builders.quiet():
            builder.download_and_prepare(file_format="array_record")
            return builders.read_rows(builder, split)
    except Exception as error:
        found = f"splits {list(builder.info.splits)}" if builder.is_prepared() else "nothing prepared"
        raise ValueError(
            f"{name}, split {split!r}: cannot be read from {builder.data_dir}, found {found} ({error}). Expected an "
            "existing split, prepared as array_record; where its builder needs TensorFlow, prepare it elsewhere with "
            "download_and_prepare(file_format='array_record') and give its data_dir."
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean a or b?``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _read_tfds_columns(source: str, data_dir: str | Path | None) -> dict[str, np.ndarray]:
    """The features of a TFDS split that have one shape in all its rows."""
    parts = re.fullmatch(r"tfds:(.+?):([A-Za-z].*)", source)  # a version, too, comes after a colon, as do slices
    if not parts:
        raise ValueError(f"found {source!r}, expected tfds:NAME:SPLIT, as in tfds:mnist:train")
    rows = read_tfds(parts[1], split=parts[2], data_dir=data_dir)
    even = (key for key in rows[0] if len({np.shape(row[key]) for row in rows}) == 1)
    columns = {key: np.array([row[key] for row in rows]) for key in even}
    return {key: a.astype(str) if a.dtype.kind == "S" else a for key, a in columns.items()}
