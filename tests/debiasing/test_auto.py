"""AUTO-D3M finds the planted groups without their labels, and its columns are those of `sources`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import d3mjax
from d3mjax.attribution import projections, trak
from d3mjax.debiasing import auto, group_weighting, sources

STEPS, CHECKPOINTS = 100, 3
SMOOTH = optax.adam(0.02, eps_root=1e-8)


@pytest.fixture(scope="module")
def setting():
    """Data whose class is so faint that plain training goes by the shortcut, a model, a trainer and checkpoints."""
    data = d3mjax.planted_shortcut(seed=0, train=400, target=200, selection=50, test=50)
    faint = lambda split: split._replace(x=split.x[:, :2] - np.float32(2) * np.stack([split.y, 0 * split.y], 1))
    data = jax.tree.map(np.asarray, d3mjax.Data(*map(faint, data)))
    model = d3mjax.mlp((8,), 2)
    trainer = d3mjax.make_trainer(model, d3mjax.cross_entropy(), SMOOTH, d3mjax.shuffled(), batch_size=50)
    keys = d3mjax.model_keys(jax.random.key(1), np.arange(CHECKPOINTS))
    train_keys, projection_keys = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1))
    return data, model, trainer, auto.train_checkpoints(train_keys, model, trainer, data, STEPS), projection_keys


def options(damping=0.01):
    return trak.Options(projection=projections.sjlt(32), damping=damping, microbatch=20)


def test_the_minority_is_found_without_its_labels(setting):
    data, model, _, checkpoints, _ = setting
    tau = auto.attribute_targets(jax.random.key(2), model, checkpoints, data, options())
    pseudo = auto.split_targets(tau, checkpoints, data.target.y, 2)
    minority = data.target.group % 2 != data.target.y
    assert pseudo.split.all()
    assert ((pseudo.group % 2 == 1) == minority).mean() > 0.85  # three quarters are the majority
    np.testing.assert_array_equal(pseudo.group // 2, data.target.y)


def test_columns_are_those_of_checkpoints_trained_and_attributed_at_once(setting):
    data, model, trainer, checkpoints, keys = setting
    attribution = sources.by_trak(options(), dampings=(10.0,))
    columns = auto.attribute_groups(keys, model, checkpoints, data, 4, attribution)
    at_once = sources.from_checkpoints(
        jax.random.key(1), model, trainer, data, 4, STEPS, attribution, checkpoints=CHECKPOINTS
    )
    np.testing.assert_array_equal(columns.right, at_once.right)
    assert columns.kernel is not None
    assert at_once.kernel is not None
    for a, b in ((columns.columns, at_once.columns), (columns.kernel, at_once.kernel)):
        # Two compiled programs: equal up to the condition of the Gram matrix at damping .01.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_group_columns_are_means_of_the_rows_of_tau(setting):
    data, model, _, checkpoints, _ = setting
    key = jax.random.key(2)
    tau = auto.attribute_targets(key, model, checkpoints, data, options(), damping=0.1)
    keys = d3mjax.model_keys(key, jnp.arange(CHECKPOINTS))
    columns = auto.attribute_groups(keys, model, checkpoints, data, 4, sources.by_trak(options(0.1)))
    member = np.eye(4)[data.target.group]
    expected = tau.T @ (member / member.sum(0))
    np.testing.assert_allclose(columns.columns[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_metagradients_find_the_minority_and_their_means_are_columns(setting):
    data, model, trainer, checkpoints, _ = setting
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(
        d3mjax.model_keys(jax.random.key(1), np.arange(CHECKPOINTS))
    )
    tau = auto.differentiate_targets(keys, model, trainer, data, STEPS)
    pseudo = auto.split_targets(tau, checkpoints, data.target.y, 2)
    minority = data.target.group % 2 != data.target.y
    assert pseudo.split.all()
    assert ((pseudo.group % 2 == 1) == minority).mean() > 0.85
    member = np.eye(4)[data.target.group]
    expected = tau.T @ (member / member.sum(0))
    arguments = (jax.random.key(1), model, trainer, data, 4, STEPS)
    columns = sources.from_metagradients(*arguments, checkpoints=CHECKPOINTS).columns[0]
    # Two compiled programs of the same trainings, in float32.
    np.testing.assert_allclose(columns, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_trainer_without_derivative_is_refused(setting):
    data, model, *_, keys = setting
    adam = d3mjax.make_trainer(model, d3mjax.cross_entropy(), optax.adam(0.02), d3mjax.shuffled(), batch_size=50)
    with pytest.raises(ValueError, match="give Adam eps_root"):
        auto.differentiate_targets(keys, model, adam, data, STEPS)


@pytest.mark.parametrize("factored", [False, True])
def test_columns_of_one_pass_are_those_of_a_pass_for_each_division(setting, factored):
    data, model, _, checkpoints, keys = setting
    t, rng = len(data.target.y), np.random.default_rng(5)
    groups = np.stack([np.where(rng.random(t) < 0.5, data.target.group, -1) for _ in range(3)], axis=1)
    groups[:, 2] = np.where(groups[:, 2] == 1, -1, groups[:, 2])  # a division without one of the groups
    settings = options()._replace(projection=projections.sjlt(32, factored=factored))
    attribution = sources.by_trak(settings, dampings=(10.0,))

    def kernels(group):
        return auto.attribute_kernels(
            keys, model, checkpoints, data._replace(target=data.target._replace(group=group)), 4, attribution
        )

    kernel, factor, _ = kernels(groups)
    assert kernel.shape == (CHECKPOINTS, 2, 400, 12)
    for division in range(3):
        alone, alone_factor, _ = kernels(groups[:, division])
        part = kernel[..., 4 * division : 4 * division + 4]
        # Sums in another order, up to the condition of the Gram matrix at damping .01.
        np.testing.assert_allclose(part, alone, rtol=1e-3, atol=1e-3 * np.nanmax(np.abs(alone)))
        np.testing.assert_allclose(factor, alone_factor, rtol=1e-6)
        assert np.isnan(part[..., 1]).all() == (division == 2)


def test_sums_over_blocks_of_checkpoints_are_the_columns(setting):
    data, model, _, checkpoints, keys = setting
    attribution = sources.by_trak(options(), dampings=(10.0,))
    whole = auto.attribute_groups(keys, model, checkpoints, data, 4, attribution)
    assert whole.kernel is not None
    sums = None
    for a in range(CHECKPOINTS):
        block = jax.tree.map(lambda leaf, a=a: leaf[a : a + 1], checkpoints)
        kernel, factor, _ = auto.attribute_kernels(keys[a : a + 1], model, block, data, 4, attribution)
        sums = sources.add_checkpoints(sums, kernel, factor)
    assert sums is not None
    mean, share = (a / CHECKPOINTS for a in sums)
    expected = np.abs(whole.columns).max()
    np.testing.assert_allclose(mean * share[..., None], whole.columns, rtol=1e-3, atol=1e-3 * expected)
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    each, of_mean = (sources.covariances(a, 1)[:, 0] for a in (whole.kernel, whole.kernel.mean(0, keepdims=True)))
    number = group_weighting.effective_number(each, of_mean[0], weights)
    np.testing.assert_allclose(number, group_weighting.effective_checkpoints(whole.kernel, weights), rtol=1e-4)
