"""A decoder with parameters over ``model`` and examples over ``data`` computes what one device does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from jax.sharding import AxisType, PartitionSpec

from d3mjax.attribution import projections, trak
from d3mjax.networks import adapt, decoders, lora
from d3mjax.runtime import sharded
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model

LLAMA = decoders.LlamaConfig(16, 16, 2, 4, 2, 24, 16, 100.0)
GPT2 = decoders.Gpt2Config(16, 16, 2, 4, 24, 16)
CHOSEN = lambda path: "['block_1']" in path and "kernel" in path


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def two_logits(config):
    """Log-probability of a text, a token, against 0: a classifier of two classes."""
    scores = decoders.log_probs(config, chunk=8)

    def apply(variables, x, *, train=False):
        sums, after = scores.apply(variables, x, train=train)
        return jnp.stack([jnp.zeros_like(sums), 2 + sums / x["ids"].shape[1]], axis=1), after

    return Model(scores.init, apply)


def texts(count):
    rng = np.random.default_rng(0)
    ids = rng.integers(16, size=(count, 6), dtype=np.int32)
    mask = np.arange(6)[None] < rng.integers(3, 7, size=(count, 1))
    return planted.split_of({"ids": ids, "mask": mask, "response": mask}, np.arange(count) % 2, np.arange(count) % 2)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_parameters_are_split_and_losses_are_those_of_one_device(config, mesh):
    model, split = two_logits(config), texts(8)
    network = jax.jit(model.init)(jax.random.key(0), split.x)
    model = lora.adapted(adapt.starting_from(model, network), CHOSEN, rank=2)
    sampler, loss = sampling.shuffled(), objectives.cross_entropy()
    of = lambda **options: make_trainer(model, loss, optax.adam(0.02), sampler, batch_size=8, **options)
    one, many = of(), of(constrain=sharded.by_example(mesh))
    state = jax.jit(one.init)(jax.random.key(1), split.x)
    split_state = sharded.spread(state, mesh, decoders.partition(mesh))
    frozen, params = (split_state.variables[name] for name in ("frozen", "params"))
    assert frozen["words"].sharding.spec == PartitionSpec("model")
    assert frozen["block_0"]["up"]["kernel"].sharding.spec == PartitionSpec(None, "model")
    assert frozen["block_0"]["down"]["kernel"].sharding.spec == PartitionSpec("model")
    assert params["block_1"]["up"]["kernel"].B.sharding.spec == PartitionSpec(None, "model")
    assert params["block_1"]["down"]["kernel"].A.sharding.spec == PartitionSpec("model")
    assert frozen["norm"]["scale"].sharding.spec == PartitionSpec()
    run = lambda trainer, state: jax.jit(lambda s, d: trainer.run(s, d, jnp.ones(8), 5))(state, split)
    (alone, expected), (together, info) = run(one, state), run(many, split_state)
    assert expected.loss[-1] < expected.loss[0]
    planted.close(info.loss, expected.loss, terms=500)  # 5 steps of some 100 sums
    planted.close(together.variables["params"], alone.variables["params"], terms=5000, scale=0.1)  # Adam divides


@pytest.mark.slow
def test_scores_are_those_of_one_device(mesh):
    model, train, target = two_logits(LLAMA._replace(blocks=1)), texts(10), texts(6)
    variables = jax.jit(model.init)(jax.random.key(0), train.x)
    checkpoints = jax.tree.map(lambda a: a[None], variables)
    rule = decoders.partition(mesh)
    stacked = lambda path, leaf: PartitionSpec(None, *rule(path, leaf[0]))
    split = sharded.spread(checkpoints, mesh, stacked)
    assert split["params"]["words"].sharding.spec == PartitionSpec(None, "model")
    options = trak.Options(projection=projections.rademacher(8), microbatch=2)
    arguments = (train, target, 2)
    expected = trak.group_scores(jax.random.key(1), model, checkpoints, *arguments, options=options)
    got = sharded.group_scores(jax.random.key(1), model, split, *arguments, mesh=mesh, options=options)
    planted.close(got.columns, expected.columns, terms=2000)  # the condition of the solve is about 10


def test_what_does_not_divide_is_on_every_device(mesh):
    rule = decoders.partition(mesh)
    assert rule("['params']['words']", np.zeros((15, 4))) == PartitionSpec()
    assert rule("['block_0']['up']['kernel']", np.zeros((4, 15))) == PartitionSpec()
    assert rule("['block_0']['up']['bias']", np.zeros(16)) == PartitionSpec("model")
    assert rule("['block_0']['attention_norm']['scale']", np.zeros(16)) == PartitionSpec()
