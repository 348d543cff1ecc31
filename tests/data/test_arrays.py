"""Arrays of .npz files and of TFDS arrive by name; what is missing or damaged is refused by name."""

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from d3mjax.data import arrays, files


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Six images of 2 x 2 in two splits, with labels, groups, and a feature of no fixed shape."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features: dict[str, Any] = {
            "image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
            "y": np.int32,
            "name": tfds.features.Text(),
            "ragged": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(4)), "test": self._generate_examples(range(4, 6))}

    def _generate_examples(self, rows):
        for i in rows:
            image, ragged = np.full((2, 2, 1), 10 * i, np.uint8), np.arange(i, dtype=np.int32)
            yield i, {"image": image, "y": i % 2, "name": f"n{i}", "ragged": ragged}


def test_npz(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["a", "b", "a"]))
    read = arrays.read(tmp_path / "a.npz")
    assert list(read) == ["x", "y"]
    np.testing.assert_array_equal(read["x"], x)
    assert read["y"].tolist() == ["a", "b", "a"]


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_missing_or_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path: .*data\.npz is missing or damaged, expected an"):
        arrays.read(path)


def test_pickles_in_npz_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="missing or damaged"):
        arrays.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("source", "table"),
    [("a.csv", True), ("a.csv.gz", True), ("a", True), ("a.NPZ", False), ("tfds:mnist:train", False)],
)
def test_sources_are_tables_or_arrays(source, table):
    assert files.is_table(source) == table


def test_tfds_by_name(tmp_path):
    read = arrays.read("tfds:tiny_images:test", data_dir=tmp_path)
    assert sorted(read) == ["image", "name", "y"]  # what has no one shape is left out
    np.testing.assert_array_equal(read["image"], np.full((2, 2, 2, 1), np.array([40, 50])[:, None, None, None]))
    assert (read["y"].tolist(), sorted(read["name"].tolist())) == ([0, 1], ["n4", "n5"])
    assert len(arrays.read("tfds:tiny_images:1.0.0:train[:3]", data_dir=tmp_path)["y"]) == 3
    for source, message in (
        ("tfds:tiny_images:val", r"split 'val': cannot be read .*'train'"),
        ("tfds:tiny_images", "found 'tfds:tiny_images', expected tfds:NAME:SPLIT"),
        ("tfds:fashion_mnits:train", r"TFDS knows no data set 'fashion_mnits'\. Did you mean .*fashion_mnist"),
    ):
        with pytest.raises(ValueError, match=message):
            arrays.read(source, data_dir=tmp_path)
