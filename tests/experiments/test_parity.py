"""The comparison with PyTorch, from files that are made here in its layout."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from d3mjax.networks import resnets, transformers
from experiments.bench import parity

TINY = transformers.BertConfig(vocabulary=11, width=6, blocks=1, heads=3, inner=8, positions=7)
TASK = parity.Task("tiny", "bert", TINY, batch=4, length=5)
PATHS = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
LAYERS = {f"block_0/{name}": f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")}
LAYERS |= {"block_0/output": "encoder.layer.0.attention.output.dense", "pooler": "pooler.dense", "head": "classifier"}
LAYERS |= {"block_0/inner": "encoder.layer.0.intermediate.dense", "block_0/outer": "encoder.layer.0.output.dense"}
NORMS = {"embeddings/norm": "embeddings.LayerNorm", "block_0/outer_norm": "encoder.layer.0.output.LayerNorm"}
NORMS |= {"block_0/attention_norm": "encoder.layer.0.attention.output.LayerNorm"}


def _published(params):
    tensors = {f"embeddings.{theirs}.weight": params["embeddings"][ours] for ours, theirs in PATHS.items()}
    for layers, kernel in ((LAYERS, "kernel"), (NORMS, "scale")):
        for path, name in layers.items():
            node = params
            for part in path.split("/"):
                node = node[part]
            tensors |= {f"{name}.weight": np.asarray(node[kernel]).T, f"{name}.bias": node["bias"]}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def exchange(tmp_path):
    """What PyTorch's side writes, computed here by hand-written gradient descent."""
    rng = np.random.default_rng(0)
    x = {"ids": rng.integers(11, size=(4, 5)), "types": rng.integers(2, size=(4, 5)), "mask": np.ones((4, 5), bool)}
    y = np.arange(4) % 3
    tokens = {"ids": x["ids"].astype(np.int32), "types": x["types"].astype(np.int32), "mask": x["mask"]}
    variables = jax.jit(TASK.model.init)(jax.random.key(0), tokens)

    def loss(params):
        logits = TASK.model.apply({"params": params}, tokens)[0]
        return -jax.nn.log_softmax(logits)[np.arange(4), y].mean()

    logits, gradient = TASK.model.apply(variables, tokens)[0], jax.jit(jax.grad(loss))(variables["params"])
    adam = lambda p, g: p - 2e-5 * (g / (abs(g) + 1e-8) + 0.01 * p)
    save_file(_published(variables["params"]), tmp_path / "before.safetensors")
    save_file({**x, "y": y, "logits": np.asarray(logits)}, tmp_path / "batch.safetensors")
    for name, step in {"sgd": lambda p, g: p - 0.01 * g, "adamw": adam}.items():
        after = jax.tree.map(step, variables["params"], gradient)
        save_file(_published(after), tmp_path / f"{name}.safetensors")
    return tmp_path


def test_equal_arithmetic_differs_by_rounding(exchange):
    errors = parity.differences(TASK, exchange)
    assert set(errors) == {"logits", "sgd_step", "adamw_update", "adamw_decay", "adamw_compared"}
    assert errors["adamw_compared"] > 0.25
    parity.check(TASK, errors, rounding=0.0)


def test_another_step_is_an_error(exchange):
    shutil.copy(exchange / "adamw.safetensors", exchange / "sgd.safetensors")
    with pytest.raises(FloatingPointError, match=r"tiny: found differences .*'sgd_step': 5"):
        parity.check(TASK, parity.differences(TASK, exchange), rounding=0.1)
    with pytest.raises(FloatingPointError, match=r"tiny: found differences \{'logits': nan\}"):
        parity.check(TASK, {"logits": float("nan"), "sgd_step": 1e-4}, rounding=0.0)
    parity.check(TASK, {"sgd_step": 0.02}, rounding=0.01)


@pytest.mark.parametrize(
    ("name", "expected", "step"),
    [
        ("adamw_update", 1.0, lambda p, g: p),
        ("adamw_update", 0.9, lambda p, g: p - 1e-1 * 2e-5 * np.sign(g)),
        ("adamw_decay", 0.01, lambda p, g: p - 2e-5 * np.sign(g)),
    ],
)
def test_another_step_of_adamw_is_an_error(name, expected, step):
    rng = np.random.default_rng(0)
    before, gradient = (scale * rng.normal(size=(200, 50)) for scale in (0.2, 0.01))
    after = [before - 0.01 * gradient, before - 2e-5 * (np.sign(gradient) + 0.01 * before), step(before, gradient)]
    trees = [{"kernel": array.astype(np.float32)} for array in (before, *after)]
    errors = parity.adamw_differences(*trees)
    np.testing.assert_allclose(errors[name], expected, rtol=0.05)
    with pytest.raises(FloatingPointError, match=name):
        parity.check(TASK, errors, rounding=0.0)


def test_without_a_gradient_nothing_is_compared_and_that_is_an_error():
    tree = {"kernel": np.ones((2, 3), np.float32)}
    errors = parity.adamw_differences(tree, tree, tree, tree)
    assert errors["adamw_compared"] == 0
    with pytest.raises(FloatingPointError, match="adamw_decay"):
        parity.check(TASK, errors, rounding=0.0)


def test_facts_are_plain_sizes():
    facts = parity.TASKS[1].facts
    assert facts["sizes"]["blocks"] == (3, 4, 6, 3)
    assert parity.TASKS[1].config == resnets.RESNET50
    assert "dtype" not in facts["sizes"]
