"""Sizes and names of published decoders: safetensors and GGUF of one network give the same variables."""

import jax
import numpy as np
import planted
import published_decoders as published
import pytest

from d3mjax.networks import decoder_files, decoders

METADATA = {
    "general.architecture": "llama",
    **{
        "llama.block_count": 2,
        "llama.context_length": 12,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 10,
    },
    **{"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 100.0},
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
JSON: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
JSON |= {"num_key_value_heads": 2, "intermediate_size": 10, "max_position_embeddings": 12, "rope_theta": 100}
JSON |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu", "rope_scaling": None}
GPT2_JSON: dict[str, object] = {
    "model_type": "gpt2",
    "vocab_size": 11,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 10,
}
GPT2_JSON |= {"n_positions": 12, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}


@pytest.mark.parametrize("config", [published.LLAMA, published.UNTIED, published.GPT2])
def test_both_kinds_of_files_give_the_same_variables(config):
    tensors, model = published.tensors(config), decoders.log_probs(config)
    safe = decoder_files.from_published(model, tensors, config)
    planted.equal(decoder_files.from_published(model, published.in_gguf(config, tensors), config), safe)
    shapes = jax.eval_shape(model.init, jax.random.key(0), published.texts(config))
    assert jax.tree.map(np.shape, safe["params"]) == jax.tree.map(lambda leaf: leaf.shape, shapes["params"])


def test_configs_of_files():
    tensors = {"token_embd.weight": np.zeros((11, 8), np.float32)}
    assert decoder_files.config_of_gguf(METADATA, tensors) == published.LLAMA
    untied = tensors | {
        "output.weight": np.zeros((11, 8), np.float32),
        "rope_freqs.weight": np.array([1, 3], np.float32),
    }
    wide = METADATA | {"llama.embedding_length": 16}
    assert decoder_files.config_of_gguf(wide, untied) == published.UNTIED
    assert decoder_files.config_of_json(JSON) == published.LLAMA
    untied = JSON | {"tie_word_embeddings": False, "hidden_size": 16}
    assert decoder_files.config_of_json(untied) == published.UNTIED._replace(stretch=())
    assert decoder_files.config_of_json(GPT2_JSON) == published.GPT2
    of_gpt2 = {"block_count": 2, "context_length": 12, "embedding_length": 8, "feed_forward_length": 10}
    of_gpt2 |= {"attention.head_count": 2, "attention.layer_norm_epsilon": 1e-5}
    metadata = {"general.architecture": "gpt2"} | {f"gpt2.{name}": value for name, value in of_gpt2.items()}
    assert decoder_files.config_of_gguf(metadata, tensors) == published.GPT2


def test_wavelengths_beyond_the_first_positions_are_stretched():
    # Two planes of wavelengths 2 pi and 20 pi; 25 positions hold 25 / 2 pi = 3.98 and .398 of them.
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.2, "high_freq_factor": 0.8}
    scaling |= {"original_max_position_embeddings": 25}
    config = decoder_files.config_of_json(JSON | {"hidden_size": 16, "rope_scaling": scaling})
    assert isinstance(config, decoders.LlamaConfig)
    short = (25 / (20 * np.pi) - 0.2) / 0.6
    np.testing.assert_allclose(config.stretch, [1, 1 / ((1 - short) / 8 + short)], rtol=1e-12)
    long = scaling | {"low_freq_factor": 0.4, "rope_theta": 100.0}
    config = decoder_files.config_of_json(JSON | {"hidden_size": 16, "rope_theta": None, "rope_parameters": long})
    assert isinstance(config, decoders.LlamaConfig)
    np.testing.assert_allclose(config.stretch, [1, 8], rtol=1e-12)
    assert config.base == 100


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model_type": "qwen2"}, "model_type: found 'qwen2', expected llama or gpt2"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type: found 'linear', expected default or llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type: found 'yarn'"),
        ({"attention_bias": True}, "attention_bias: found True, expected False"),
        ({"head_dim": 64}, "head_dim: found 64, expected 2"),
    ],
)
def test_what_is_not_computed_is_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        decoder_files.config_of_json(JSON | facts)


def test_gguf_that_is_not_computed_is_refused():
    tensors = {"token_embd.weight": np.zeros((11, 8), np.float32)}
    with pytest.raises(ValueError, match=r"general\.architecture: found 'gemma', expected llama or gpt2"):
        decoder_files.config_of_gguf({"general.architecture": "gemma"}, tensors)
    with pytest.raises(ValueError, match=r"rope\.scaling\.type: found 'yarn', expected 'none'"):
        decoder_files.config_of_gguf(METADATA | {"llama.rope.scaling.type": "yarn"}, tensors)


def test_weights_of_another_size_are_named():
    model = decoders.log_probs(published.LLAMA)
    tensors = published.tensors(published.LLAMA._replace(vocabulary=12))
    with pytest.raises(ValueError, match=r"has shape \[12 8\], expected finite numbers for params/words \[11 8\]"):
        decoder_files.from_published(model, tensors, published.LLAMA)
