"""Encoders against NumPy oracles that read the same published tensors; halves, masks, dropout, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import published_weights as published
import pytest

from d3mjax.networks import transformers
from d3mjax.networks.adapt import starting_from

TINY = published.TINY
TINY_DISTILBERT = TINY._replace(types=0, pooled=jax.nn.relu)
TERMS = 2 * 20 * TINY.inner  # layers in a row, times the length of a sum


def _without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(names)}


@pytest.mark.parametrize("config", [TINY, TINY_DISTILBERT])
def test_published_tensors_give_the_states_and_logits_of_the_oracle(config):
    tensors, tokens = published.bert_tensors(config), published.tokens(config)
    states = published.bert_states(config, tensors, tokens)
    encoder, classifier = transformers.encoder(config), transformers.classifier(config, 3)
    body = _without(tensors, "pooler", "pre_classifier", "classifier")
    got, _ = encoder.apply(transformers.from_published(encoder, body), tokens)
    planted.close(np.where(tokens["mask"][:, :, None], got, 0), states[-1], terms=TERMS)
    variables = transformers.from_published(classifier, tensors)
    logits, after = classifier.apply(variables, tokens)
    planted.close(logits, published.bert_logits(config, tensors, states[-1]), terms=TERMS)
    assert after is variables


@pytest.mark.parametrize("block", [0, 1, 2])
def test_upper_half_on_the_states_of_the_lower_is_the_whole(block):
    tokens, whole = published.tokens(TINY), transformers.classifier(TINY, 3)
    variables = transformers.from_published(whole, published.bert_tensors(TINY))
    lower, upper = transformers.divided(variables, block)
    x = tokens
    if block:
        states, _ = transformers.lower(TINY, block).apply(lower, tokens)
        x = {"states": states, "mask": tokens["mask"]}
    model = transformers.upper(TINY, block, 3)
    planted.close(model.apply(upper, x)[0], whole.apply(variables, tokens)[0], terms=TERMS)
    drawn = model.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, upper["params"])


def test_sentences_are_unit_means_over_their_tokens_whatever_the_padding():
    tokens, model = published.tokens(TINY), transformers.sentence_encoder(TINY)
    tensors = published.bert_tensors(TINY)
    variables = transformers.from_published(model, _without(tensors, "classifier"))  # a pooler is left out
    states = published.bert_states(TINY, tensors, tokens)[-1]
    means = states.sum(1) / tokens["mask"].sum(1, keepdims=True)
    got = model.apply(variables, tokens)[0]
    planted.close(got, means / np.linalg.norm(means, axis=1, keepdims=True), terms=TERMS)
    other = dict(tokens, ids=np.where(tokens["mask"], tokens["ids"], 3))
    planted.equal(model.apply(variables, other)[0], got)
    empty = dict(tokens, mask=np.zeros_like(tokens["mask"]))
    planted.equal(model.apply(variables, empty)[0], np.zeros_like(got))


def test_dropout_in_training_alone_with_a_new_draw_every_step():
    tokens, model = published.tokens(TINY), transformers.classifier(TINY, 3, dropout=0.5)
    variables = model.init(jax.random.key(0), tokens)
    first, after = model.apply(variables, tokens, train=True)
    second, _ = model.apply(after, tokens, train=True)
    assert not np.allclose(first, second)
    planted.equal(model.apply(after, tokens)[0], model.apply(variables, tokens)[0])
    still = transformers.classifier(TINY, 3, dropout=0.0)
    assert "rngs" not in still.init(jax.random.key(0), tokens)
    planted.equal(
        still.apply({"params": variables["params"]}, tokens, train=True)[0], model.apply(variables, tokens)[0]
    )


def test_bfloat16_computes_near_float32_from_float32_parameters():
    tokens, tensors = published.tokens(TINY), published.bert_tensors(TINY)
    half = transformers.classifier(TINY._replace(dtype=jnp.bfloat16), 3)
    variables = transformers.from_published(half, tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    logits, exact = (m.apply(variables, tokens)[0] for m in (half, transformers.classifier(TINY, 3)))
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, exact)
    error = np.asarray(logits - exact)
    assert np.abs(error).max() < 20 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(exact).max()  # 20 layers in a row


def test_published_sizes():
    x = published.tokens(TINY)
    count = lambda model: sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x)))
    # Parameters of BertModel and DistilBertModel as transformers counts them, with the pooler in BERT's.
    assert count(transformers.encoder(transformers.BERT_BASE)) == 109_482_240 - (768 * 768 + 768)
    assert count(transformers.encoder(transformers.DISTILBERT)) == 66_362_880
    assert count(transformers.encoder(transformers.MINILM)) == 22_713_216 - (384 * 384 + 384)


def test_bad_input_names_what_was_found():
    model = transformers.encoder(TINY)
    with pytest.raises(ValueError, match="found 8 in a text, expected at most 7"):
        model.init(jax.random.key(0), published.tokens(TINY, (8, 1)))
    with pytest.raises(ValueError, match="block: found 3, expected 0 to 2"):
        transformers.lower(TINY, 3)
    with pytest.raises(TypeError, match="such as 'blocks'"):
        transformers.BertConfig(**{"block": 3})  # pyright: ignore[reportArgumentType]


def test_a_fresh_head_by_key_on_pretrained_blocks():
    tokens, model = published.tokens(TINY), transformers.classifier(TINY, 2)
    pretrained = transformers.from_published(model, published.bert_tensors(TINY, num_classes=3), fresh=("head",))
    assert "head" not in pretrained["params"]
    started = starting_from(model, pretrained)
    first, second = (started.init(jax.random.key(i), tokens) for i in range(2))
    planted.equal(dict(first["params"], head=None), dict(pretrained["params"], head=None))
    assert not np.array_equal(first["params"]["head"]["kernel"], second["params"]["head"]["kernel"])
    streams = [jax.random.key_data(variables["rngs"]["dropout"]) for variables in (first, second)]
    assert not np.array_equal(streams[0], streams[1])
