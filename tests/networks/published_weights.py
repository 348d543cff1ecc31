"""Tensors in the naming of published files, with random values, and NumPy oracles that read them by those names."""

import math

import numpy as np

from d3mjax.networks.transformers import BertConfig

TINY = BertConfig(vocabulary=11, width=6, blocks=2, heads=3, inner=8, positions=7)
BERT = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"}
BERT |= {"output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"}
BERT |= {"inner": "intermediate.dense", "outer": "output.dense", "outer_norm": "output.LayerNorm"}
DISTILBERT = {"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin"}
DISTILBERT |= {"output": "attention.out_lin", "attention_norm": "sa_layer_norm"}
DISTILBERT |= {"inner": "ffn.lin1", "outer": "ffn.lin2", "outer_norm": "output_layer_norm"}


def is_distilbert(config: BertConfig) -> bool:
    return config.types == 0


def block_names(config: BertConfig, block: int) -> dict[str, str]:
    names, stem = (DISTILBERT, "transformer") if is_distilbert(config) else (BERT, "encoder")
    return {ours: f"{stem}.layer.{block}.{theirs}" for ours, theirs in names.items()}


def bert_tensors(config: BertConfig, num_classes: int = 3, prefix: str = "") -> dict[str, np.ndarray]:
    """A file of ``config`` with pooler and head, float32, all values random."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: (0.5 * rng.normal(size=shape)).astype(np.float32)
    dense = lambda name, i, o: {f"{name}.weight": normal(o, i), f"{name}.bias": normal(o)}
    norm = lambda name: {f"{name}.weight": 1 + normal(config.width), f"{name}.bias": normal(config.width)}
    width, inner = config.width, config.inner
    tables = {"word": config.vocabulary, "position": config.positions, "token_type": config.types}
    body = {f"embeddings.{name}_embeddings.weight": normal(rows, width) for name, rows in tables.items() if rows}
    body |= norm("embeddings.LayerNorm")
    for i in range(config.blocks):
        names = block_names(config, i)
        for name in ("query", "key", "value", "output"):
            body |= dense(names[name], width, width)
        body |= dense(names["inner"], width, inner) | dense(names["outer"], inner, width)
        body |= norm(names["attention_norm"]) | norm(names["outer_norm"])
    pooler = "pre_classifier" if is_distilbert(config) else f"{prefix}pooler.dense"
    tensors = {prefix + name: tensor for name, tensor in body.items()}
    return tensors | dense(pooler, width, width) | dense("classifier", width, num_classes)


def bert_states(config: BertConfig, tensors: dict[str, np.ndarray], tokens: dict[str, np.ndarray]) -> np.ndarray:
    """States after every block ``[blocks + 1, b, T, d]`` in float64, one text and head at a time, padding cut off."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    dense = lambda name, x: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]
    erf = np.vectorize(math.erf)

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.epsilon)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attention(names, x):
        heads = []
        size = config.width // config.heads
        for head in range(config.heads):
            columns = slice(head * size, (head + 1) * size)
            query, key, value = (dense(names[name], x)[:, columns] for name in ("query", "key", "value"))
            shares = np.exp(query @ key.T / math.sqrt(size))
            heads.append(shares / shares.sum(1, keepdims=True) @ value)
        return np.concatenate(heads, axis=1)

    out = np.zeros((config.blocks + 1, *tokens["ids"].shape, config.width))
    for b, mask in enumerate(tokens["mask"]):
        length = mask.sum()
        x = t["embeddings.word_embeddings.weight"][tokens["ids"][b, :length]]
        x = x + t["embeddings.position_embeddings.weight"][:length]
        if config.types:
            x = x + t["embeddings.token_type_embeddings.weight"][tokens["types"][b, :length]]
        x = out[0, b, :length] = norm("embeddings.LayerNorm", x)
        for i in range(config.blocks):
            names = block_names(config, i)
            x = norm(names["attention_norm"], x + dense(names["output"], attention(names, x)))
            inner = dense(names["inner"], x)
            gelu = inner / 2 * (1 + erf(inner / math.sqrt(2)))
            x = out[i + 1, b, :length] = norm(names["outer_norm"], x + dense(names["outer"], gelu))
    return out


def bert_logits(config: BertConfig, tensors: dict[str, np.ndarray], states: np.ndarray) -> np.ndarray:
    """Logits ``[b C]`` from the last states by pooler and head."""
    pooler = "pre_classifier" if is_distilbert(config) else "pooler.dense"
    pooled = states[:, 0] @ tensors[f"{pooler}.weight"].T + tensors[f"{pooler}.bias"]
    pooled = np.maximum(pooled, 0) if is_distilbert(config) else np.tanh(pooled)
    return pooled @ tensors["classifier.weight"].T + tensors["classifier.bias"]


def tokens(config: BertConfig, lengths: tuple[int, ...] = (5, 2, 1)) -> dict[str, np.ndarray]:
    """Random texts of these lengths, padded to the longest."""
    rng = np.random.default_rng(1)
    shape = (len(lengths), max(lengths))
    ids = rng.integers(config.vocabulary, size=shape, dtype=np.int32)
    types = rng.integers(2, size=shape, dtype=np.int32)
    return {"ids": ids, "types": types, "mask": np.arange(shape[1])[None] < np.array(lengths)[:, None]}
