"""Models as users write them: the switch is set in training, state is kept, and evaluation touches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
import user_models
from flax import linen

from d3mjax.commands import user_model
from d3mjax.networks import adapt, modes
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer

# Deprecated in nnx, and users have it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")


def model_of(name):
    return user_model.model_of(getattr(user_models, name), 3)


def split_of():
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3
    return planted.split_of((np.eye(3)[y][:, :2] * 3 + rng.normal(size=(48, 2))).astype(np.float32), y)


def numbers(tree):
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))


@pytest.mark.parametrize("name", user_models.NAMES)
def test_many_models_train_side_by_side_and_evaluation_touches_nothing(name):
    model, split = model_of(name), split_of()
    trainer = make_trainer(model, objectives.cross_entropy(), optax.adam(0.03), sampling.resampled(), batch_size=16)

    @jax.jit
    @jax.vmap
    def fit(key):
        before = trainer.init(key, split.x[:1])
        state, info = trainer.run(before, split, jnp.ones(48), 60)
        logits, after = model.apply(state.variables, split.x)
        noisy, _ = model.apply(state.variables, split.x, train=True)
        return before.variables, state.variables, after, logits, noisy, info.loss

    before, trained, after, logits, noisy, loss = fit(jax.random.split(jax.random.key(0), 2))
    # log(3) is knowing nothing; batches and dropout move a mean over 10 steps by a few hundredths only
    assert np.all(loss[:, -10:].mean(1) < 0.85 * np.log(3)), loss
    assert same(trained, after)
    assert not np.array_equal(logits[0], logits[1])
    switches = name in user_models.DRAWS or (name in user_models.KEEPS and name != "Sows")
    assert np.array_equal(logits, noisy) != switches
    state = [{key: value for key, value in v.items() if key not in ("params", "rngs")} for v in (before, trained)]
    if name in user_models.KEEPS:
        assert not same(*state)
    elif not name.startswith("nnx") and name != "NnxCall":
        assert state[0] == {}


@pytest.mark.parametrize("name", user_models.DRAWS)
def test_each_step_and_each_model_draws_its_own_noise(name):
    model, x = model_of(name), np.tile(split_of().x[:1], (512, 1))
    one, two = (model.init(jax.random.key(i), x[:1]) for i in range(2))
    params = one["params"]
    apply = jax.jit(lambda variables: model.apply({**variables, "params": params}, x, train=True))
    first, after = apply(one)
    second, _ = apply(after)
    other, _ = apply(two)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, apply(one)[0])


def test_streams_are_found_by_name_and_sown_values_are_not_kept():
    x = split_of().x[:1]
    variables = model_of("Inference").init(jax.random.key(0), x)
    assert set(variables) == {"params", "rngs"}
    assert set(variables["rngs"]) == {"noise", "masks"}
    model = model_of("Sows")
    variables = model.init(jax.random.key(0), x)
    assert set(variables) == {"params", "counts"}
    _, after = model.apply(variables, x, train=True)
    assert int(after["counts"]["steps"]) == 1
    assert "rngs" not in model_of("own").init(jax.random.key(0), x)


def test_layers_of_a_scan_draw_apart():
    variables = model_of("Scanned").init(jax.random.key(0), split_of().x[:1])
    assert set(variables["rngs"]) == {"dropout"}
    kernel = variables["params"]["Block_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 16, 16)


def test_a_module_of_nnx_starts_every_model_at_its_parameters():
    model, x = model_of("nnx_module"), split_of().x[:1]
    one, two = (model.init(jax.random.key(i), x) for i in range(2))
    assert same(one["params"], two["params"])
    assert not same(one["state"], two["state"])


class ByText(linen.Module):
    def __call__(self, x, mode="eval"): ...


def test_spellings():
    values = modes.values(("train", "deterministic", "width"), True)
    assert values == {"train": True, "deterministic": False}
    assert modes.values(tuple(values), False) == {"train": False, "deterministic": True}
    assert modes.of_call(lambda x, width=3, *, inference=True: x) == ("inference",)
    assert modes.of_attributes({"train": None, "eval": False, "test": "set", "width": 3}) == ("train", "eval")
    with pytest.raises(ValueError, match="__call__: found the parameter 'mask', expected the features, and a switch"):
        modes.of_call(lambda x, mask, train=False: x)
    with pytest.raises(ValueError, match="__call__: found the parameter 'mode', expected"):
        adapt.from_linen(ByText())
