"""Frozen encoders of the commands: a planted BERT and a planted ResNet of random weights, read from published files."""

from dataclasses import replace
from typing import Any

import made_encoder
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from made_encoder import TINY, WORDS
from networks.published_images import resnet_features, resnet_tensors
from planted_files import QUICK
from safetensors.numpy import save_file

import d3mjax
from d3mjax.commands import debias, debias_data, diagnose_data, encoders
from d3mjax.commands.debias_data import Files
from d3mjax.data import columns, images
from d3mjax.data.sets.images import normalise
from d3mjax.networks.resnets import ResnetConfig
from d3mjax.runtime import encoders as runtime_encoders


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("D3MJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def directory(tmp_path):
    return made_encoder.write(tmp_path / "tiny")


def reviews(seed, n):
    """Sentences of three words, of which the first two tell the class and the group."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    s = np.where(rng.random(n) < (0.9 if seed == 0 else 0.5), y, 1 - y)
    noise = rng.choice(["film", "old"], (n, 5))
    texts = [" ".join((WORDS[a], ("not", "dull")[b], *more)) for a, b, more in zip(y, s, noise, strict=True)]
    columns = {
        "review": texts,
        "age": rng.normal(size=n),
        "style": np.array(["x", "z"])[s],
        "y": np.array(["n", "p"])[y],
    }
    return pd.DataFrame(columns)


@pytest.fixture
def tables():
    return {"train": reviews(0, 300), "validation": reviews(1, 240)}


FILES = Files("train", "validation", label="y", group="style", text="review")


def test_text_becomes_vectors_beside_other_columns(directory, tables):
    data = debias_data.read(replace(FILES, text_encoder=str(directory)), tables=tables)
    assert data.train.x.shape == (300, TINY.width + 1)
    (column,) = (c for c in data.card["columns"] if c["name"] == "review")
    assert "encoded by" in column["note"]
    assert "tiny-" in column["note"]
    assert "as 6 numbers" in column["note"]
    assert data.examples is not None
    assert data.examples([3, 0]) == tables["train"]["review"].iloc[[3, 0]].tolist()
    same = dict(zip(tables["train"]["review"], data.train.x, strict=True))
    for text, x in zip(tables["validation"]["review"], data.target.x, strict=True):
        if text in same:
            np.testing.assert_array_equal(x[: TINY.width], same[text][: TINY.width])


def test_texts_that_are_too_long_are_cut_and_counted(directory, tables):
    tables["train"].loc[[0, 1], "review"] = " ".join(20 * ["good"])
    data = debias_data.read(replace(FILES, text_encoder=str(directory)), tables=tables)
    (column,) = (c for c in data.card["columns"] if c["name"] == "review")
    assert "1 of" in column["note"]
    assert column["note"].endswith("texts cut at 12 tokens")


def test_the_report_shows_the_texts_of_lowest_score(directory, tables, tmp_path):
    config = debias.Config(replace(FILES, text_encoder=str(directory)), **QUICK)
    run = debias.main(config, tmp_path / "results", tables=tables)
    page = (run / "report.html").read_text()
    assert "The texts of lowest score." in page
    lowest = (run / "examples.csv").read_text().splitlines()[1].split(",")[0]
    shown = page.split("The texts of lowest score.")[0].rsplit("<table>", 1)[1]
    first = shown.split("<tr>")[2]
    assert tables["train"]["review"].iloc[int(lowest)] in first


def test_diagnosis_takes_principal_components(directory, tables):
    files: Any = diagnose_data.Files("train", "validation", label="y", text="review", text_encoder=str(directory))
    table = diagnose_data.read(files, tables=tables)
    parts = [name for name in table.train.columns if name.startswith("review ")]
    assert len(parts) == TINY.width
    x = np.stack([table.train.columns[name] for name in parts], 1)
    covariance = np.cov(x.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)
    assert np.all(np.diff(np.diag(covariance)) <= 1e-6)


def test_an_encoder_needs_text(directory, tables):
    frames = {name: frame.drop(columns="review") for name, frame in tables.items()}
    kinds = columns.infer({"--train": frames["train"]}, categorical=(), text=(), dropped={})
    with pytest.raises(ValueError, match=r"--text-encoder: found 'none', expected a directory"):
        debias_data.read(replace(FILES, text_encoder="none"), tables=tables)
    with pytest.raises(ValueError, match="--text-encoder: found no column of free text"):
        encoders.of_texts(str(directory), kinds, {"--train": columns.typed(frames["train"], kinds)})


SMALL = ResnetConfig((1, 1, 1, 1), bottleneck=False, width=4)


@pytest.fixture
def photographs(tmp_path):
    """A folder of two colours of images, one for each class, their table by part, and a file of weights."""
    folder, rng, parts = tmp_path / "photographs", np.random.default_rng(0), {}
    folder.mkdir()
    for part, count in {"train": 60, "validation": 60}.items():
        y, s = rng.integers(0, 2, count), rng.integers(0, 2, count)
        names = [f"{part}-{i}.png" for i in range(count)]
        for name, colour, side in zip(names, y, s, strict=True):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[:, :, 2 * colour] += 150
            pixels[:, : 12 * side] //= 2
            PIL.Image.fromarray(pixels).save(folder / name)
        parts[part] = pd.DataFrame({"file": names, "y": y, "side": s})
    save_file(resnet_tensors(SMALL), tmp_path / "resnet.safetensors")
    return parts, {"images": str(folder), "image_encoder": str(tmp_path / "resnet.safetensors"), "image_size": 32}


IMAGES = Files("train", "validation", label="y", group="side")


def test_images_become_the_features_of_a_resnet(photographs):
    tables, options = photographs
    data = debias_data.read(replace(IMAGES, raw=True, **options), tables=tables)
    pixels = images.read(options["images"], tables["train"]["file"].tolist()[:3], size=32)
    pixels = (255 * pixels).round().astype(np.uint8)
    expected, _ = resnet_features(SMALL, resnet_tensors(SMALL), normalise(pixels), train=False)
    np.testing.assert_allclose(d3mjax.encode_images(options["image_encoder"], pixels), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data.train.x[:3], expected, rtol=1e-4, atol=1e-4)
    assert data.train.x.shape == (60, SMALL.features)
    assert any("encoded by resnet-" in note and "32 numbers, at 32 x 32" in note for note in data.card["notes"])
    assert data.examples is not None
    assert data.examples([0, 5]).shape == (2, 64, 64, 3)


def test_images_are_read_and_encoded_in_blocks(photographs, tmp_path, monkeypatch):
    tables, options = photographs
    names = {"--train": tables["train"]["file"].tolist(), "--validation": tables["validation"]["file"].tolist()[:20]}
    read, counts = images.read, []
    whole, _ = encoders.of_images(options["image_encoder"], options["images"], names, size=32)
    monkeypatch.setattr(runtime_encoders, "BLOCK", 32)
    monkeypatch.setattr(
        images, "read", lambda where, part, *, size: counts.append(len(part)) or read(where, part, size=size)
    )
    monkeypatch.setenv("D3MJAX_CACHE", "off")
    in_blocks, _ = encoders.of_images(options["image_encoder"], options["images"], names, size=32)
    assert counts == [32, 32, 16]
    for part, x in whole.items():
        np.testing.assert_allclose(in_blocks[part], x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"found 1 of 81 images missing or damaged: none\.png \(no such file\)"):
        encoders.of_images(options["image_encoder"], options["images"], names | {"--test": ["none.png"]}, size=32)
    assert len(counts) == 3


def test_encoded_images_train_a_small_network_and_are_shown(photographs, tmp_path):
    tables, options = photographs
    run = debias.main(debias.Config(replace(IMAGES, **options), **QUICK), tmp_path / "results", tables=tables)
    assert "The examples of lowest score: id and label." in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny/model.safetensors", "expected conv1.weight and layer1 to layer4 of a ResNet"),
        ("none.safetensors", "found .*none.safetensors', expected a file, or OWNER/NAME@REVISION"),
    ],
)
def test_weights_that_are_no_resnet_are_named(directory, photographs, source, message):
    tables, options = photographs
    files = replace(IMAGES, **options | {"image_encoder": str(directory.parent / source)})
    with pytest.raises(ValueError, match=f"--image-encoder: .*{message}"):
        debias_data.read(files, tables=tables)


def test_an_encoder_of_images_needs_images(tables):
    with pytest.raises(ValueError, match="--image-encoder: found no --images"):
        debias_data.read(replace(FILES, image_encoder="resnet.safetensors"), tables=tables)
