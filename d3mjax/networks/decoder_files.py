"""Published files of Llama and GPT-2 as configs and variables of `decoders`: sizes, names of tensors, layouts.

Safetensors have the names of the transformers library; GGUF has those of llama.cpp, which stores the rows of queries
and keys in another order: a plane that rotary positions turn is two neighbours there, and i with ``i + e/2`` here.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import PyTree

from d3mjax.networks import weights
from d3mjax.networks.decoders import Config, Gpt2Config, LlamaConfig
from d3mjax.networks.weights import Rule, transposed
from d3mjax.types import Model

_LLAMA = {  # ours: in safetensors, in GGUF
    "query": ("self_attn.q_proj", "attn_q"),
    "key": ("self_attn.k_proj", "attn_k"),
    "value": ("self_attn.v_proj", "attn_v"),
    "output": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
    "attention_norm": ("input_layernorm", "attn_norm"),
    "inner_norm": ("post_attention_layernorm", "ffn_norm"),
}
_GPT2 = {  # ours: in safetensors, in GGUF
    "attention": ("attn.c_attn", "attn_qkv"),
    "output": ("attn.c_proj", "attn_output"),
    "up": ("mlp.c_fc", "ffn_up"),
    "down": ("mlp.c_proj", "ffn_down"),
    "attention_norm": ("ln_1", "attn_norm"),
    "inner_norm": ("ln_2", "ffn_norm"),
}
_LLAMA_TABLES = {
    "words": ("model.embed_tokens", "token_embd"),
    "unembeddings": ("lm_head", "output"),
    "norm/scale": ("model.norm", "output_norm"),
}
_GPT2_TABLES = {"words": ("wte", "token_embd"), "positions": ("wpe", "position_embd")}
_GPT2_NORM = ("ln_f", "output_norm")


def config_of_json(facts: Mapping[str, Any]) -> Config:
    """Config of a ``config.json`` of the hub, of ``model_type`` llama or gpt2.

    Raises:
      ValueError: another ``model_type``, or options that are not computed here, such as biases of attention.
    """
    kind = facts.get("model_type")
    if kind == "gpt2":
        _check(facts, {"activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": False})
        sizes = tuple(facts[name] for name in ("vocab_size", "n_embd", "n_layer", "n_head"))
        inner = facts.get("n_inner") or 4 * facts["n_embd"]
        return Gpt2Config(*sizes, inner=inner, positions=facts["n_positions"], epsilon=facts["layer_norm_epsilon"])
    if kind != "llama":
        raise ValueError(f"model_type: found {kind!r}, expected llama or gpt2")
    _check(facts, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
    sizes = tuple(facts[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))
    _check(facts, {"head_dim": facts["hidden_size"] // facts["num_attention_heads"]})
    rotary = {"rope_theta": facts.get("rope_theta", 10_000.0), **(facts.get("rope_scaling") or {})}
    rotary |= facts.get("rope_parameters") or {}
    size = facts["hidden_size"] // facts["num_attention_heads"]
    return LlamaConfig(
        *sizes,
        key_heads=facts.get("num_key_value_heads") or facts["num_attention_heads"],
        inner=facts["intermediate_size"],
        positions=facts["max_position_embeddings"],
        base=float(rotary["rope_theta"]),
        stretch=_stretch(rotary, size // 2),
        epsilon=facts["rms_norm_eps"],
        tied=facts.get("tie_word_embeddings", False),
    )


def config_of_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
    """Config of a GGUF file, of architecture llama or gpt2; ``tensors`` by name, which tell whether words are tied.

    Raises:
      ValueError: another architecture, or options that are not computed here, such as biases of attention.
    """
    kind = metadata.get("general.architecture")
    if kind not in ("llama", "gpt2"):
        raise ValueError(f"general.architecture: found {kind!r}, expected llama or gpt2")
    read = lambda name, *default: metadata.get(f"{kind}.{name}", *default)
    heads, width = read("attention.head_count"), read("embedding_length")
    sizes = (len(tensors["token_embd.weight"]), width, read("block_count"), heads)
    if kind == "gpt2":
        epsilon = read("attention.layer_norm_epsilon")
        return Gpt2Config(*sizes, read("feed_forward_length"), read("context_length"), epsilon)
    _check(metadata, {"llama.rope.scaling.type": "none", "llama.rope.dimension_count": width // heads})
    return LlamaConfig(
        *sizes,
        key_heads=read("attention.head_count_kv", heads),
        inner=read("feed_forward_length"),
        positions=read("context_length"),
        base=float(read("rope.freq_base", 10_000.0)),
        stretch=tuple(tensors.get("rope_freqs.weight", np.zeros(0)).tolist()),
        epsilon=read("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in tensors,
    )


def _stretch(rotary: Mapping[str, Any], planes: int) -> tuple[float, ...]:
    """Of Llama 3.1 on: wavelengths beyond the positions of the pretraining grow by a factor, short ones do not."""
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return ()
    if kind != "llama3":
        raise ValueError(f"rope_type: found {kind!r}, expected default or llama3")
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    waves = 2 * np.pi * rotary["rope_theta"] ** (np.arange(planes) / planes)
    short = np.clip((rotary["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return tuple((1 / ((1 - short) / rotary["factor"] + short)).tolist())


def _check(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if (found := facts.get(name, value)) != value:
            raise ValueError(f"{name}: found {found!r}, expected {value!r}: other decoders are not computed here")


def from_published(model: Model, tensors: Mapping[str, np.ndarray], config: Config) -> PyTree[np.ndarray]:
    """Variables of ``model``, any of `decoders`, from the tensors of a safetensors or GGUF file of ``config``.

    Raises as `weights.convert`.
    """
    tokens = {"ids": np.zeros((1, 2), np.int32)} | {name: np.ones((1, 2), bool) for name in ("mask", "response")}
    return weights.convert(tensors, weights.shapes(model, tokens), rules(config))


def rules(config: Config) -> list[Rule]:
    """From names of tensors, in safetensors and in GGUF, to paths of ours."""
    return _llama_rules(config) if isinstance(config, LlamaConfig) else _gpt2_rules()


def _llama_rules(config: LlamaConfig) -> list[Rule]:
    made = [Rule(r".*rotary_emb\.inv_freq|rope_freqs\.weight", None)]
    for path, names in _LLAMA_TABLES.items():
        for name in names:
            dropped = config.tied and path == "unembeddings"  # a copy of the words
            made.append(Rule(rf"{re.escape(name)}\.weight", None if dropped else f"params/{path}"))
    for part, (safe, gguf) in _LLAMA.items():
        leaf, layout = ("scale", weights.unchanged) if part.endswith("norm") else ("kernel", transposed)
        heads = {"query": config.heads, "key": config.key_heads}.get(part)
        path = rf"params/block_\1/{part}/{leaf}"
        made.append(Rule(rf"model\.layers\.(\d+)\.{re.escape(safe)}\.weight", path, layout))
        layout = partial(_from_neighbours, heads=heads) if heads else layout
        made.append(Rule(rf"blk\.(\d+)\.{gguf}\.weight", path, layout))
    return made


def _gpt2_rules() -> list[Rule]:
    made = [Rule(r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias|lm_head\.weight|output\.weight", None)]
    prefix = r"(?:transformer\.)?"
    for path, names in _GPT2_TABLES.items():
        made += [Rule(rf"{prefix}{name}\.weight", f"params/{path}") for name in names]
    for name in _GPT2_NORM:
        made += [
            Rule(rf"{prefix}{name}\.weight", "params/norm/scale"),
            Rule(rf"{prefix}{name}\.bias", "params/norm/bias"),
        ]
    for part, (safe, gguf) in _GPT2.items():
        leaf = "scale" if part.endswith("norm") else "kernel"
        path = rf"params/block_\1/{part}"
        safe, gguf = rf"{prefix}h\.(\d+)\.{re.escape(safe)}", rf"blk\.(\d+)\.{gguf}"
        made += [Rule(rf"{name}\.bias", f"{path}/bias") for name in (safe, gguf)]
        made.append(Rule(rf"{safe}\.weight", f"{path}/{leaf}"))  # [in out] already
        made.append(Rule(rf"{gguf}\.weight", f"{path}/{leaf}", transposed))
    return made


def _from_neighbours(tensor: np.ndarray, *, heads: int) -> np.ndarray:
    """Rows of queries or keys ``[heads e, in]`` of GGUF, neighbours being a plane, as a kernel ``[in, heads e]``."""
    rows, inputs = tensor.shape
    by_plane = tensor.reshape(heads, rows // heads // 2, 2, inputs)
    return by_plane.swapaxes(1, 2).reshape(rows, inputs).T
