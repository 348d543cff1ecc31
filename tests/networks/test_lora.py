"""LoRA on a perceptron and on a decoder: gradients by the chain rule, training, merging, attribution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import published_decoders as published
import pytest
from flax import linen

from d3mjax.attribution import gradients, influence, projections, trak
from d3mjax.networks import adapt, decoder_files, decoders, lora
from d3mjax.networks.dense import mlp
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model

FIRST = lambda path: path == "['Dense_0']['kernel']"
SPLIT = planted.split_of(planted.normal(0, 12, 5), np.arange(12) % 2)
NETWORK = mlp((4,), 2)


def _moved(variables, seed=3):
    """The variables with random adapters, as after training."""
    leaves, tree = jax.tree.flatten(variables["params"])
    drawn = [planted.normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return {**variables, "params": tree.unflatten(drawn)}


def _two_sides(config):
    """A decoder's log-probabilities of two responses as logits, from tokens with an axis of sides."""
    scores = decoders.log_probs(config)
    flat = lambda x: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), x)
    init = lambda key, x: scores.init(key, flat(x))

    def apply(variables, x, *, train=False):
        sums, after = scores.apply(variables, flat(x), train=train)
        return sums.reshape(-1, 2), after

    return Model(init, apply)


def _pairs(config, count):
    tokens = published.texts(config, (6, 3, 5, 2) * (count // 2))
    x = jax.tree.map(lambda a: a.reshape(count, 2, -1), tokens)
    return planted.split_of(x, np.arange(count) % 2)


def test_starts_as_the_network_and_only_adapters_are_parameters():
    model = lora.adapted(NETWORK, FIRST, rank=2)
    variables = model.init(jax.random.key(0), SPLIT.x)
    network = NETWORK.init(jax.random.key(0), SPLIT.x)
    planted.equal(variables["frozen"], network["params"])
    planted.equal(model.apply(variables, SPLIT.x)[0], NETWORK.apply(network, SPLIT.x)[0])
    assert [leaf.shape for leaf in jax.tree.leaves(variables["params"])] == [(5, 2), (2, 4)]


def test_merging_gives_the_same_outputs():
    model = lora.adapted(NETWORK, lambda path: "kernel" in path, rank=1, alpha=3.0)
    variables = _moved(model.init(jax.random.key(0), SPLIT.x))
    outputs, merged = model.apply(variables, SPLIT.x)[0], lora.merged(variables)
    planted.equal(NETWORK.apply(merged, SPLIT.x)[0], outputs)
    adapter = variables["params"]["Dense_1"]["kernel"]
    added = np.asarray(merged["params"]["Dense_1"]["kernel"]) - variables["frozen"]["Dense_1"]["kernel"]
    planted.close(added, 3 * np.outer(adapter.A[:, 0], adapter.B[0]), terms=4)


def test_gradients_are_those_of_the_matrix_by_the_chain_rule():
    model = lora.adapted(NETWORK, FIRST, rank=2, alpha=6.0)
    variables = _moved(model.init(jax.random.key(0), SPLIT.x))
    got = gradients.per_example(gradients.margin_output(model, variables), variables["params"], SPLIT)
    merged = lora.merged(variables)
    of_network = gradients.per_example(gradients.margin_output(NETWORK, merged), merged["params"], SPLIT)
    matrix, adapter = of_network["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"]
    expected = 3 * jnp.einsum("nio,ro->nir", matrix, adapter.B), 3 * jnp.einsum("ir,nio->nro", adapter.A, matrix)
    planted.close(tuple(got["Dense_0"]["kernel"]), expected, terms=20)


def test_training_moves_adapters_alone_and_keeps_state():
    normed = adapt.from_linen(linen.Sequential([linen.Dense(4), linen.BatchNorm(), linen.Dense(2)]))
    model = lora.adapted(normed, lambda path: "kernel" in path, rank=1)
    sampler, loss = sampling.shuffled(), objectives.cross_entropy()
    trainer = make_trainer(model, loss, optax.adam(0.1), sampler, batch_size=12)
    state = trainer.init(jax.random.key(0), SPLIT.x)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert moments == 2 * [leaf.shape for leaf in jax.tree.leaves(state.variables["params"])]
    after, info = trainer.run(state, SPLIT, jnp.ones(12), 30)
    planted.equal(after.variables["frozen"], state.variables["frozen"])
    assert info.loss[-1] < 0.9 * info.loss[0]
    statistics = [variables["batch_stats"]["layers_1"]["mean"] for variables in (state.variables, after.variables)]
    assert not np.array_equal(*statistics)
    assert jax.tree.structure(after.variables) == jax.tree.structure(state.variables)


def test_a_decoder_is_attributed_by_its_adapters_alone():
    config = published.LLAMA._replace(blocks=1)
    network, split = _two_sides(config), _pairs(config, 6)
    pretrained = decoder_files.from_published(decoders.log_probs(config), published.tensors(config), config)
    started = adapt.starting_from(network, pretrained)
    model = lora.adapted(started, lambda path: "['block_0']['output']['kernel']" in path, rank=2)
    variables = _moved(model.init(jax.random.key(0), split.x))
    planted.equal(variables["frozen"], pretrained["params"])

    adapter, matrix = variables["params"]["block_0"]["output"]["kernel"], pretrained["params"]["block_0"]["output"]
    rest = {"lora": variables["lora"], "frozen": variables["frozen"]}

    def explicit(params, x):  # the same function of A and B, written out
        block = dict(pretrained["params"]["block_0"])
        block["output"] = dict(matrix, kernel=matrix["kernel"] + 8 * params[0] @ params[1])
        return network.apply({"params": dict(pretrained["params"], block_0=block)}, x)[0]

    written_out = adapt.from_functions(lambda key, x: tuple(adapter), explicit)
    closed, of_adapters = lora.with_collections(model, rest), {"params": variables["params"]}
    of_tuple = {"params": tuple(adapter)}
    by_trak = partial(trak.scores, options=trak.Options(projection=projections.identity()))
    by_influence = partial(influence.scores, options=influence.Options(damping=0.1))

    def tau(scores, model, variables):
        run = lambda checkpoints: scores(jax.random.key(1), model, checkpoints, split, split).tau
        return jax.jit(run)(jax.tree.map(lambda a: jnp.asarray(a)[None], variables))

    expected = tau(by_trak, written_out, of_tuple)
    assert np.abs(expected).max() > 0
    planted.close(tau(by_trak, model, variables), expected, terms=1000)  # the condition of the solve is about 10
    planted.close(tau(by_trak, closed, of_adapters), expected, terms=1000)
    expected = tau(by_influence, written_out, of_tuple)
    planted.close(tau(by_influence, closed, of_adapters), expected, terms=1000)


def test_the_upper_blocks_are_adapted_on_states_of_the_lower():
    config, tokens = published.LLAMA, published.texts(published.LLAMA)
    whole = decoder_files.from_published(decoders.log_probs(config), published.tensors(config), config)
    below, above = decoders.divided(whole, 1)
    choose = lambda path: "['block_1']" in path and "kernel" in path
    upper = lora.adapted(adapt.starting_from(decoders.log_probs(config, block=1), above), choose, rank=2)
    x = dict(tokens, states=decoders.lower(config, 1).apply(below, tokens)[0])
    variables = _moved(upper.init(jax.random.key(0), x))
    merged = {"params": {**whole["params"], **lora.merged(variables)["params"]}}
    planted.close(upper.apply(variables, x)[0], decoders.log_probs(config).apply(merged, tokens)[0], terms=100)


def test_bad_input_names_what_was_found():
    with pytest.raises(ValueError, match="rank: found 0, expected at least 1"):
        lora.adapted(NETWORK, FIRST, rank=0)
    init = lambda **options: lora.adapted(NETWORK, **options).init(jax.random.key(0), SPLIT.x)
    with pytest.raises(ValueError, match=r"accepts none of the parameters .*Dense_0"):
        init(choose=lambda path: "query" in path)
    with pytest.raises(ValueError, match=r"\['Dense_0'\]\['bias'\] of shape \[4\], expected a matrix with 8 rows"):
        init(choose=lambda path: "bias" in path)
    with pytest.raises(ValueError, match=r"of shape \[5, 4\], expected a matrix with 5 rows"):
        init(choose=FIRST, rank=5)
