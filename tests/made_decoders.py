"""A language model of two blocks with random weights, as a GGUF file and as a folder of the hub."""

import json
from pathlib import Path

import made_gguf
import numpy as np
import published_decoders as published
from safetensors.numpy import save_file

from d3mjax.data import prompts
from d3mjax.networks.decoders import LlamaConfig

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()ĠĊ"
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "th", "the", "Ġa", "in"]
MERGES = ["t h", "th e", "Ġ a", "i n"]
CONFIG = LlamaConfig(len(WORDS), 8, 2, 4, 2, 10, 64, 100.0)


def metadata(config: LlamaConfig = CONFIG, words: list[str] = WORDS) -> dict:
    """What llama.cpp writes beside the tensors; control tokens have a bar."""
    sizes = {"block_count": config.blocks, "context_length": config.positions, "embedding_length": config.width}
    sizes |= {"feed_forward_length": config.inner, "attention.head_count": config.heads}
    sizes |= {"attention.head_count_kv": config.key_heads, "rope.freq_base": config.base}
    sizes |= {"attention.layer_norm_rms_epsilon": config.epsilon}
    of_words = {"model": "gpt2", "pre": "smollm", "tokens": words, "merges": MERGES}
    of_words |= {"token_type": [3 if "|" in word else 1 for word in words]}
    named = {f"llama.{name}": value for name, value in sizes.items()}
    return {"general.architecture": "llama", **named, **{f"tokenizer.ggml.{k}": v for k, v in of_words.items()}}


def write_gguf(path: Path, config: LlamaConfig = CONFIG) -> Path:
    """One file, in the layout of the published one of SmolLM2, in float32."""
    tensors = published.in_gguf(config, small_tensors(config))
    return made_gguf.write(path, metadata(config), made_gguf.floats(tensors))


def write_folder(folder: Path, config: LlamaConfig = CONFIG) -> Path:
    """``config.json``, ``tokenizer.json`` and the weights in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model_type": "llama", "vocab_size": config.vocabulary, "hidden_size": config.width}
    facts |= {"num_hidden_layers": config.blocks, "num_attention_heads": config.heads}
    facts |= {"num_key_value_heads": config.key_heads, "intermediate_size": config.inner}
    facts |= {"max_position_embeddings": config.positions, "rope_theta": config.base}
    facts |= {"rms_norm_eps": config.epsilon, "tie_word_embeddings": config.tied}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    tokenizer = prompts.tokenizer_of_gguf(metadata(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    tensors = list(small_tensors(config).items())
    for part in range(2):
        save_file(dict(tensors[part::2]), folder / f"model-{part + 1}-of-2.safetensors")
    return folder


def small_tensors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """Random weights, a third of the usual size, so that log-probabilities are near those of a uniform guess."""
    tensors = published.tensors(config)
    return {name: a if a.ndim == 1 else (a / 3).astype(np.float32) for name, a in tensors.items()}
