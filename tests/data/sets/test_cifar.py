"""CIFAR-10 in each of its forms, and the human labels of its training images."""

import pickle
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from cifar_files import labels, pack, picture, ranks, shade, write_batches, write_images

from d3mjax.data import splits
from d3mjax.data.sets import cifar

COUNTS = {"train": (7,) * 10, "test": (6,) * 10}
SIZES: dict[str, Any] = {"train": 30, "targets": 20, "selection": 10, "test": 30}


@pytest.fixture
def batches(tmp_path):
    write_batches(tmp_path / "published", train=7, test=6)
    return tmp_path / "published"


@pytest.fixture
def folders(tmp_path):
    write_images(tmp_path / "folders", train=7, test=6)
    return tmp_path / "folders"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """TFDS's own builder with the made images; it stores them in an order of its own."""

    def generate(name, y):
        for i, (label, rank) in enumerate(zip(y, ranks(y), strict=True)):
            yield i, {"id": f"{name}_{i:05}", "image": picture(label, rank), "label": int(label)}

    def made(self, dl_manager):
        return {"train": generate("train", labels(7, 0)), "test": generate("test", labels(6, 1))}

    monkeypatch.setattr(tfds.builder_cls("cifar10"), "_split_generators", made)
    tfds.builder("cifar10", data_dir=tmp_path / "tfds").download_and_prepare(file_format="array_record")
    return tmp_path / "tfds" / "cifar10"


def check(parts):
    for part, count in zip(parts.values(), (7, 6), strict=True):
        np.testing.assert_array_equal(part.labels, np.repeat(np.arange(10), count))
        expected = shade(part.labels, np.tile(np.arange(count), 10))
        assert (part.images.dtype, part.images.shape) == (np.uint8, (10 * count, 32, 32, 3))
        np.testing.assert_array_equal(part.images[:, 5, 7, 1], expected)
        np.testing.assert_array_equal(part.images[:, 0, 0, 1:], np.stack([expected, expected], 1))
        assert (part.images[:, 0, 0, 0] == 255).all()


def test_every_form_gives_the_same_images_in_the_same_order(batches, folders, prepared, tmp_path):
    pack(folders, tmp_path / "packed" / "images.tar.gz")
    for source in (batches, batches / "cifar-10-batches-py", folders, tmp_path / "packed", prepared):
        check(cifar.read(source, counts=COUNTS, data_dir=tmp_path / "kept"))


def test_decoded_images_are_kept(folders, tmp_path, monkeypatch):
    parts = [cifar.read(folders, counts=COUNTS, data_dir=tmp_path)]
    monkeypatch.setattr(cifar.images, "read_image", None)  # decoding again would raise
    parts.append(cifar.read(folders, counts=COUNTS, data_dir=tmp_path))
    check(parts[1])


@pytest.mark.parametrize("size", [8, 16, 32])
def test_splits(batches, size):
    data = cifar.load_cifar10(3, source_dir=batches, size=size, counts=COUNTS, **SIZES)
    splits.check_data(data, 10, 10)
    for split, count in zip(data, SIZES.values(), strict=True):
        np.testing.assert_array_equal(splits.group_sizes(split, 10), [count // 10] * 10)
        assert (split.x.dtype, split.x.shape) == (np.float32, (count, size * size * 3))
        first, per_class = (0, 7) if split is data.train else (70, 6)
        rank = (split.id - first) - per_class * split.y
        np.testing.assert_allclose(split.x[:, -1], shade(split.y, rank) / 255, rtol=1e-6)
        # The first pixel is the mean of 255 and its neighbours of the block.
        block = (32 // size) ** 2
        expected = (255 + (block - 1) * shade(split.y, rank)) / block / 255
        np.testing.assert_allclose(split.x[:, 0], expected, atol=1 / 255)
    again = cifar.load_cifar10(3, source_dir=batches, size=size, counts=COUNTS, **SIZES)
    other = cifar.load_cifar10(4, source_dir=batches, size=size, counts=COUNTS, **SIZES)
    np.testing.assert_array_equal(again.train.id, data.train.id)
    assert set(other.train.id) != set(data.train.id)


def test_published_counts_are_asserted(batches):
    with pytest.raises(ValueError, match=r"published: train: found counts \[7, 7, .*expected the published \[5000"):
        cifar.read(batches)
    assert [sum(counts) for counts in cifar.COUNTS.values()] == [50_000, 10_000]
    with pytest.raises(ValueError, match="size: found 20, expected 8, 16 or 32"):
        cifar.load_cifar10(source_dir=batches, size=20)


def test_missing_images_are_named(folders, tmp_path):
    load = {"counts": COUNTS, "data_dir": tmp_path / "kept"}
    (folders / "train" / "frog" / "0003.png").unlink()
    with pytest.raises(ValueError, match=r"found no train/frog/0003\.jpg; 1 of 70 train images missing"):
        cifar.read(folders, **load)
    with pytest.raises(ValueError, match=r"found no train/frog/0003\.jpg"):  # a gap, whatever the counts
        cifar.read(folders, counts=None, data_dir=tmp_path / "kept")
    (folders / "train" / "frog" / "0003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/frog/0003\.png: missing or not an image"):
        cifar.read(folders, **load)
    pack(folders, tmp_path / "cut" / "images.tar.gz")
    raw = (tmp_path / "cut" / "images.tar.gz").read_bytes()
    (tmp_path / "cut" / "images.tar.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"images\.tar\.gz: missing or damaged|missing or not an image"):
        cifar.read(tmp_path / "cut", **load)
    with pytest.raises(ValueError, match=r"found no CIFAR-10 in .*cifar-10-python\.tar\.gz from https.*TFDS"):
        cifar.read(tmp_path / "none")


def test_pickles_make_arrays_and_nothing_else(batches):
    path = batches / "cifar-10-batches-py" / "data_batch_2"
    raw = path.read_bytes()
    for content, message in (
        (pickle.dumps(shutil.rmtree), r"shutil\.rmtree, expected arrays alone"),
        (pickle.dumps(eval), r"\.eval, expected arrays alone"),
        (raw[:1000], "data_batch_2: missing or damaged"),
        (pickle.dumps({b"labels": []}), "data_batch_2: missing or damaged"),
        (pickle.dumps(3), "data_batch_2: missing or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            cifar.read(batches, counts=COUNTS)
    path.unlink()
    with pytest.raises(ValueError, match="data_batch_2: missing or damaged"):
        cifar.read(batches, counts=COUNTS)


def test_human_labels_are_joined_by_class_and_rank(batches, tmp_path):
    clean = labels(7, 0)
    written = (ranks(clean) + clean) % 10  # says which image it belongs to
    np.savez(tmp_path / "labels.npz", clean_label=clean.astype(np.int8), worse_label=written.astype(np.int8))
    part = cifar.read(batches, counts=COUNTS)["train"]
    human = cifar.human_labels(tmp_path / "labels.npz", "worse_label", counts=(7,) * 10)
    assert human.dtype == np.int32
    np.testing.assert_array_equal((human - part.labels) % 10, np.tile(np.arange(7), 10))
    with pytest.raises(ValueError, match="name: found 'worst', expected one of"):
        cifar.human_labels(tmp_path / "labels.npz", "worst")
    for path, name in (("none.npz", "worse_label"), ("labels.npz", "aggre_label")):
        with pytest.raises(ValueError, match=rf"{path}: missing or damaged .*CIFAR-10_human\.pt"):
            cifar.human_labels(tmp_path / path, name)
    with pytest.raises(ValueError, match=r"labels\.npz: clean_label: found counts \[7, .*published \[5000, "):
        cifar.human_labels(tmp_path / "labels.npz", "worse_label")
    np.savez(tmp_path / "short.npz", clean_label=clean, worse_label=written[:-1])
    with pytest.raises(ValueError, match=r"short\.npz: worse_label: found shape \(69,\), expected \(70,\)"):
        cifar.human_labels(tmp_path / "short.npz", "worse_label", counts=None)
