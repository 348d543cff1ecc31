"""A folder as the hub publishes language models: a small Llama of random weights whose tokens are bytes."""

import json
from pathlib import Path

import published_decoders
import tokenizers
from safetensors.numpy import save_file

from d3mjax.networks.decoders import LlamaConfig

BYTES = 256
"""Tokens of the tokenizer, hence the least vocabulary."""


def folder(directory: Path, config: LlamaConfig) -> Path:
    """``config.json``, ``tokenizer.json`` and ``model.safetensors``."""
    directory.mkdir(parents=True)
    facts = {
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "intermediate_size": config.inner,
        "max_position_embeddings": config.positions,
        "rope_theta": config.base,
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
    }
    (directory / "config.json").write_text(json.dumps(facts))
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file(published_decoders.tensors(config), directory / "model.safetensors")
    return directory
