"""The planted tasks: exact counts and pixels, disjoint official images, one result from every source."""

import dataclasses
import functools
import gzip
import http.server
import threading

import numpy as np
import pytest

from d3mjax.data.planted import cues
from d3mjax.data.sets import fashion, idx
from d3mjax.data.sets.fashion_cues import Task, group_counts, load_fashion, load_fashion_spurious
from d3mjax.data.splits import check_data

SMALL = Task(train=80, targets=40, selection=40, test=40, seed=1)
needs_idx = pytest.mark.skipif(  # few machines have them; shipped classes and made idx files are tested everywhere
    not fashion.DEBIAN.is_dir(), reason="needs the idx files of Debian's package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def default():
    return load_fashion_spurious()


@pytest.fixture(scope="module")
def shipped():
    return fashion.read_shipped()


def test_default_task_has_exact_groups(default):
    check_data(default, 2, 4)
    assert [np.bincount(s.group).tolist() for s in default] == [
        [1900, 100, 100, 1900],
        [380, 20, 20, 380],
        [475, 25, 25, 475],
        [500, 500, 500, 500],
    ]
    for split in default:
        assert split.x.shape[1:] == (196,)
        assert split.x.dtype == np.float32
        assert (split.x.min(), split.x.max()) == (0, 1)
        np.testing.assert_array_equal(split.y, split.group // 2)
        assert (split.y[:100].min(), split.y[:100].max()) == (0, 1)  # mixed, not class by class


def test_default_task_is_the_official_images_plus_a_patch(default, shipped):
    row = {int(i): r for r, i in enumerate(shipped.id)}
    for name, split in default._asdict().items():
        assert ((split.id >= 60_000) == (name == "test")).all()
        rows = [row[int(i)] for i in split.id]
        np.testing.assert_array_equal(shipped.labels[rows], np.where(split.y == 0, 2, 4))
        expected = shipped.images[rows, :, :, 0].astype(np.float32) / 255
        left = split.group % 2 == 0
        expected[left, :2, :2] = 1
        expected[~left, :2, -2:] = 1
        np.testing.assert_array_equal(split.x.reshape(-1, 14, 14), expected)


def test_the_seed_decides():
    first, again = load_fashion_spurious(SMALL), load_fashion_spurious(SMALL)
    for a, b in zip(first, again, strict=True):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_array_equal(u, v)
    other = load_fashion_spurious(dataclasses.replace(SMALL, seed=2))
    assert other.train.id.tolist() != first.train.id.tolist()
    # Only the share changes: the same images, the patch elsewhere.
    fewer = load_fashion_spurious(dataclasses.replace(SMALL, aligned=0.5))
    assert sorted(fewer.train.id) == sorted(first.train.id)
    assert np.bincount(fewer.train.group).tolist() == [20, 20, 20, 20]


def test_counts_and_shares_as_asked():
    task = dataclasses.replace(
        SMALL, targets=(25, 25, 25, 25), selection=30, class_shares=(0.25, 0.75), aligned=0.9, test=(1, 2, 3, 4)
    )
    data = load_fashion_spurious(task, flat=False)
    # 80 * .25 = 20: 18 and 2; 80 * .75 = 60: 6 and 54. Selection follows the targets' mix: 30 = 8 + 8 + 7 + 7.
    assert [np.bincount(s.group).tolist() for s in data] == [[18, 2, 6, 54], [25] * 4, [8, 8, 7, 7], [1, 2, 3, 4]]
    assert data.train.x.shape == (80, 14, 14, 1)


def test_background_colour_task():
    cue = cues.BackgroundColour()
    task = dataclasses.replace(SMALL, cue=cue)
    data = load_fashion_spurious(task, flat=False)
    patch = load_fashion_spurious(dataclasses.replace(SMALL, cue=cues.CornerPatch()))
    np.testing.assert_array_equal(data.train.id, patch.train.id)
    assert data.train.x.shape == (80, 14, 14, 3)
    colours = np.array(cue.colours, np.float32) / 255
    is_colour = (data.train.x == colours[data.train.group % 2][:, None, None]).all(-1)
    is_grey = (data.train.x == data.train.x[..., :1]).all(-1)
    assert (is_colour ^ is_grey).all()
    assert is_colour.any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ((2,),)}, r"classes: found .*expected two or more disjoint"),
        ({"classes": ((2, 4), (4,))}, "classes: .*disjoint"),
        ({"classes": ((2,), (10,))}, r"official labels 0\.\.9"),
        ({"aligned": -0.1}, r"aligned: found -0\.1"),
        ({"targets": (1, 2, 3)}, r"targets: found \(1, 2, 3\), expected 4 non-negative group counts"),
        ({"train": 13_000}, r"class 0, made of \(2,\): asked for 6540 images, found 6000"),
        ({"size": 15}, r"size: found 15, expected 14 or 28"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_fashion_spurious(dataclasses.replace(SMALL, **change))


def test_damaged_shipped_file_is_named(tmp_path, monkeypatch):
    copy = tmp_path / "pair.npz.xz"
    monkeypatch.setattr(fashion, "SHIPPED", copy)
    with pytest.raises(ValueError, match=r"pair\.npz\.xz: missing"):
        load_fashion_spurious(SMALL)
    copy.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"pair\.npz\.xz: checksum differs\. Install d3mjax anew, or give source_dir"):
        load_fashion_spurious(SMALL)


def test_missing_and_damaged_source_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"source_dir: found neither .*train-images-idx3-ubyte"):
        load_fashion_spurious(SMALL, source_dir=tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\x00\x00\x08\x03")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: checksum differs"):
        idx.read_file(path, path.name, of="Fashion-MNIST", sha256=fashion._SHA256)
    path.write_bytes(gzip.compress(b"some bytes")[:-4])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: missing or damaged"):
        idx.read_file(path, path.name, of="Fashion-MNIST", sha256=fashion._SHA256)


def test_without_any_source_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(fashion, "URL", "http://127.0.0.1:9/")
    with pytest.raises(ValueError, match=r"could not be downloaded from .*Give source_dir.*at size 14"):
        load_fashion_spurious(dataclasses.replace(SMALL, size=28))


def test_halving_rounds_half_up():
    images = np.array([[0, 1, 255, 255], [0, 1, 255, 254]], np.uint8).reshape(1, 2, 4, 1)
    assert idx.halved(images).ravel().tolist() == [1, 255]  # .5 -> 1, 254.75 -> 255


def test_shipped_holds_every_pullover_and_coat(shipped):
    assert shipped.images.shape == (14_000, 14, 14, 1)
    for label in (2, 4):
        assert np.sum((shipped.labels == label) & (shipped.id < 60_000)) == 6000
        assert np.sum((shipped.labels == label) & (shipped.id >= 60_000)) == 1000
    assert (np.diff(shipped.id) > 0).all()


@needs_idx
def test_shipped_equals_the_official_files(shipped, tmp_path):
    official = fashion.read((2, 4), 14, source_dir=fashion.DEBIAN)
    for a, b in zip(shipped, official, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    # An oracle that shares no code: the mean in floating point.
    with gzip.open(fashion.DEBIAN / "train-images-idx3-ubyte.gz") as file:
        file.seek(16 + 784 * int(shipped.id[7]))
        image = np.frombuffer(file.read(784), np.uint8).reshape(14, 2, 14, 2)
    np.testing.assert_array_equal(shipped.images[7, ..., 0], np.floor(image.mean((1, 3)) + 0.5))
    assert fashion.write_shipped(tmp_path / "again", official)
    monkey = load_fashion_spurious(SMALL, source_dir=fashion.DEBIAN)
    plain = load_fashion_spurious(SMALL)
    np.testing.assert_array_equal(monkey.train.x, plain.train.x)


@needs_idx
def test_a_download_is_kept(tmp_path, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(fashion.DEBIAN))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
        monkeypatch.setattr(fashion, "CACHE", tmp_path / "cache")
        monkeypatch.setattr(fashion, "URL", f"http://127.0.0.1:{server.server_port}/")
        data = load_fashion_spurious(dataclasses.replace(SMALL, size=28))
        server.shutdown()
    again = load_fashion_spurious(dataclasses.replace(SMALL, size=28))  # without the server
    np.testing.assert_array_equal(again.train.x, data.train.x)
    x = data.train.x.reshape(-1, 28, 28)
    left = data.train.group % 2 == 0
    assert (x[left, :4, :4] == 1).all()
    assert (x[~left, :4, -4:] == 1).all()


@needs_idx
def test_plain_ten_classes():
    data = load_fashion(3, train=100, targets=50, selection=50, test=100)
    check_data(data, 10, 10)
    assert np.bincount(data.train.y).tolist() == [10] * 10
    np.testing.assert_array_equal(data.train.group, data.train.y)
    official = fashion.read(range(10), 14, source_dir=None)
    np.testing.assert_array_equal(official.labels[data.test.id], data.test.y)
    np.testing.assert_array_equal(data.test.x, official.images[data.test.id].reshape(100, -1) / np.float32(255))


def test_targets_follow_the_mix_of_training():
    assert group_counts(Task())["target"] == (380, 20, 20, 380)
