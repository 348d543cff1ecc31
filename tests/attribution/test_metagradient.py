"""Metagradients against closed forms, finite differences and retraining, in float64; schemes of replay agree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planted import mesh_of

from d3mjax.attribution import effects, gradients, influence, inverses, metagradient, outputs
from d3mjax.networks import dense
from d3mjax.training import objectives, sampling, trainer
from d3mjax.types import Model, Split

pytestmark = pytest.mark.usefixtures("doubles")
KEYS = jax.random.split(jax.random.key(3), 3)
STEPS = 12


def split(n: int, *, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 2, 0.5, 1]
    y = (x @ rng.normal(size=(4, 3)) + rng.normal(size=(n, 3))).argmax(1)
    return Split(x, y, np.arange(n) % 2, np.arange(n))


TRAIN, TARGET = split(23), split(7, seed=1)
ONES = np.ones(len(TRAIN.y))


def smooth(width: int = 5, classes: int = 3) -> Model:
    """A network of one hidden layer with tanh, in float64."""

    def init(key, x):
        first, second = jax.random.split(key)
        shapes = {"in": (jnp.shape(x)[1], width), "out": (width, classes)}
        kernels = {name: jax.random.normal(k, shapes[name], float) for name, k in (("in", first), ("out", second))}
        return {"params": {**kernels, "unused": jnp.zeros(2, float)}}

    def apply(variables, x, *, train=False):
        p = variables["params"]
        return jnp.tanh(x @ p["in"] / 2) @ p["out"], variables

    return Model(init, apply)


MODEL = smooth()


def make(tx, *, model: Model = MODEL, objective: Any = None, batch: int = 6, **options):
    loss = objective or objectives.cross_entropy()
    return trainer.make_trainer(model, loss, tx, sampling.shuffled(), batch_size=batch, **options)


TRANSFORMATIONS = {
    "SGD": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "Adam": optax.adam(0.05, eps_root=1e-6),
    "AdamW, clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05, eps_root=1e-6)),
    "schedule and decay": optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(optax.linear_schedule(0.3, 0, STEPS), momentum=0.9)
    ),
}
MOMENTUM = make(TRANSFORMATIONS["momentum"])


def trained(of, key, factors, *, weights=ONES, train=TRAIN, steps=STEPS):
    """The variables after training under factors of the losses, written without `replay`."""
    state = of.init(key, train.x[:1])
    split, factors = jax.tree.map(jnp.asarray, train), jnp.asarray(factors)
    step = lambda state, draw: of.step(state, split, draw[0], draw[1] * factors[draw[0]])
    return jax.lax.scan(step, state, of.draw(state, jnp.asarray(weights), steps))[0].variables


def margins(variables, model=MODEL, target=TARGET):
    return outputs.soft_margins(model, variables, target)


def attribute(of=MOMENTUM, *, keys=KEYS[:1], model=MODEL, train=TRAIN, weights=None, mesh=None, **fields):
    options = metagradient.Options(**fields)
    tau, info = metagradient.scores(keys, model, of, train, TARGET, STEPS, weights=weights, mesh=mesh, options=options)
    metagradient.check(info)
    return tau


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_equals_finite_differences(name):
    of, step = make(TRANSFORMATIONS[name]), 1e-5
    run = jax.jit(lambda factors: margins(trained(of, KEYS[0], factors)))
    moved = [run(ONES + step * sign * np.eye(23)[i]) for i in (0, 4, 22) for sign in (1, -1)]
    expected = np.stack([(a - b) / (2 * step) for a, b in zip(moved[::2], moved[1::2], strict=True)], 1)
    tau = attribute(of)
    np.testing.assert_allclose(tau[:, [0, 4, 22]], expected, rtol=1e-6, atol=1e-6 * np.abs(tau).max())


def ridge():
    """Least squares by gradient descent on all 23 examples: features, labels, trainer, and the rate a step."""
    x, y = TRAIN.x, TRAIN.x @ np.array([1.0, -2, 0.5, 0]) + np.random.default_rng(2).normal(size=23)
    init = lambda key, x: {"params": jax.random.normal(key, (4,), float)}
    model = Model(init, lambda variables, x, *, train=False: ((x @ variables["params"])[:, None], variables))
    of = lambda steps: make(optax.sgd(0.2), model=model, objective=objectives.squared_error(), batch=23)
    return Split(x, y, TRAIN.group, TRAIN.id), model, of


def test_of_least_squares_is_the_closed_form():
    train, _, of = ridge()
    x, y, eta, steps = train.x, train.y, 0.2, 9
    thetas = [np.asarray(of(steps).init(KEYS[0], x[:1]).variables["params"])]
    for _ in range(steps):
        thetas.append(thetas[-1] - eta * x.T @ (x @ thetas[-1] - y) / 23)
    shrink = np.eye(4) - eta * x.T @ x / 23
    powers = [np.linalg.matrix_power(shrink, steps - 1 - k) for k in range(steps)]
    moves = [p @ (x * (x @ theta - y)[:, None]).T for p, theta in zip(powers, thetas, strict=False)]
    expected = -(eta / 23) * TARGET.x @ sum(moves)
    grads = lambda variables: {"params": jnp.asarray(TARGET.x)}
    rows, info = metagradient.derivatives(KEYS[0], of(steps), train, steps, grads)
    np.testing.assert_allclose(rows, expected, rtol=1e-11, atol=1e-12)
    assert info.losses.shape == (steps,)


def test_of_long_training_is_the_influence_function():
    train, _, of = ridge()
    grads = lambda variables: {"params": jnp.asarray(TARGET.x)}
    rows, _ = metagradient.derivatives(KEYS[0], of(0), train, 3000, grads, options=metagradient.Options(segments=50))
    theta = np.linalg.solve(train.x.T @ train.x, train.x.T @ train.y)
    gradient = train.x * (train.x @ theta - train.y)[:, None]
    expected = -TARGET.x @ np.linalg.solve(train.x.T @ train.x, gradient.T)
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("segments", "width"), [(2, None), (4, 3), (5, 1), (12, 7)])
def test_schemes_agree(segments, width):
    np.testing.assert_allclose(attribute(segments=segments, width=width), attribute(segments=1), rtol=0, atol=1e-12)


def test_memory_decides_on_segments():
    options = metagradient.Options(memory=1000)
    assert [metagradient.segments_of(100, size, options) for size in (10, 11)] == [1, 10]
    np.testing.assert_allclose(attribute(memory=1), attribute(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(devices):
    mesh = mesh_of(devices)
    np.testing.assert_allclose(attribute(keys=KEYS, mesh=mesh), attribute(keys=KEYS), rtol=0, atol=1e-12)
    call = lambda mesh: metagradient.group_scores(KEYS, MODEL, MOMENTUM, TRAIN, TARGET, 2, STEPS, mesh=mesh)
    np.testing.assert_allclose(call(mesh).kernel, call(None).kernel, rtol=0, atol=1e-12)


def test_groups_are_means_of_targets():
    result = metagradient.group_scores(KEYS, MODEL, MOMENTUM, TRAIN, TARGET, 3, STEPS)
    tau = attribute(keys=KEYS)
    means = np.stack([tau[TARGET.group == g].mean(0) for g in range(2)], 1)
    np.testing.assert_allclose(result.columns[:, :2], means, rtol=0, atol=1e-12)
    assert np.isnan(result.columns[:, 2]).all()
    one = metagradient.group_scores(KEYS[1:2], MODEL, MOMENTUM, TRAIN, TARGET, 2, STEPS)
    np.testing.assert_allclose(one.columns, result.kernel[1][:, :2], rtol=0, atol=1e-12)


def test_loss_of_groups_is_the_weighted_sum_of_columns():
    """With softmax weights held constant, one reverse pass through logsumexp is ``B @ w``."""
    losses = lambda variables: jnp.stack(
        [outputs.losses(MODEL, variables, TARGET)[TARGET.group == g].mean() for g in range(2)]
    )
    whole = lambda variables: -jax.nn.logsumexp(3 * losses(variables))[None] / 3
    one, _ = metagradient.derivatives(KEYS[0], MOMENTUM, TRAIN, STEPS, jax.jacrev(whole))
    options = metagradient.Options(target_output=gradients.negative_loss_output)
    result = metagradient.group_scores(KEYS[:1], MODEL, MOMENTUM, TRAIN, TARGET, 2, STEPS, options=options)
    mix = jax.nn.softmax(3 * losses(trained(MOMENTUM, KEYS[0], ONES)))
    np.testing.assert_allclose(result.columns @ mix, one[0], rtol=1e-9, atol=1e-12)


def test_applications_of_datamodels_take_metagradients():
    """Predicted effects are derivatives of the run as sets leave it; supports use up the margins in its tangent."""
    tau, before, step = attribute(), margins(trained(MOMENTUM, KEYS[0], ONES)), 1e-5
    removed = np.stack([effects.largest(tau, 4), effects.largest(-tau, 9)], 1)  # [t k n]
    predicted = effects.predicted_effects(tau, removed)
    run = jax.jit(lambda factors: margins(metagradient.rerun(KEYS[0], MOMENTUM, TRAIN, STEPS, factors)))
    for z, k in ((0, 0), (3, 1), (6, 0)):
        change = (run(ONES - step * removed[z, k]) - run(ONES + step * removed[z, k]))[z] / (2 * step)
        np.testing.assert_allclose(predicted[z, k], change, rtol=1e-6)
    for z, size in enumerate(np.asarray(effects.support_sizes(tau, before))):
        left = lambda count, z=z: before[z] + effects.predicted_effects(tau, effects.largest(tau, count))[z]
        assert size < 1 or left(size) <= 0 < left(size - 1)
    similar, _ = effects.neighbours(tau, TRAIN.id, num=3)
    np.testing.assert_array_equal(similar.id, np.argsort(-tau, 1)[:, :3])


def test_forward_mode_is_the_transpose():
    directions = np.random.default_rng(0).normal(size=(2, 23))
    values, changes = metagradient.along(KEYS[0], MOMENTUM, TRAIN, STEPS, directions, margins)
    np.testing.assert_allclose(changes, directions @ attribute().T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values, margins(trained(MOMENTUM, KEYS[0], ONES)), rtol=1e-9)


def test_examples_without_a_part_have_zero_and_twins_are_equal():
    of = make(TRANSFORMATIONS["momentum"], batch=3)
    steps = 4  # 12 of 23 examples
    tau, _ = metagradient.scores(KEYS[:1], MODEL, of, TRAIN, TARGET, steps)
    state = of.init(KEYS[0], TRAIN.x[:1])
    index, _ = of.draw(state, jnp.ones(23), steps)
    absent = np.setdiff1d(np.arange(23), index)
    assert len(absent) == 11
    assert (tau[:, absent] == 0).all()
    assert (np.abs(tau[:, np.unique(index)]).max(0) > 0).all()

    all_in_one = make(TRANSFORMATIONS["momentum"], batch=23)
    twins = jax.tree.map(lambda a: np.concatenate([a[:22], a[3:4]]), TRAIN)
    both = attribute(all_in_one, train=twins)
    np.testing.assert_allclose(both[:, 3], both[:, 22], rtol=1e-9)
    order = np.random.default_rng(1).permutation(23)
    shuffled = attribute(all_in_one, train=jax.tree.map(lambda a: a[order], TRAIN))
    np.testing.assert_allclose(shuffled, attribute(all_in_one)[:, order], rtol=1e-9, atol=1e-12)


def test_weights_scale_factors_and_zero_leaves_out():
    weights = np.array([0.0, 2.0] + [1.0] * 21)
    tau, step = attribute(weights=weights), 1e-5
    assert (tau[:, 0] == 0).all()
    run = lambda factors: margins(trained(MOMENTUM, KEYS[0], factors, weights=weights))
    moved = [run(ONES + step * sign * np.eye(23)[1]) for sign in (1, -1)]
    np.testing.assert_allclose(tau[:, 1], (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_predicts_removal_from_the_same_run():
    model, big = smooth(16), split(300, seed=4)
    of = make(optax.sgd(0.02, momentum=0.9), model=model, batch=50)
    steps, one = 60, jax.random.key(5)
    tau, _ = metagradient.scores(one[None], model, of, big, TARGET, steps)
    run = jax.jit(
        lambda factors: margins(trained(of, one, factors, train=big, weights=np.ones(300), steps=steps), model)
    )
    before, rng = run(np.ones(300)), np.random.default_rng(6)
    for count in (1, 3):  # 3: one in a hundred
        removed = np.stack([rng.permutation(300) < count for _ in range(20)]).astype(float)
        actual = np.stack([run(1 - mask) - before for mask in removed])
        predicted = -(removed @ np.asarray(tau).T)
        slope = (predicted * actual).sum() / (predicted**2).sum()
        assert abs(slope - 1) < 0.05
        assert np.corrcoef(predicted.ravel(), actual.ravel())[0, 1] > 0.99


def test_metasmoothness_is_one_where_the_response_is_linear_and_low_after_chaos():
    train, _, of = ridge()
    near = metagradient.metasmoothness(KEYS[0], of(0), train, 5, size=1e-4)
    np.testing.assert_allclose(near, 1, atol=1e-9)
    wild = make(optax.sgd(5.0, momentum=0.95), model=dense.mlp((16,), 3))
    values = [metagradient.metasmoothness(key, wild, TRAIN, 60, size=0.5) for key in KEYS]
    assert np.mean(values) < 0.6


def test_statistics_of_batches_belong_to_the_run():
    """Batch norm with running means: the derivative passes through the statistics of evaluation."""

    def apply(variables, x, *, train=False):
        params, old = variables["params"], variables["stats"]
        mean = (x @ params["in"]).mean(0) if train else old
        stats = 0.7 * old + 0.3 * mean if train else old
        return jnp.tanh(x @ params["in"] - mean[None]) @ params["out"], {"params": params, "stats": stats}

    model = Model(lambda key, x: {**MODEL.init(key, x), "stats": jnp.zeros(5)}, apply)
    of, step = make(optax.sgd(0.1, momentum=0.9), model=model), 1e-5
    tau, _ = metagradient.scores(KEYS[:1], model, of, TRAIN, TARGET, STEPS)
    run = lambda factors: margins(trained(of, KEYS[0], factors), model)
    moved = [run(ONES + step * sign * np.eye(23)[4]) for sign in (1, -1)]
    np.testing.assert_allclose(tau[:, 4], (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_augmentation_is_replayed():
    noisy = make(TRANSFORMATIONS["momentum"], augment=lambda key, x: x + jax.random.normal(key, x.shape) / 4)
    np.testing.assert_allclose(attribute(noisy, segments=4), attribute(noisy), rtol=0, atol=1e-12)
    assert np.abs(attribute(noisy) - attribute()).max() > 0.01


def test_of_a_convex_problem_is_the_influence_function():
    """At the optimum of a convex problem the metagradient is the influence function."""
    model, decay = dense.linear(3), 0.1
    cast = lambda key, x: jax.tree.map(lambda a: a.astype(float), model.init(key, x))
    doubles = Model(cast, model.apply)
    of = make(optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.3)), model=doubles, batch=23)
    tau, _ = metagradient.scores(KEYS[:1], doubles, of, TRAIN, TARGET, 2000)
    state, _ = of.run(of.init(KEYS[0], TRAIN.x[:1]), TRAIN, jnp.asarray(ONES), 2000)
    options = influence.Options(damping=decay, inverse=inverses.by_dense())
    stacked = jax.tree.map(lambda a: a[None], state.variables)
    exact = influence.scores(KEYS[0], doubles, stacked, TRAIN, TARGET, options=options).tau
    np.testing.assert_allclose(tau, exact, rtol=1e-6, atol=1e-8)


class TestBadInput:
    def test_adam_without_a_root_is_refused(self):
        with pytest.raises(ValueError, match=r"gradient 0 is not finite.*eps_root"):
            attribute(make(optax.adam(0.1)))

    def test_objective_with_state(self):
        with pytest.raises(ValueError, match="objective with a state"):
            attribute(make(optax.sgd(0.1), objective=objectives.group_dro(2)))

    def test_counter_that_depends_on_gradients(self):
        count = lambda updates, state, params=None: (updates, state + (jnp.abs(updates["in"]).sum() > 0))
        counting = optax.GradientTransformation(lambda params: jnp.int32(0), count)
        with pytest.raises(ValueError, match="depends on gradients"):
            attribute(make(optax.chain(counting, optax.sgd(0.1))))

    @pytest.mark.parametrize("segments", [0, STEPS + 1])
    def test_segments(self, segments):
        with pytest.raises(ValueError, match="expected 1 to 12"):
            attribute(segments=segments)

    def test_weights(self):
        with pytest.raises(ValueError, match="weights: found 3, expected one for each of 23"):
            attribute(weights=np.ones(3))

    def test_adjoints_that_are_not_finite_name_the_step(self):
        info = metagradient.Info(*map(jnp.asarray, (np.ones(4), np.array([True, False, True, True]), np.zeros(4))))
        with pytest.raises(FloatingPointError, match="state after step 1 is not finite"):
            metagradient.check(info)

    def test_diverged_training_names_the_step(self):
        info = metagradient.Info(*map(jnp.asarray, (np.array([1, np.nan]), np.ones(2, bool), np.zeros(2))))
        with pytest.raises(FloatingPointError, match="training diverged"):
            metagradient.check(info)

    def test_replay_that_differs_names_the_step(self):
        info = metagradient.Info(*map(jnp.asarray, (np.ones(4), np.ones(4, bool), np.array([0, 0.5, 0, 0]))))
        with pytest.raises(ValueError, match="differs after step 1"):
            metagradient.check(info)
