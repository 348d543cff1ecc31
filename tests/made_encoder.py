"""A directory of a tiny text encoder of random weights, as the hub has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from published_weights import bert_tensors
from safetensors.numpy import save_file

from d3mjax.networks.transformers import BertConfig

WORDS = ("good", "bad", "film", "not", "old", "dull")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
TINY = BertConfig(vocabulary=len(VOCABULARY), width=6, blocks=2, heads=3, inner=8, positions=12)
DENSE = {"in_features": 6, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
KERNEL = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
BIAS = np.arange(4, dtype=np.float32)


def config_of(config: BertConfig) -> dict[str, Any]:
    """The ``config.json`` of a BERT."""
    return {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner,
        "max_position_embeddings": config.positions,
        "type_vocab_size": 2,
        "layer_norm_eps": config.epsilon,
    }


CONFIG = config_of(TINY)


def write(path: Path) -> Path:
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


def write_pooling(directory, **modes):
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 6, **modes}))
