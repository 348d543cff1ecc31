"""The examples of the README and of docs/benchmarks.md run as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import made_decoders
import made_text
import numpy as np
import optax
import published_weights
import pytest
from safetensors.numpy import save_file

import d3mjax
from d3mjax.data.sets import digits
from d3mjax.training import masks

README = Path(__file__).parents[1].joinpath("README.md").read_text()
BENCHMARKS = Path(__file__).parents[1].joinpath("docs", "benchmarks.md").read_text()
EXAMPLES, (ENCODED, DECODED) = (re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in (README, BENCHMARKS))


def run(code, **names):
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_first_example_lifts_the_worst_group_of_coloured_digits():
    data = digits.load_coloured_digits(seed=0, aligned=0.97)
    train = data.train._replace(group=np.full_like(data.train.group, -1))  # it must not look at these
    names = run(EXAMPLES[0], train=train, target=data.target, selection=data.selection, test=data.test)
    result = names["result"]
    before, after = (e.test.min(1).mean() for e in (result.before, result.after))
    assert after > before + 0.1
    assert EXAMPLES[0].count("\n") <= 12


@pytest.fixture(scope="module")
def planted():
    """What the other examples take as given: data, checkpoints, subset masks and a function of margins."""
    data = d3mjax.planted_shortcut(0, train=60, target=24)
    model = d3mjax.mlp((8,), 2)
    trainer = d3mjax.make_trainer(
        model, d3mjax.cross_entropy(), optax.adam(0.02, eps_root=1e-8), d3mjax.shuffled(), batch_size=20
    )
    key = jax.random.key(0)
    checkpoints, _ = d3mjax.train_many(trainer, jax.random.split(key, 2), data.train, np.ones(60), 60)
    halves = masks.fixed_size(key, jnp.arange(16), 60, 30)
    return {
        **{"key": key, "model": model, "trainer": trainer, "train": data.train, "target": data.target},
        **{"checkpoints": checkpoints, "keys": jax.random.split(key, 160), "heldout": jnp.arange(20)},
        "subset_masks": masks.fixed_size(key, jnp.arange(160), 60, 30).astype(jnp.float32),
        "halves": halves,
        "of_halves": np.random.default_rng(0).normal(size=(16, 2, 24)),
        "margins": lambda variables, target: d3mjax.outputs.hard_margins(model, variables, target),
        "d3mjax": d3mjax,
    }


def test_sentences_become_unit_vectors_by_published_files(tmp_path):
    words = made_text.vocabulary(tmp_path / "vocab.txt").read_text().split()
    config = published_weights.TINY._replace(vocabulary=len(words), positions=128)
    tensors = published_weights.bert_tensors(config)
    save_file(tensors, tmp_path / "model.safetensors")
    code = ENCODED.replace("transformers.MINILM", "config").replace("minilm/", f"{tmp_path}/")
    names = run(code, config=config)
    tokens = {name: np.asarray(array) for name, array in names["texts"].items()}
    states = published_weights.bert_states(config, tensors, tokens)[-1]
    mean = np.stack([state[mask].mean(0) for state, mask in zip(states, tokens["mask"], strict=True)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-4)
    assert names["cut"] == 0


def test_a_language_model_prefers_a_response_and_gets_adapters(tmp_path):
    path = made_decoders.write_gguf(tmp_path / "model.gguf")
    names = run(DECODED.replace("SmolLM2-135M-Instruct.Q4_1.gguf", str(path)).replace("rank=8", "rank=2"))
    assert names["nats"].shape == (2,)
    assert np.all(np.asarray(names["nats"]) < 0)
    assert names["cut"] == 0
    shapes = {leaf.shape for leaf in jax.tree.leaves(names["adapters"])}
    assert shapes == {(8, 2), (2, 8)}  # of the queries of both blocks


def test_the_sources_of_attribution_have_the_shapes_that_the_readme_gives(planted):
    names = run(EXAMPLES[1], **planted)
    assert names["tau"].shape == (24, 60)
    assert names["columns"].shape == (60, 4)
    assert names["outputs"].shape == (160, 24)
    assert names["linear"].weight.shape == (24, 60)


def test_models_are_the_same_on_all_devices(planted):
    alone = run(EXAMPLES[1], **planted)["outputs"]
    spread = run(EXAMPLES[2], **planted)["outputs"]
    np.testing.assert_allclose(spread, alone, rtol=1e-3, atol=1e-3)
    assert len(EXAMPLES) == 3
