"""BERT, DistilBERT and MiniLM: encoders of text whose published weights convert to variables of ours.

Tokens are a dict ``{"ids": Int32[b T], "types": Int32[b T], "mask": Bool[b T]}``: positions in the vocabulary, 0 for
the first and 1 for the second sentence of a pair, and True where there is a token; DistilBERT has no types. Blocks are
post-norm with the exact GELU, as published. `encoder` gives states, `sentence_encoder` unit vectors, `classifier`
logits. `lower` and `upper` are the two halves of a network divided at a block, so that the states of frozen blocks are
computed once and kept. Parameters are float32; ``dtype=jnp.bfloat16`` of a config computes in bfloat16.
Sources: Devlin et al., "BERT", 2019; Sanh et al., "DistilBERT", 2019; Wang et al., "MiniLM", 2020; Reimers, Gurevych,
"Sentence-BERT", 2019.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Bool, Float, PyTree

from d3mjax.linalg.products import by_rows
from d3mjax.networks import weights
from d3mjax.networks.adapt import from_linen
from d3mjax.networks.weights import Rule, transposed
from d3mjax.types import AnyArray, Model, checked_names

Tokens = Mapping[str, AnyArray]


@checked_names
class BertConfig(NamedTuple):
    """Sizes of an encoder, and what its classifier applies after the dense layer on the first token."""

    vocabulary: int = 30_522
    width: int = 768
    blocks: int = 12
    heads: int = 12
    inner: int = 3072  # units between the two dense layers of a block
    positions: int = 512  # tokens at most
    types: int = 2  # 0: the network does not read them
    pooled: Callable[[jax.Array], jax.Array] = jnp.tanh
    epsilon: float = 1e-12  # of layer norms
    dtype: Any = jnp.float32  # of the computation; parameters are float32


BERT_BASE = BertConfig()
"""bert-base: 109.5 million parameters with the pooler."""
DISTILBERT = BertConfig(blocks=6, types=0, pooled=jax.nn.relu)
"""distilbert-base: 66.4 million parameters."""
MINILM = BertConfig(width=384, blocks=6, inner=1536)
"""all-MiniLM-L6-v2, a sentence encoder: 22.6 million parameters."""

_DENSE = (("weight", "kernel", transposed), ("bias", "bias", weights.unchanged))
_NORM = (("(?:weight|gamma)", "scale", weights.unchanged), ("(?:bias|beta)", "bias", weights.unchanged))


def _layers(name: str, path: str, parts: Sequence[tuple], *, optional: bool = False) -> list[Rule]:
    """The rules of one layer: the tensors of ``parts``, under a prefix that some files have."""
    full = rf"(?:bert\.|distilbert\.)?{name}"
    return [Rule(rf"{full}\.{tensor}", f"params/{path}/{ours}", layout, optional) for tensor, ours, layout in parts]


_BERT = r"encoder\.layer\.(\d+)\."
_DISTILBERT = r"transformer\.layer\.(\d+)\."
_TABLE = lambda name: ((r"weight", name, weights.unchanged),)
RULES: tuple[Rule, ...] = (
    *_layers(r"embeddings\.word_embeddings", "embeddings", _TABLE("words")),
    *_layers(r"embeddings\.position_embeddings", "embeddings", _TABLE("positions")),
    *_layers(r"embeddings\.token_type_embeddings", "embeddings", _TABLE("types")),
    *_layers(r"embeddings\.LayerNorm", "embeddings/norm", _NORM),
    *_layers(_BERT + r"attention\.self\.(query|key|value)", r"block_\1/\2", _DENSE),
    *_layers(_BERT + r"attention\.output\.dense", r"block_\1/output", _DENSE),
    *_layers(_BERT + r"attention\.output\.LayerNorm", r"block_\1/attention_norm", _NORM),
    *_layers(_BERT + r"intermediate\.dense", r"block_\1/inner", _DENSE),
    *_layers(_BERT + r"output\.dense", r"block_\1/outer", _DENSE),
    *_layers(_BERT + r"output\.LayerNorm", r"block_\1/outer_norm", _NORM),
    *_layers(_DISTILBERT + r"attention\.q_lin", r"block_\1/query", _DENSE),
    *_layers(_DISTILBERT + r"attention\.k_lin", r"block_\1/key", _DENSE),
    *_layers(_DISTILBERT + r"attention\.v_lin", r"block_\1/value", _DENSE),
    *_layers(_DISTILBERT + r"attention\.out_lin", r"block_\1/output", _DENSE),
    *_layers(_DISTILBERT + r"sa_layer_norm", r"block_\1/attention_norm", _NORM),
    *_layers(_DISTILBERT + r"ffn\.lin1", r"block_\1/inner", _DENSE),
    *_layers(_DISTILBERT + r"ffn\.lin2", r"block_\1/outer", _DENSE),
    *_layers(_DISTILBERT + r"output_layer_norm", r"block_\1/outer_norm", _NORM),
    *_layers(r"pooler\.dense", "pooler", _DENSE, optional=True),
    *_layers("pre_classifier", "pooler", _DENSE, optional=True),
    *_layers("classifier", "head", _DENSE, optional=True),
    *_layers(r"(dense_\d+)\.linear", r"\1", _DENSE),
    Rule(r"(?:bert\.|distilbert\.)?embeddings\.position_ids", None),  # 0, 1, 2, ...
    Rule(r"cls\..*|vocab_(?:transform|layer_norm|projector)\..*", None),  # heads of the pretraining
)
"""Names of BERT and DistilBERT files (with ``gamma`` and ``beta`` in old ones) to paths of ours."""


class Dense(NamedTuple):
    """A dense layer after the pooling: width, activation, and whether it has a bias."""

    width: int
    activation: Callable[[jax.Array], jax.Array]
    bias: bool


class _Embeddings(linen.Module):
    config: BertConfig

    @linen.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "b T d"]:
        config, ids = self.config, tokens["ids"]
        if ids.shape[1] > config.positions:
            raise ValueError(f"tokens: found {ids.shape[1]} in a text, expected at most {config.positions}")
        table = lambda name, rows: self.param(name, linen.initializers.normal(0.02), (rows, config.width))
        x = jnp.take(table("words", config.vocabulary), ids, axis=0, mode="clip")
        x += table("positions", config.positions)[None, : ids.shape[1]]
        if config.types:
            x += jnp.take(table("types", config.types), tokens["types"], axis=0, mode="clip")
        return _norm(config, "norm")(x)


class _Block(linen.Module):
    """Attention, then two dense layers; each added to its input, dropped out, and normalised."""

    config: BertConfig
    dropout: float

    @linen.compact
    def __call__(self, x: Float[Array, "b T d"], mask: Bool[AnyArray, "b T"]) -> Float[Array, "b T d"]:
        config = self.config
        dense = lambda features, name: _dense(config, features, name)
        by_head = lambda name: dense(config.width, name)(x).reshape(*x.shape[:2], config.heads, -1)
        query, key, value = (by_head(name) for name in ("query", "key", "value"))
        scores = jnp.einsum("bihd,bjhd->bhij", query, key).astype(jnp.float32) / np.sqrt(query.shape[-1])
        scores = jnp.where(jnp.asarray(mask)[:, None, None], scores, jnp.finfo(jnp.float32).min)
        shares = linen.Dropout(self.dropout)(jax.nn.softmax(scores).astype(config.dtype))
        attended = jnp.einsum("bhij,bjhd->bihd", shares, value).reshape(x.shape)
        attended = linen.Dropout(self.dropout)(dense(config.width, "output")(attended))
        x = _norm(config, "attention_norm")(x + attended)
        inner = jax.nn.gelu(dense(config.inner, "inner")(x), approximate=False)
        outer = linen.Dropout(self.dropout)(dense(config.width, "outer")(inner))
        return _norm(config, "outer_norm")(x + outer)


class _Bert(linen.Module):
    """Blocks ``first`` to ``last``: from tokens if ``first`` is 0, else from states; ``read`` makes the result."""

    config: BertConfig
    first: int
    last: int
    read: Callable[[jax.Array, Any], Any]
    num_classes: int = 0  # 0: no pooler and no head
    dropout: float = 0.0
    dense: tuple[Dense, ...] = ()
    unit: bool = False

    @linen.compact
    def __call__(self, x: Tokens) -> Any:
        config = self.config
        if self.first:
            states = jnp.asarray(x["states"], config.dtype)
        else:
            states = linen.Dropout(self.dropout)(_Embeddings(config, name="embeddings")(x))
        for i in range(self.first, self.last):
            states = _Block(config, self.dropout, name=f"block_{i}")(states, x["mask"])
        if not self.num_classes:
            vectors = self.read(states, x["mask"])
            for i, (width, activation, use_bias) in enumerate(self.dense):
                vectors = activation(linen.Dense(width, use_bias=use_bias, name=f"dense_{i}")(vectors))
            return _unit(vectors) if self.unit else vectors
        pooled = config.pooled(_dense(config, config.width, "pooler")(self.read(states, x["mask"])))
        head = linen.Dense(self.num_classes, kernel_init=linen.initializers.normal(0.02), name="head")
        return head(linen.Dropout(self.dropout)(pooled).astype(jnp.float32))


def _dense(config: BertConfig, features: int, name: str) -> linen.Dense:
    return linen.Dense(
        features, dtype=config.dtype, kernel_init=linen.initializers.normal(0.02), dot_general=by_rows, name=name
    )


def _norm(config: BertConfig, name: str) -> linen.LayerNorm:
    return linen.LayerNorm(config.epsilon, dtype=config.dtype, use_fast_variance=False, name=name)


def _states(states: Float[Array, "b T d"], mask: Bool[AnyArray, "b T"]) -> Float[Array, "b T d"]:
    return states


def first_token(states: Float[Array, "b T d"], mask: Bool[AnyArray, "b T"]) -> Float[Array, "b d"]:
    """State of the first token, ``[CLS]``, of each text."""
    return states[:, 0]


def mean_of_tokens(states: Float[Array, "b T d"], mask: Bool[AnyArray, "b T"]) -> Float[Array, "b d"]:
    """Mean over the tokens of each text, float32."""
    present = jnp.asarray(mask, jnp.float32)[:, :, None]
    return (states.astype(jnp.float32) * present).sum(1) / jnp.maximum(present.sum(1), 1)


def _unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def encoder(config: BertConfig) -> Model:
    """States ``[b T d]`` of the last block, from tokens; those of padding mean nothing."""
    return lower(config, config.blocks)


def sentence_encoder(
    config: BertConfig,
    *,
    pool: Callable[[jax.Array, Any], jax.Array] = mean_of_tokens,
    dense: tuple[Dense, ...] = (),
    unit: bool = True,
) -> Model:
    """Vectors ``[b d]`` of the last states ``[b T d]`` and the mask ``[b T]`` by ``pool``, through layers ``dense``.

    ``pool``: `mean_of_tokens`, as all-MiniLM has it, or `first_token`. ``unit``: vectors are scaled to length 1. The
    tensors of layer i are ``dense_i.linear.weight`` and ``dense_i.linear.bias`` in `from_published`.
    """
    return from_linen(_Bert(config, 0, config.blocks, pool, dense=dense, unit=unit))


def classifier(config: BertConfig, num_classes: int, *, dropout: float = 0.1) -> Model:
    """Logits ``[b C]``: the first token through a dense layer, ``config.pooled``, and a head.

    ``dropout``: the rate in training, of embeddings, attention, both halves of a block, and before the head.
    """
    return upper(config, 0, num_classes, dropout=dropout)


def lower(config: BertConfig, block: int) -> Model:
    """States ``[b T d]`` after the first ``block`` blocks, from tokens: what `upper` of the same block goes on with."""
    return from_linen(_Bert(config, 0, _checked(config, block), _states))


def upper(config: BertConfig, block: int, num_classes: int, *, dropout: float = 0.1) -> Model:
    """The `classifier` from ``block`` on: logits ``[b C]`` from ``{"states": Float[b T d], "mask": Bool[b T]}``.

    Its variables have the names they have in the whole network (`divided`). At block 0 it is the classifier.
    """
    return from_linen(_Bert(config, _checked(config, block), config.blocks, first_token, num_classes, dropout))


def divided(variables: Mapping[str, Any], block: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of a whole network as those of `lower` and those of `upper` at ``block``."""
    params = variables["params"]
    below = ("embeddings", *(f"block_{i}" for i in range(block))) if block else ()
    lower = {name: value for name, value in params.items() if name in below}
    return {"params": lower}, {"params": {name: value for name, value in params.items() if name not in below}}


def _checked(config: BertConfig, block: int) -> int:
    if not 0 <= block <= config.blocks:
        raise ValueError(f"block: found {block}, expected 0 to {config.blocks}")
    return block


def from_published(model: Model, tensors: Mapping[str, np.ndarray], *, fresh: Sequence[str] = ()) -> PyTree[np.ndarray]:
    """Variables of a network of tokens from the tensors of a BERT or DistilBERT file, by `RULES`.

    ``fresh``: parts that are not in the file, or not for these classes, such as ``("head",)`` or
    ``("pooler", "head")``; they are left out, for `adapt.starting_from` to draw. Raises as `weights.convert`.
    """
    tokens = {name: np.zeros((1, 1), np.int32) for name in ("ids", "types")} | {"mask": np.ones((1, 1), bool)}
    shapes = weights.shapes(model, tokens)
    return weights.convert(tensors, shapes, RULES, fresh=[f"params/{name}" for name in fresh])
