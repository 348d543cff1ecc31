"""The comparison of decoders with PyTorch, from files that are made here in its layout."""

import hashlib
import json
from dataclasses import replace

import jax
import made_gguf
import numpy as np
import published_decoders as published
import pytest
from safetensors.numpy import save_file

from d3mjax.networks import decoder_files, decoders
from experiments import language_models
from experiments.bench import decoders as bench

GPT2 = published.GPT2
JSON = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 10}
JSON |= {"n_positions": 12, "layer_norm_epsilon": 1e-5}
WORDS = ["<|end|>", *"abcdefgh", "ab", "Ġ"]
LLAMA = {
    "general.architecture": "llama",
    **{
        "llama.block_count": 2,
        "llama.context_length": 12,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 10,
    },
    **{"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 100.0},
    **{"llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"},
    **{"tokenizer.ggml.tokens": WORDS, "tokenizer.ggml.token_type": [3, *[1] * 10], "tokenizer.ggml.merges": ["a b"]},
}


def batch_of(config, tensors, tokens):
    """What PyTorch's side writes of a batch, by the oracle."""
    logits = np.zeros((*tokens["ids"].shape, config.vocabulary), np.float32)
    sums = np.zeros(len(logits), np.float32)
    for row, length in enumerate(tokens["mask"].sum(1)):
        ids, counted = tokens["ids"][row, :length], tokens["response"][row, :length]
        of_row = published.logits(config, tensors, ids)
        logits[row, :length], sums[row] = of_row, published.log_prob(of_row, ids, counted)
    return {**tokens, "logits": logits, "sums": sums}


@pytest.fixture
def exchange(tmp_path):
    tensors, tokens = published.tensors(GPT2), published.texts(GPT2)
    model = decoders.log_probs(GPT2)
    params = decoder_files.from_published(model, tensors, GPT2)["params"]
    gradient = jax.jit(jax.grad(lambda params: model.apply({"params": params}, tokens)[0].mean()))(params)
    named = {"wte.weight": gradient["words"], "wpe.weight": gradient["positions"]}
    names = {"h.{}.attn.c_attn": "attention", "h.{}.attn.c_proj": "output", "h.{}.mlp.c_fc": "up"}
    names |= {"h.{}.mlp.c_proj": "down", "h.{}.ln_1": "attention_norm", "h.{}.ln_2": "inner_norm"}
    layers = {name.format(i): gradient[f"block_{i}"][ours] for name, ours in names.items() for i in range(2)}
    for name, layer in {**layers, "ln_f": gradient["norm"]}.items():
        named |= {f"{name}.bias": layer["bias"], f"{name}.weight": layer.get("kernel", layer.get("scale"))}
    (tmp_path / "config.json").write_text(json.dumps(JSON), encoding="utf-8")
    save_file(tensors, tmp_path / "before.safetensors")
    save_file(batch_of(GPT2, tensors, tokens), tmp_path / "batch.safetensors")
    save_file({name: np.asarray(a) for name, a in named.items()}, tmp_path / "gradient.safetensors")
    return tmp_path


def test_equal_arithmetic_differs_by_rounding(exchange):
    errors = bench.differences(exchange)
    assert set(errors) == {"logits", "log_probs", "gradient"}
    bench.check("tiny", errors)


def test_other_weights_are_an_error(exchange):
    save_file(published.tensors(GPT2, seed=1), exchange / "before.safetensors")
    with pytest.raises(FloatingPointError, match=r"tiny: found differences .*'logits'"):
        bench.check("tiny", bench.differences(exchange))
    with pytest.raises(FloatingPointError, match=r"tiny: found differences \{'gradient': nan\}"):
        bench.check("tiny", {"gradient": float("nan"), "logits": 1e-5})


def test_a_file_is_compared_by_values_tokens_and_outputs(tmp_path):
    config = published.LLAMA
    path, texts = tmp_path / "made.gguf", ("abcd", "ef")
    tensors = published.tensors(config)
    in_file = published.in_gguf(config, tensors)
    made_gguf.write(path, LLAMA, made_gguf.floats(in_file))
    tokens, _ = language_models.read(path).encode(["", ""], texts)
    digests = {name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for name, a in in_file.items()}
    save_file(batch_of(config, tensors, tokens), tmp_path / "batch.safetensors")
    (tmp_path / "digests.json").write_text(json.dumps(digests), encoding="utf-8")
    task = bench.Task("tiny", "llama", config, gguf=str(path), texts=texts)
    errors = bench.of_file(task, tmp_path)
    assert (errors["other_values"], errors["other_tokens"]) == (0, 0)
    bench.check("tiny", errors)
    (tmp_path / "digests.json").write_text(json.dumps(digests | {"another": ""}), encoding="utf-8")
    errors = bench.of_file(replace(task, texts=("abcd", "eg")), tmp_path)
    assert (errors["other_values"], errors["other_tokens"]) == (1, 1)


def test_facts_are_plain_sizes():
    facts = bench.TASKS[0].facts
    assert json.loads(json.dumps(facts))["sizes"]["key_heads"] == 3
    assert "dtype" not in facts["sizes"]
