"""Frozen encoders of the commands: a planted BERT and a planted ResNet of random weights, read from published files."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from networks.published_images import resnet_features, resnet_tensors
from planted_files import QUICK
from published_weights import bert_states, bert_tensors
from safetensors.numpy import save_file

from d3mjax.commands import debias, debias_data, diagnose_data, encoders
from d3mjax.commands.debias_data import Files
from d3mjax.data import columns, images, weight_files
from d3mjax.data.sets.images import normalise
from d3mjax.networks.resnets import ResnetConfig
from d3mjax.networks.transformers import BertConfig

WORDS = ("good", "bad", "film", "not", "old", "dull")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
TINY = BertConfig(vocabulary=len(VOCABULARY), width=6, blocks=2, heads=3, inner=8, positions=12)
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": TINY.vocabulary,
    "hidden_size": TINY.width,
    "num_hidden_layers": TINY.blocks,
    "num_attention_heads": TINY.heads,
    "intermediate_size": TINY.inner,
    "max_position_embeddings": TINY.positions,
    "type_vocab_size": 2,
    "layer_norm_eps": TINY.epsilon,
}


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("D3MJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    save_file(bert_tensors(TINY), path / "model.safetensors")
    return path


def write_modules(directory, *modules, dense=None):
    """``modules.json`` of a sentence encoder with these modules, and the files of a ``2_Dense``."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    lines = [{"path": paths.get(name, name), "type": f"sentence_transformers.models.{name}"} for name in modules]
    (directory / "modules.json").write_text(json.dumps(lines))
    write_pooling(directory, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    if dense is not None:
        (directory / "2_Dense").mkdir()
        (directory / "2_Dense" / "config.json").write_text(json.dumps(DENSE | dense))
        weights = {"linear.weight": KERNEL.T.copy(), "linear.bias": BIAS}
        save_file(weights, directory / "2_Dense" / "model.safetensors")


DENSE = {"in_features": 6, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
KERNEL = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
BIAS = np.arange(4, dtype=np.float32)


def write_pooling(directory, **modes):
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 6, **modes}))


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


def test_vectors_are_unit_means_of_the_last_states(directory):
    encoder = encoders.read_text_encoder(str(directory))
    texts = ["good film", "bad"]
    vectors, cut = encoders.encode(encoder, texts)
    tokens = encoder.tokenize(texts).tokens
    states = bert_states(TINY, bert_tensors(TINY), tokens)[-1]
    means = np.stack([state[mask].mean(0) for state, mask in zip(states, tokens["mask"], strict=True)])
    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), atol=2e-5)
    assert cut == 0


def test_a_second_call_reads_what_the_first_has_kept(directory, cache_directory, monkeypatch):
    encoder = encoders.read_text_encoder(str(directory))
    first, _ = encoders.encode(encoder, ["good film", "bad"])
    assert list((cache_directory / "features").iterdir())
    fails = encoder.model._replace(apply=lambda *_: pytest.fail("computed again"))
    again, _ = encoders.encode(encoder._replace(model=fails), ["good film", "bad"])
    np.testing.assert_array_equal(again, first)
    monkeypatch.setenv("D3MJAX_CACHE", "off")
    np.testing.assert_array_equal(encoders.encode(encoder, ["good film", "bad"])[0], first)


def test_vectors_are_unit_states_of_the_first_token_where_pooling_is_cls(directory):
    texts = ["good film", "bad"]
    mean, _ = encoders.encode(encoders.read_text_encoder(str(directory)), texts)
    write_pooling(directory, pooling_mode_cls_token=True)
    encoder = encoders.read_text_encoder(str(directory))
    vectors, _ = encoders.encode(encoder, texts)
    states = bert_states(TINY, bert_tensors(TINY), encoder.tokenize(texts).tokens)[-1][:, 0]
    np.testing.assert_allclose(vectors, states / np.linalg.norm(states, axis=1, keepdims=True), atol=2e-5)
    write_pooling(directory, pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    np.testing.assert_array_equal(encoders.encode(encoders.read_text_encoder(str(directory)), texts)[0], mean)


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
@pytest.mark.parametrize("unit", [True, False])
def test_modules_of_a_sentence_encoder_are_obeyed(directory, activation, unit):
    names = ("Transformer", "Pooling", "Dense", *["Normalize"] * unit)
    write_modules(directory, *names, dense={"activation_function": f"torch.nn.modules.{activation}"})
    encoder = encoders.read_text_encoder(str(directory))
    vectors, _ = encoders.encode(encoder, ["good film", "bad"])
    tokens = encoder.tokenize(["good film", "bad"]).tokens
    states = bert_states(TINY, bert_tensors(TINY), tokens)[-1]
    means = np.stack([state[mask].mean(0) for state, mask in zip(states, tokens["mask"], strict=True)])
    expected = means @ KERNEL + BIAS
    expected = np.tanh(expected) if activation == "Tanh" else expected
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True) if unit else expected
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-4)


def test_vectors_keep_their_length_without_a_module_that_normalises(directory):
    unit, _ = encoders.encode(encoders.read_text_encoder(str(directory)), ["good film"])
    write_modules(directory, "Transformer", "Pooling")
    vectors, _ = encoders.encode(encoders.read_text_encoder(str(directory)), ["good film"])
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors), unit, rtol=1e-5)
    assert abs(np.linalg.norm(vectors) - 1) > 0.1


def test_capitals_are_kept_where_the_tokenizer_keeps_them(directory):
    unknown, good = VOCABULARY.index("[UNK]"), VOCABULARY.index("good")
    for content, second in (({}, good), ({"do_lower_case": True}, good), ({"do_lower_case": False}, unknown)):
        (directory / "tokenizer_config.json").write_text(json.dumps(content))
        tokens = encoders.read_text_encoder(str(directory)).tokenize(["good Good"]).tokens
        assert tokens["ids"][0, 1:3].tolist() == [good, second]


def test_vocab_is_taken_where_the_hub_has_no_tokenizer(directory, monkeypatch):
    texts, asked = ["good film"], []

    def search(repo, revision, file):
        asked.append(file)
        return directory / file if (directory / file).is_file() else None

    monkeypatch.setattr(weight_files, "search_hub", search)
    vectors, _ = encoders.encode(encoders.read_text_encoder(f"owner/tiny@{40 * '0'}"), texts)
    np.testing.assert_array_equal(vectors, encoders.encode(encoders.read_text_encoder(str(directory)), texts)[0])
    assert asked.index("tokenizer.json") < asked.index("vocab.txt")
    (directory / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"--text-encoder: found no tokenizer\.json or vocab\.txt in owner/tiny@0"):
        encoders.read_text_encoder(f"owner/tiny@{40 * '0'}")


def test_other_heads_of_the_same_weights_are_other_vectors(directory):
    texts, vectors = ["good film", "bad old film"], []
    for heads in (TINY.heads, 2):
        (directory / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": heads}))
        vectors.append(encoders.encode(encoders.read_text_encoder(str(directory)), texts)[0])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "vocab.txt").unlink(), "no tokenizer.json or vocab.txt in"),
        (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors in"),
        (lambda path: (path / "config.json").write_text("{"), "damaged"),
        (lambda path: (path / "config.json").write_text('{"model_type": "roberta"}'), "model_type 'roberta'"),
        (lambda path: (path / "config.json").write_text('{"model_type": "bert"}'), "found no 'hidden_size'"),
        (
            lambda path: (path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 9})),
            "Are these the weights of another architecture",
        ),
        (
            lambda path: (path / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu_new"})),
            "activation 'gelu_new', expected bert or distilbert with gelu",
        ),
        (
            lambda path: (path / "config.json").write_text(
                json.dumps(CONFIG | {"position_embedding_type": "relative_key"})
            ),
            "found position_embedding_type 'relative_key', expected absolute",
        ),
        (lambda path: (path / "config.json").write_text("[]"), "found list, expected a JSON object"),
        (
            lambda path: write_pooling(path, pooling_mode_max_tokens=True),
            "found pooling by max, expected mean or cls",
        ),
        (
            lambda path: write_pooling(path, pooling_mode_mean_tokens=True, pooling_mode_cls_token=True),
            "found pooling by mean and cls",
        ),
        (lambda path: write_pooling(path), "found pooling by nothing"),
        (
            lambda path: write_modules(path, "Transformer", "Pooling", "LSTM"),
            "found modules Transformer, Pooling, LSTM, expected Transformer in the directory itself, Pooling",
        ),
        (lambda path: write_modules(path, "Transformer", "Pooling", "Dense"), "found no 2_Dense/config.json"),
        (
            lambda path: write_modules(path, "Transformer", "Pooling", "Dense", dense={"activation_function": "SiLU"}),
            "found activation SiLU, expected one of Identity, Tanh",
        ),
        (
            lambda path: write_modules(path, "Transformer", "Pooling", "Dense", dense={"out_features": 3}),
            "Are these the weights of another architecture",
        ),
        (lambda path: (path / "modules.json").write_text("{}"), "found dict, expected a JSON array"),
        (lambda path: (path / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: damaged"),
        (lambda path: (path / "model.safetensors").write_bytes(b"12"), "truncated"),
    ],
)
def test_what_is_wrong_with_the_files_is_named(directory, change, message):
    change(directory)
    with pytest.raises(ValueError, match=f"--text-encoder: .*{message}"):
        encoders.read_text_encoder(str(directory))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no such", "expected a directory, or OWNER/NAME@REVISION"),
        ("owner/name", "expected owner/name@ and the 40 digits"),
        ("owner/name@main", "revision: found 'main', expected the 40 digits"),
    ],
)
def test_an_id_of_the_hub_needs_a_commit(source, message):
    with pytest.raises(ValueError, match=f"--text-encoder: .*{message}"):
        encoders.read_text_encoder(source)


def test_packages_that_are_missing_are_named_with_their_extra(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"--text-encoder: .*pip install 'd3mjax\[hub\]'"):
        encoders.read_text_encoder(str(directory))


def test_an_encoder_needs_text(directory, tables):
    frames = {name: frame.drop(columns="review") for name, frame in tables.items()}
    kinds = columns.infer({"--train": frames["train"]}, categorical=(), text=(), dropped={})
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
    expected, _ = resnet_features(
        SMALL, resnet_tensors(SMALL), normalise((255 * pixels).round().astype(np.uint8)), train=False
    )
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
    monkeypatch.setattr(encoders, "BLOCK", 32)
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
