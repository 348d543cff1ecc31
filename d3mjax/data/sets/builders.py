"""Arrays that are slow to make, kept by TFDS as ``array_record`` and read back whole, checked and in order.

TensorFlow is not needed. A builder keeps the SHA-256 of each split's arrays in its own metadata, which TFDS writes
in the same atomic step as the records, so a damaged or half-written cache cannot pass for data.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from d3mjax.data.digests import digest

Arrays = Mapping[str, np.ndarray]  # each [n, ...]
_HEADER = "{name} {dtype} {shape}"  # caches on disk are checked by it


def note_digests(builder: tfds.core.GeneratorBasedBuilder, splits: Mapping[str, Arrays]) -> None:
    """For ``_split_generators``: TFDS saves the metadata once all records are written."""
    metadata: Any = builder.info.metadata
    metadata["sha256"] = {name: digest(dict(arrays), header=_HEADER) for name, arrays in splits.items()}


def rows(arrays: Arrays) -> Iterator[tuple[int, dict[str, Any]]]:
    """One record a row, for ``_generate_examples``."""
    for i, row in enumerate(zip(*arrays.values(), strict=True)):
        yield i, dict(zip(arrays, row, strict=True))


@dataclasses.dataclass(eq=False)
class CachedConfig(tfds.core.BuilderConfig):
    """Splits under a name: ``read`` is called when nothing is cached under it yet."""

    read: Callable[[], Mapping[str, Arrays]] = dict
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of one row, as TFDS names them


class Cached(tfds.core.GeneratorBasedBuilder):
    """Arrays that are expensive to read, kept by TFDS."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        assert isinstance(self.builder_config, CachedConfig)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(self.builder_config.features)),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any):
        assert isinstance(self.builder_config, CachedConfig)
        splits = self.builder_config.read()
        note_digests(self, splits)
        return {name: self._generate_examples(arrays) for name, arrays in splits.items()}

    def _generate_examples(self, arrays: Arrays):
        return rows(arrays)


def load(config: CachedConfig, data_dir: str | Path | None) -> dict[str, dict[str, np.ndarray]]:
    """All splits of a configuration as arrays, in the order they were written, built first if need be.

    Raises ``ValueError`` with the directory to delete when TFDS cannot read its own notes there, or the records are
    not what was written.
    """
    with quiet():
        try:
            builder = Cached(data_dir=data_dir, config=config)
        except Exception as error:
            path = f"{data_dir or 'data_dir of TFDS'}/{Cached.name}/{config.name}"
            raise ValueError(f"{path}: {error}. Delete this directory and load again.") from error
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Another process may have put the same directory in place while we were writing ours.
            if not Cached(data_dir=data_dir, config=config).is_prepared():
                raise
        try:
            builder = Cached(data_dir=data_dir, config=config)
            splits = {name: _stack(builder, name) for name in builder.info.splits}
            metadata: Any = builder.info.metadata
            sound = metadata["sha256"] == {
                name: digest(dict(arrays), header=_HEADER) for name, arrays in splits.items()
            }
        except Exception as error:
            raise ValueError(_damaged(builder.data_dir)) from error
    if not sound:
        raise ValueError(_damaged(builder.data_dir))
    return splits


def read_rows(builder: Any, split: str) -> list[dict[str, Any]]:
    """All records of a split in one request, which is much faster than one by one."""
    source = builder.as_data_source(split)
    return source.__getitems__(range(len(source)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from printing, drawing bars, and warning that a configuration is our own."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _stack(builder: Any, split: str) -> dict[str, np.ndarray]:
    records = read_rows(builder, split)
    # Scalars come back as Python numbers: the feature knows their type.
    features = builder.info.features.items()
    return {key: np.array([row[key] for row in records], feature.np_dtype) for key, feature in features}


def _damaged(directory: str | Path) -> str:
    return f"{directory}: the cached records are damaged. Delete this directory and load again."
