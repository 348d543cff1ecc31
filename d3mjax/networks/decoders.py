"""Llama and GPT-2: decoders of text whose published weights convert to variables of ours (`decoder_files`).

Tokens are a dict ``{"ids": Int32[b T], "mask": Bool[b T], "response": Bool[b T]}``, padded on the right: positions in
the vocabulary, True where there is a token, and True for tokens whose log-probability counts; that of the first token
never does. No token reads later ones, so padding changes nothing. `decoder` gives states, `log_probs` one number a
text, `logits` those of every next token. `lower` and the option ``block`` of the others divide a network at a block, so
that the states of frozen blocks are computed once and kept. Parameters are float32; ``dtype=jnp.bfloat16`` of a config
computes in bfloat16, log-probabilities in float32.
Sources: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Touvron et al., "LLaMA", 2023; Su
et al., "RoFormer", 2021; Ainslie et al., "GQA", 2023; Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int

from d3mjax.linalg.products import LARGEST, by_rows
from d3mjax.networks.adapt import from_linen
from d3mjax.types import AnyArray, Model, checked_names

Tokens = Mapping[str, AnyArray]


@checked_names
class LlamaConfig(NamedTuple):
    """Sizes of a Llama: RMS norms before the layers, rotary positions, grouped heads, SwiGLU, no biases."""

    vocabulary: int = 49_152
    width: int = 576
    blocks: int = 30
    heads: int = 9
    key_heads: int = 3  # heads of keys and values, each for heads / key_heads of queries
    inner: int = 1536
    positions: int = 8192  # tokens at most
    base: float = 100_000.0  # of the wavelengths of rotary positions
    epsilon: float = 1e-5  # of norms
    stretch: tuple[float, ...] = ()  # of the wavelengths, by plane; none: 1 for all
    tied: bool = True  # the embeddings of words are the weights of the logits, too
    dtype: Any = jnp.float32  # of the computation; parameters are float32


@checked_names
class Gpt2Config(NamedTuple):
    """Sizes of a GPT-2: layer norms before the layers, learned positions, the GELU by tanh, tied embeddings."""

    vocabulary: int = 50_257
    width: int = 768
    blocks: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 1024
    epsilon: float = 1e-5
    dtype: Any = jnp.float32


Config = LlamaConfig | Gpt2Config
SMOLLM2_135M = LlamaConfig()
"""SmolLM2-135M: 134.5 million parameters."""
LLAMA_1B = LlamaConfig(128_256, 2048, 16, 32, 8, 8192, 131_072, 500_000.0)
"""Sizes of Llama-3.2-1B."""
LLAMA_8B = LlamaConfig(128_256, 4096, 32, 32, 8, 14_336, 8192, 500_000.0, tied=False)
"""Llama-3-8B: 8.03 billion parameters."""
GPT2 = Gpt2Config()
"""gpt2: 124.4 million parameters."""
_WORDS = 4 * LARGEST  # columns of a product of few rows
_WIDENS, _NARROWS = r"\['(?:query|key|value|attention|gate|up)'\]", r"\['(?:output|down)'\]"
_SPLITS = {  # the axis that is split, by the path of a parameter or of one of its adapters
    rf"{_WIDENS}\['kernel'\](?:\.B)?$": 1,
    rf"{_WIDENS}\['bias'\]$": 0,
    rf"{_NARROWS}\['kernel'\](?:\.A)?$": 0,
    r"\['(?:words|unembeddings)'\]$": 0,
}


class _LlamaBlock(linen.Module):
    config: LlamaConfig

    @linen.compact
    def __call__(self, x: Float[Array, "b T d"]) -> Float[Array, "b T d"]:
        config = self.config
        dense = partial(_dense, config, biased=False)
        size = config.width // config.heads
        normed = _norm(config, "attention_norm")(x)
        by_head = lambda name, heads: dense(heads * size, name)(normed).reshape(*x.shape[:2], heads, size)
        query, key = by_head("query", config.heads), by_head("key", config.key_heads)
        value = by_head("value", config.key_heads)
        attended = _attention(_rotated(query, config), _rotated(key, config), value)
        x += dense(config.width, "output")(attended.reshape(*x.shape[:2], -1))
        normed = _norm(config, "inner_norm")(x)
        inner = jax.nn.silu(dense(config.inner, "gate")(normed)) * dense(config.inner, "up")(normed)
        return x + dense(config.width, "down")(inner)


class _Gpt2Block(linen.Module):
    config: Gpt2Config

    @linen.compact
    def __call__(self, x: Float[Array, "b T d"]) -> Float[Array, "b T d"]:
        config = self.config
        dense = partial(_dense, config, biased=True)
        of_heads = dense(3 * config.width, "attention")(_norm(config, "attention_norm")(x))
        query, key, value = jnp.split(of_heads.reshape(*x.shape[:2], 3 * config.heads, -1), 3, axis=2)
        x += dense(config.width, "output")(_attention(query, key, value).reshape(x.shape))
        inner = jax.nn.gelu(dense(config.inner, "up")(_norm(config, "inner_norm")(x)), approximate=True)
        return x + dense(config.width, "down")(inner)


class _Decoder(linen.Module):
    """Blocks ``first`` to ``last``: from ids if ``first`` is 0, else from states.

    ``read`` makes the result from the states after the final norm, the embeddings that weigh the logits, and the
    tokens; None for the states before the norm.
    """

    config: Config
    first: int
    last: int
    read: Callable[[jax.Array, jax.Array, Any], jax.Array] | None

    @linen.compact
    def __call__(self, x: Tokens) -> jax.Array:
        config = self.config
        tied = isinstance(config, Gpt2Config) or config.tied
        normal = linen.initializers.normal(0.02)
        table = lambda name, rows: jnp.asarray(self.param(name, normal, (rows, config.width)))
        read_at_either_end = not self.first or (self.read and tied)
        words = table("words", config.vocabulary) if read_at_either_end else jnp.zeros((0, config.width))
        if self.first:
            states = jnp.asarray(x["states"], config.dtype)
        else:
            length = x["ids"].shape[1]
            if length > config.positions:
                raise ValueError(f"tokens: found {length} in a text, expected at most {config.positions}")
            states = jnp.take(words, x["ids"], axis=0, mode="clip").astype(config.dtype)
            if isinstance(config, Gpt2Config):
                states += table("positions", config.positions)[None, :length].astype(config.dtype)
        for i in range(self.first, self.last):
            name = f"block_{i}"
            block = _Gpt2Block(config, name=name) if isinstance(config, Gpt2Config) else _LlamaBlock(config, name=name)
            states = block(states)
        if self.read is None:
            return states
        states = _norm(config, "norm")(states)
        return self.read(states, words if tied else table("unembeddings", config.vocabulary), x)


def _dense(config: Config, features: int, name: str, *, biased: bool) -> linen.Dense:
    init = linen.initializers.normal(0.02)
    return linen.Dense(features, use_bias=biased, dtype=config.dtype, kernel_init=init, dot_general=by_rows, name=name)


def _norm(config: Config, name: str) -> linen.Module:
    if isinstance(config, LlamaConfig):
        return linen.RMSNorm(config.epsilon, dtype=config.dtype, name=name)
    return linen.LayerNorm(config.epsilon, dtype=config.dtype, use_fast_variance=False, name=name)


def _attention(
    query: Float[Array, "b T h e"], key: Float[Array, "b T k e"], value: Float[Array, "b T k e"]
) -> Float[Array, "b T h e"]:
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="xla")


def _rotated(x: Float[Array, "b T h e"], config: LlamaConfig) -> Float[Array, "b T h e"]:
    """Numbers i and ``i + e/2`` of every head, as a plane, turned by ``t / (stretch_i base^(2 i / e))`` at token t."""
    half = x.shape[-1] // 2
    slowness = config.base ** (np.arange(half) / half) * np.array(config.stretch or 1.0)
    angles = np.arange(x.shape[1])[:, None] / slowness
    cos, sin = (jnp.asarray(f(angles)[None, :, None], x.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def decoder(config: Config, *, block: int = 0) -> Model:
    """States ``[b T d]`` after the final norm, from tokens; those of padding mean nothing. ``block`` as `log_probs`."""
    return from_linen(_Decoder(config, _checked(config, block), config.blocks, _states))


def logits(config: Config, *, block: int = 0) -> Model:
    """Float32 logits ``[b T C]`` of the token after every token, from tokens: for short texts. As `log_probs`."""
    return from_linen(_Decoder(config, _checked(config, block), config.blocks, _logits))


def log_probs(config: Config, *, block: int = 0, chunk: int = 256, longest: int | None = None) -> Model:
    """Log-probability ``[b]`` of every response: the sum over its tokens of ``log p(token | tokens before)``, in nats.

    Logits of ``chunk`` tokens of responses exist at once, in the reverse pass, too; results do not depend on it.
    ``longest``: tokens of a response at most, beyond which it is NaN; with it gradients of single texts are computed
    without the logits of prompts, as values and gradients of batches always are.

    ``block``: from ``{"states": Float[b T d]}`` of `lower` beside the tokens on, by the blocks from there. Variables
    have the names they have in the whole network (`divided`).
    """
    if chunk < 1 or (longest is not None and longest < 1):
        raise ValueError(f"chunk, longest: found {chunk}, {longest}, expected at least 1")
    read = partial(_sums, chunk=chunk, longest=longest)
    return from_linen(_Decoder(config, _checked(config, block), config.blocks, read))


def lower(config: Config, block: int) -> Model:
    """States ``[b T d]`` after the first ``block`` blocks, from tokens: what the others go on with at ``block``."""
    return from_linen(_Decoder(config, 0, _checked(config, block), None))


def divided(variables: Mapping[str, Any], block: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of a whole network as those of `lower` and those of the rest from ``block`` on.

    Tied embeddings of words are in both.
    """
    params = variables["params"]
    below = {"words", "positions", *(f"block_{i}" for i in range(block))} if block else set()
    only_below = below if "unembeddings" in params else below - {"words"}
    lower = {name: value for name, value in params.items() if name in below}
    return {"params": lower}, {"params": {name: value for name, value in params.items() if name not in only_below}}


def partition(mesh: Mesh, *, axis: str = "model") -> Callable[[str, Any], PartitionSpec]:
    """Return ``rule(path, leaf)`` of `runtime.sharded.spread` for parameters of a decoder, its adapters and optimizers.

    Layers that widen are split by outputs over ``axis``, those that narrow by inputs, embeddings by words; what does
    not divide evenly is on every device. Source: Shoeybi et al., "Megatron-LM", 2019.
    """

    def rule(path: str, leaf: Any) -> PartitionSpec:
        for pattern, split in _SPLITS.items():
            if re.search(pattern, path) and leaf.ndim > split and leaf.shape[split] % mesh.shape[axis] == 0:
                return PartitionSpec(*split * (None,), axis)
        return PartitionSpec()

    return rule


def _checked(config: Config, block: int) -> int:
    if not 0 <= block <= config.blocks:
        raise ValueError(f"block: found {block}, expected 0 to {config.blocks}")
    return block


def _states(states: Float[Array, "b T d"], table: Any, tokens: Tokens) -> Float[Array, "b T d"]:
    return states


def _logits(states: Float[Array, "b T d"], table: Float[Array, "C d"], tokens: Tokens) -> Float32[Array, "b T C"]:
    flat = _scores(states.reshape(-1, states.shape[-1]), table.astype(states.dtype))
    return flat.reshape(*states.shape[:2], -1)


def _sums(
    states: Float[Array, "b T d"], table: Float[Array, "C d"], tokens: Tokens, *, chunk: int, longest: int | None
) -> Float32[Array, "b"]:
    before, ids = states[:, :-1], jnp.asarray(tokens["ids"])[:, 1:]
    counted = jnp.asarray(tokens["response"])[:, 1:]
    length = counted.sum(1)
    if longest is not None and longest < counted.shape[1]:
        order = jnp.argsort(~counted, axis=1, stable=True)[:, :longest]  # tokens of responses come first
        before = jnp.take_along_axis(before, order[:, :, None], axis=1)
        ids, counted = (jnp.take_along_axis(a, order, axis=1) for a in (ids, counted))
    flat = _in_chunks(before.reshape(-1, before.shape[-1]), table, ids.reshape(-1), counted.reshape(-1), chunk)
    sums = flat.reshape(counted.shape).sum(1)
    return sums if longest is None else jnp.where(length > longest, jnp.nan, sums)


def _in_chunks(
    states: Float[Array, "n d"],
    table: Float[Array, "C d"],
    ids: Int[Array, " n"],
    counted: Bool[Array, " n"],
    chunk: int,
) -> Float32[Array, " n"]:
    """Log-probabilities of counted ids, 0 of others; chunks without any cost nothing, for counted ones come first."""
    if not len(ids):  # no text, or none of two tokens
        return jnp.zeros(0, jnp.float32)
    order = jnp.argsort(~counted, stable=True)
    chunk = min(chunk, len(order))
    rows = jnp.pad(order, (0, -len(order) % chunk), mode="edge").reshape(-1, chunk)
    weights = table.astype(states.dtype)

    def of_chunk(rows: Int[Array, " c"]) -> Float32[Array, " c"]:
        some = lambda: _log_probs_of(states[rows], weights, ids[rows])
        return jax.lax.cond(counted[rows[0]], some, lambda: jnp.zeros(chunk, jnp.float32))

    of_rows = jax.lax.map(of_chunk, rows).reshape(-1)[: len(order)]
    return jnp.where(counted, jnp.zeros(len(order), jnp.float32).at[order].set(of_rows, unique_indices=True), 0)


def _scores(states: Float[Array, "n d"], table: Float[Array, "C d"]) -> Float32[Array, "n C"]:
    """Logits; on CPUs for a part of the vocabulary at a time (`linalg.products.LARGEST`)."""
    plain = lambda states, table: jnp.einsum("nd,cd->nc", states, table, preferred_element_type=jnp.float32)

    def in_parts(states: jax.Array, table: jax.Array) -> jax.Array:
        parts = (plain(states, table[i : i + _WORDS]) for i in range(0, len(table), _WORDS))
        return jnp.concatenate(list(parts), axis=1)

    if len(table) <= _WORDS:
        return plain(states, table)
    return jax.lax.platform_dependent(states, table, cpu=in_parts, default=plain)


@jax.custom_jvp
def _log_probs_of(
    states: Float[Array, "c d"], table: Float[Array, "C d"], ids: Int[Array, " c"]
) -> Float32[Array, " c"]:
    scores = _scores(states, table)
    return jnp.take_along_axis(scores, ids[:, None], axis=1, mode="clip")[:, 0] - jax.nn.logsumexp(scores, axis=1)


@partial(_log_probs_of.defjvp, symbolic_zeros=True)
def _log_probs_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Keeps a gradient ``[c d]`` instead of logits ``[c C]``; computes those again if the table is differentiated."""
    (states, table, ids), (states_dot, table_dot, _) = primals, tangents
    if isinstance(states_dot, SymbolicZero):
        states_dot = jnp.zeros_like(states)
    if not isinstance(table_dot, SymbolicZero):
        again = jax.checkpoint(lambda states, table: _log_probs_of.fun(states, table, ids))
        return jax.jvp(again, (states, table), (states_dot, table_dot))
    scores = _scores(states, table)
    normaliser = jax.nn.logsumexp(scores, axis=1)
    shares = jnp.exp(scores - normaliser[:, None]).astype(table.dtype)
    of_ids = jnp.take(table, ids, axis=0, mode="clip").astype(jnp.float32)
    gradient = of_ids - jnp.einsum("tc,cd->td", shares, table, preferred_element_type=jnp.float32)
    value = jnp.take_along_axis(scores, ids[:, None], axis=1, mode="clip")[:, 0] - normaliser
    return value, (gradient * states_dot).sum(1)
