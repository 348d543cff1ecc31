"""Frozen encoders of the face: a planted BERT of random weights, read from published files."""

import json
import sys

import made_encoder
import numpy as np
import pytest
from made_encoder import BIAS, CONFIG, KERNEL, TINY, VOCABULARY, write_modules, write_pooling
from published_weights import bert_states, bert_tensors

import d3mjax
from d3mjax.data import weight_files
from d3mjax.runtime import encoders


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("D3MJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def directory(tmp_path):
    return made_encoder.write(tmp_path / "tiny")


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
    fails = encoder.network.model._replace(apply=lambda *_: pytest.fail("computed again"))
    again, _ = encoders.encode(encoder._replace(network=encoder.network._replace(model=fails)), ["good film", "bad"])
    np.testing.assert_array_equal(again, first)
    monkeypatch.setenv("D3MJAX_CACHE", "off")
    np.testing.assert_array_equal(encoders.encode(encoder, ["good film", "bad"])[0], first)


def test_blocks_of_texts_that_did_not_change_are_read(directory, monkeypatch):
    monkeypatch.setattr(encoders, "BLOCK", 2)
    computed, encoder = [], encoders.read_text_encoder(directory)
    texts = ["good film", "bad", "good film", "old film", "dull film not good", "not"]
    first, _ = encoders.encode(encoder, texts, progress=computed.append)
    assert computed == [2, 2, 1]  # five different texts
    np.testing.assert_array_equal(first[0], first[2])
    seen, apply = [], encoder.network.model.apply
    watched = encoder.network.model._replace(apply=lambda variables, x: seen.append(0) or apply(variables, x))
    network = encoder.network._replace(model=watched)
    again, _ = encoders.encode(encoder._replace(network=network), [*texts[:5], "old", "bad"])
    assert len(seen) == 1  # the last block alone is compiled and computed
    np.testing.assert_array_equal(again[:5], first[:5])
    np.testing.assert_array_equal(again[6], first[1])


def test_nothing_to_encode_is_an_error(directory):
    with pytest.raises(ValueError, match=r"tiny-.*: found nothing to encode"):
        d3mjax.encode_texts(directory, [])


def test_vectors_are_unit_states_of_the_first_token_where_pooling_is_cls(directory):
    texts = ["good film", "bad"]
    mean, _ = encoders.encode(encoders.read_text_encoder(str(directory)), texts)
    write_pooling(directory, pooling_mode_cls_token=True)
    encoder = encoders.read_text_encoder(str(directory))
    vectors, _ = encoders.encode(encoder, texts)
    states = bert_states(TINY, bert_tensors(TINY), encoder.tokenize(texts).tokens)[-1][:, 0]
    np.testing.assert_allclose(vectors, states / np.linalg.norm(states, axis=1, keepdims=True), atol=2e-5)
    write_pooling(directory, pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    np.testing.assert_array_equal(d3mjax.encode_texts(str(directory), texts), mean)


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
    np.testing.assert_array_equal(vectors, d3mjax.encode_texts(str(directory), texts))
    assert asked.index("tokenizer.json") < asked.index("vocab.txt")
    (directory / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"found no tokenizer\.json or vocab\.txt in owner/tiny@0"):
        encoders.read_text_encoder(f"owner/tiny@{40 * '0'}")


def test_other_heads_of_the_same_weights_are_other_vectors(directory):
    texts, vectors = ["good film", "bad old film"], []
    for heads in (TINY.heads, 2):
        (directory / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": heads}))
        vectors.append(d3mjax.encode_texts(str(directory), texts))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


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
        (
            lambda path: write_modules(path, "Transformer", "Pooling", "Dense"),
            "found no 2_Dense/config.json",
        ),
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
    with pytest.raises(ValueError, match=message):
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
    with pytest.raises(ValueError, match=message):
        encoders.read_text_encoder(source)


def test_packages_that_are_missing_are_named_with_their_extra(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r".*pip install 'd3mjax\[hub\]'"):
        encoders.read_text_encoder(str(directory))
