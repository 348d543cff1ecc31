"""Tensors in the naming of published decoders, with random values, and NumPy oracles that read them by those names."""

import math

import numpy as np

from d3mjax.networks.decoders import Config, Gpt2Config, LlamaConfig

LLAMA = LlamaConfig(vocabulary=11, width=8, blocks=2, heads=4, key_heads=2, inner=10, positions=12, base=100.0)
UNTIED = LLAMA._replace(width=16, stretch=(1.0, 3.0), tied=False)
GPT2 = Gpt2Config(vocabulary=11, width=8, blocks=2, heads=2, inner=10, positions=12)

GGUF = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
GGUF |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
GGUF |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
GGUF |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
GGUF |= {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "attn.c_attn": "attn_qkv"}
GGUF |= {"attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "ln_1": "attn_norm"}
GGUF |= {"ln_2": "ffn_norm"}


def tensors(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """A safetensors file of ``config``, float32, all values random."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (0.5 * rng.normal(size=shape)).astype(np.float32)
    width, inner, made = config.width, config.inner, {}
    if isinstance(config, LlamaConfig):
        keys = width // config.heads * config.key_heads
        made |= {"model.embed_tokens.weight": normal(config.vocabulary, width), "model.norm.weight": 1 + normal(width)}
        if not config.tied:
            made["lm_head.weight"] = normal(config.vocabulary, width)
        for i in range(config.blocks):
            shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width)}
            shapes |= {"self_attn.v_proj": (keys, width), "self_attn.o_proj": (width, width)}
            shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
            made |= {f"model.layers.{i}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
            norms = ("input_layernorm", "post_attention_layernorm")
            made |= {f"model.layers.{i}.{name}.weight": 1 + normal(width) for name in norms}
        return made
    made |= {"wte.weight": normal(config.vocabulary, width), "wpe.weight": normal(config.positions, width)}
    dense = lambda name, i, o: {f"{name}.weight": normal(i, o), f"{name}.bias": normal(o)}
    norm = lambda name: {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}
    for i in range(config.blocks):
        made |= dense(f"h.{i}.attn.c_attn", width, 3 * width) | dense(f"h.{i}.attn.c_proj", width, width)
        made |= dense(f"h.{i}.mlp.c_fc", width, inner) | dense(f"h.{i}.mlp.c_proj", inner, width)
        made |= norm(f"h.{i}.ln_1") | norm(f"h.{i}.ln_2")
        made[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, config.positions, config.positions), np.float32))
    return made | norm("ln_f")


def in_gguf(config: Config, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp converts them: other names, planes beside each other, ``[out in]``."""
    made = {}
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        block = next((part for part in stem.split(".") if part.isdigit()), None)
        inner = stem if block is None else stem.split(f"{block}.", 1)[1]
        if inner == "attn":
            continue  # the causal mask
        heads = {"self_attn.q_proj": config.heads, "self_attn.k_proj": getattr(config, "key_heads", 0)}.get(inner)
        if heads:
            size = tensor.shape[0] // heads
            order = [h * size + i + half * size // 2 for h in range(heads) for i in range(size // 2) for half in (0, 1)]
            tensor = tensor[order]
        if inner.split(".")[-1].startswith("c_") and kind == "weight":
            tensor = tensor.T
        made[f"{'' if block is None else f'blk.{block}.'}{GGUF[inner]}.{kind}"] = tensor
    return made


def logits(config: Config, tensors: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Logits ``[T C]`` of one text ``[T]`` in float64, one head and one token at a time."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return _llama(config, t, ids) if isinstance(config, LlamaConfig) else _gpt2(config, t, ids)


def log_prob(logits: np.ndarray, ids: np.ndarray, counted: np.ndarray) -> float:
    """Sum over counted tokens but the first of their log-probability, from the logits ``[T C]`` of the oracle."""
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return sum(math.log(shares[t - 1, ids[t]]) for t in range(1, len(ids)) if counted[t])


def texts(config: Config, lengths: tuple[int, ...] = (6, 3, 2)) -> dict[str, np.ndarray]:
    """Random texts of these lengths, padded to the longest; the second half of each is its response."""
    shape = (len(lengths), max(lengths))
    ids = np.random.default_rng(1).integers(config.vocabulary, size=shape, dtype=np.int32)
    at, ends = np.arange(shape[1])[None], np.array(lengths)[:, None]
    return {"ids": ids, "mask": at < ends, "response": (at >= ends // 2) & (at < ends)}


def _attended(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    rows = []
    for i in range(len(query)):
        shares = np.exp(query[i] @ key[: i + 1].T / math.sqrt(query.shape[1]))
        rows.append(shares / shares.sum() @ value[: i + 1])
    return np.stack(rows)


def _turned(x: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Rotary positions as complex numbers: the two halves of a head are real and imaginary parts."""
    half = x.shape[1] // 2
    planes = x[:, :half] + 1j * x[:, half:]
    stretch = config.stretch or half * (1,)
    wavelengths = np.array([config.base ** (2 * i / x.shape[1]) * stretch[i] for i in range(half)])
    planes = planes * np.exp(1j * np.arange(len(x))[:, None] / wavelengths)
    return np.concatenate([planes.real, planes.imag], axis=1)


def _llama(config: LlamaConfig, t: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    norm = lambda name, x: x / np.sqrt((x**2).mean(1, keepdims=True) + config.epsilon) * t[f"{name}.weight"]
    size, group = config.width // config.heads, config.heads // config.key_heads
    x = t["model.embed_tokens.weight"][ids]
    for i in range(config.blocks):
        name = f"model.layers.{i}"
        dense = lambda part, x, name=name: x @ t[f"{name}.{part}.weight"].T
        normed, heads = norm(f"{name}.input_layernorm", x), []
        query, key, value = (dense(f"self_attn.{part}_proj", normed) for part in "qkv")
        for head in range(config.heads):
            own, shared = (slice(h * size, (h + 1) * size) for h in (head, head // group))
            turned = (_turned(query[:, own], config), _turned(key[:, shared], config))
            heads.append(_attended(*turned, value[:, shared]))
        x = x + dense("self_attn.o_proj", np.concatenate(heads, axis=1))
        normed = norm(f"{name}.post_attention_layernorm", x)
        gate = dense("mlp.gate_proj", normed)
        x = x + dense("mlp.down_proj", gate / (1 + np.exp(-gate)) * dense("mlp.up_proj", normed))
    return norm("model.norm", x) @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


def _gpt2(config: Gpt2Config, t: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    dense = lambda name, x: x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + config.epsilon)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    size = config.width // config.heads
    x = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for i in range(config.blocks):
        parts = np.split(dense(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)), 3, axis=1)
        columns = [slice(head * size, (head + 1) * size) for head in range(config.heads)]
        heads = [_attended(*(part[:, column] for part in parts)) for column in columns]
        x = x + dense(f"h.{i}.attn.c_proj", np.concatenate(heads, axis=1))
        inner = dense(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))
        gelu = inner / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + dense(f"h.{i}.mlp.c_proj", gelu)
    return norm("ln_f", x) @ t["wte.weight"].T
