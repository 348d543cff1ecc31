"""Decoders against NumPy oracles that read the same published tensors; causality, padding, chunks, halves."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import published_decoders as published
import pytest

from d3mjax.attribution import gradients
from d3mjax.networks import decoder_files, decoders

CONFIGS = (published.LLAMA, published.UNTIED, published.GPT2)
TERMS = 2 * 20 * published.LLAMA.inner  # layers in a row, times the length of a sum
CONFIG = pytest.mark.parametrize("config", CONFIGS, ids=["llama", "untied", "gpt2"])


def _read(make, config, **options):
    model = make(config, **options)
    return model, decoder_files.from_published(model, published.tensors(config), config)


def _scores(config, tokens, **options):
    model, variables = _read(decoders.log_probs, config, **options)
    return jax.jit(model.apply)(variables, tokens)[0]


@CONFIG
def test_published_tensors_give_the_logits_and_log_probs_of_the_oracle(config):
    tensors, tokens = published.tensors(config), published.texts(config)
    model, variables = _read(decoders.logits, config)
    got, after = model.apply(variables, tokens)
    assert after is variables
    sums = []
    for row, length in enumerate(tokens["mask"].sum(1)):
        ids, counted = tokens["ids"][row, :length], tokens["response"][row, :length]
        expected = published.logits(config, tensors, ids)
        planted.close(got[row, :length], expected, terms=TERMS)
        sums.append(published.log_prob(expected, ids, counted))
    planted.close(_scores(config, tokens), np.array(sums), terms=TERMS)


@CONFIG
def test_no_token_reads_later_ones(config):
    tokens, (model, variables) = published.texts(config), _read(decoders.logits, config)
    changed = dict(tokens, ids=np.where(np.arange(6) < 3, tokens["ids"], (tokens["ids"] + 1) % config.vocabulary))
    one, other = (model.apply(variables, x)[0] for x in (tokens, changed))
    planted.close(one[:, :3], other[:, :3], terms=TERMS)
    assert not np.allclose(one[:, 3:], other[:, 3:])


@CONFIG
def test_padding_and_chunks_and_the_batch_change_nothing(config):
    tokens = published.texts(config)
    whole = _scores(config, tokens)
    padded = {name: np.pad(a, ((0, 1), (0, 3))) for name, a in tokens.items()}  # with a text without tokens
    planted.close(_scores(config, padded), np.append(whole, 0), terms=TERMS)
    for chunk in (1, 2, 1000):
        planted.close(_scores(config, tokens, chunk=chunk), whole, terms=TERMS)
    single = [_scores(config, {name: a[i : i + 1] for name, a in tokens.items()})[0] for i in range(3)]
    planted.close(np.array(single), whole, terms=TERMS)


def test_a_bound_on_the_tokens_of_responses_changes_nothing_but_makes_longer_ones_nan():
    config, tokens = published.LLAMA, published.texts(published.LLAMA)  # responses of 3, 2 and 1 tokens
    whole = _scores(config, tokens)
    planted.close(_scores(config, tokens, longest=3), whole, terms=TERMS)
    planted.close(_scores(config, tokens, longest=2), np.array([np.nan, *whole[1:]]), terms=TERMS)


def test_the_first_token_of_a_text_never_counts():
    tokens = published.texts(published.LLAMA)
    every = dict(tokens, response=tokens["mask"])
    but_first = dict(tokens, response=tokens["mask"] & (np.arange(6) > 0))
    planted.close(_scores(published.LLAMA, every), _scores(published.LLAMA, but_first), terms=TERMS)


def _is_table(path):
    return "words" in path or "unembeddings" in path


@pytest.mark.parametrize(
    ("config", "keep"),
    [
        (published.LLAMA, lambda path: True),
        (published.LLAMA, _is_table),
        (published.UNTIED, lambda path: not _is_table(path)),
    ],
    ids=["all", "tables", "all but tables"],
)
def test_gradients_are_those_of_the_logits_whatever_the_chunk(config, keep):
    config = config._replace(blocks=1)
    tokens, every = published.texts(config), decoders.logits(config)
    by_chunks = decoders.log_probs(config, chunk=4)
    _, variables = _read(decoders.logits, config)

    def sums_of_logits(params, x):
        log_shares = jax.nn.log_softmax(every.apply({"params": params}, x)[0])[:, :-1]
        of_ids = jnp.take_along_axis(log_shares, x["ids"][:, 1:, None], axis=2)[:, :, 0]
        return (of_ids * x["response"][:, 1:]).sum(1)

    def sums(params, x):
        return by_chunks.apply({"params": params}, x)[0]

    def derivatives(sums):
        """Of all texts, of each, and the curvature along the gradient; as functions of the chosen parameters."""
        whole, chosen = gradients.subset(lambda params, x: sums(params, x).sum(), variables["params"], keep)
        of_text = lambda params, x: whole(params, jax.tree.map(lambda a: a[None], x))
        gradient = jax.grad(whole)(chosen, tokens)
        single = jax.vmap(jax.grad(of_text), (None, 0))(chosen, tokens)
        moved = jax.jvp(lambda params: jax.grad(whole)(params, tokens), (chosen,), (gradient,))[1]
        return gradient, single, moved

    got, expected = (jax.jit(lambda sums=sums: derivatives(sums))() for sums in (sums, sums_of_logits))
    for ours, theirs in zip(got, expected, strict=True):
        size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        planted.close(ours, theirs, terms=TERMS, scale=float(size))


@CONFIG
@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_rest_on_the_states_of_the_lower_blocks_is_the_whole(config, block):
    tokens, (_, variables) = published.texts(config), _read(decoders.log_probs, config)
    below, above = decoders.divided(variables, block)
    x = tokens
    if block:
        x = dict(tokens, states=decoders.lower(config, block).apply(below, tokens)[0])
    model = decoders.log_probs(config, block=block)
    planted.close(jax.jit(model.apply)(above, x)[0], _scores(config, tokens), terms=TERMS)
    drawn = model.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, above["params"])


def test_states_are_those_that_the_logits_are_read_off():
    config, tokens = published.UNTIED, published.texts(published.UNTIED)
    tensors = published.tensors(config)
    head = tensors["lm_head.weight"]
    model, variables = _read(decoders.decoder, config)
    states = model.apply(variables, tokens)[0]
    logits, every = _read(decoders.logits, config)
    planted.close(states @ head.T, logits.apply(every, tokens)[0], terms=TERMS)


def test_bfloat16_computes_near_float32_from_float32_parameters():
    tokens = published.texts(published.LLAMA)
    half, exact = (_scores(published.LLAMA._replace(dtype=dtype), tokens) for dtype in (jnp.bfloat16, jnp.float32))
    assert half.dtype == jnp.float32
    assert not np.array_equal(half, exact)
    error = np.abs(half - exact).max()
    assert error < 20 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(exact).max()  # 20 layers in a row


def test_published_sizes():
    tokens = published.texts(published.LLAMA)

    def count(config):  # a network of one block, and what each further block adds
        one, two = (
            jax.eval_shape(decoders.log_probs(config._replace(blocks=blocks)).init, jax.random.key(0), tokens)
            for blocks in (1, 2)
        )
        first, second = (sum(leaf.size for leaf in jax.tree.leaves(shapes)) for shapes in (one, two))
        return first + (config.blocks - 1) * (second - first)

    # Parameters as transformers counts them.
    assert count(decoders.SMOLLM2_135M) == 134_515_008
    assert count(decoders.GPT2) == 124_439_808
    assert count(decoders.LLAMA_1B) == 1_235_814_400
    assert count(decoders.LLAMA_8B) == 8_030_261_248


def test_bad_input_names_what_was_found():
    model = decoders.log_probs(published.LLAMA)
    with pytest.raises(ValueError, match="found 13 in a text, expected at most 12"):
        model.init(jax.random.key(0), published.texts(published.LLAMA, (13, 1)))
    with pytest.raises(ValueError, match="block: found 3, expected 0 to 2"):
        decoders.lower(published.LLAMA, 3)
    with pytest.raises(ValueError, match="chunk, longest: found 0, None, expected at least 1"):
        decoders.log_probs(published.LLAMA, chunk=0)
    with pytest.raises(TypeError, match="such as 'blocks'"):
        decoders.LlamaConfig(**{"block": 3})  # pyright: ignore[reportArgumentType]
