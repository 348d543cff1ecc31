"""TRAK against closed forms, its dense formula in NumPy, and its own other forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from d3mjax.attribution import gradients, per_checkpoint, trak
from d3mjax.attribution.projections import identity, rademacher, sjlt
from d3mjax.networks import dense
from d3mjax.types import Model, Split

KEY = jax.random.key(0)
FLAT, ROUGH = identity(), rademacher(7)  # made once: compiled functions are cached by them
MODEL = dense.mlp((4,), 3)
LINEAR = Model(lambda key, x: {}, lambda v, x, *, train=False: ((x @ v["params"])[:, None], v))


def _split(seed, n, num_features=3, num_classes=3):
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, num_classes, n), np.append(rng.integers(0, 2, n - 2), (0, 1))
    integers = (a.astype(np.int32) for a in (y, group, np.arange(n) + 10))  # the same with and without x64
    return Split(rng.normal(size=(n, num_features)).astype(np.float32), *integers)


TRAIN, TARGET = _split(0, 40), _split(1, 9)
CHECKPOINTS = per_checkpoint.stack_checkpoints([MODEL.init(jax.random.key(j), TRAIN.x) for j in range(3)])


@functools.cache
def _compiled(of, **options):
    options = trak.Options(**{"projection": FLAT, **options})
    args = (2,) if of is trak.group_scores else ()
    return jax.jit(lambda c, train, target, **late: of(KEY, MODEL, c, train, target, *args, options=options, **late))


def _full(checkpoints=CHECKPOINTS, train=TRAIN, target=TARGET, late=None, **options):
    return _compiled(trak.scores, **options)(checkpoints, train, target, **(late or {}))


def _groups(checkpoints=CHECKPOINTS, train=TRAIN, target=TARGET, late=None, **options):
    return _compiled(trak.group_scores, **options)(checkpoints, train, target, **(late or {}))


def _one(a):
    return jax.tree.map(lambda leaf: leaf[a : a + 1], CHECKPOINTS)


def _means(tau, group):
    return np.stack([np.asarray(tau)[np.asarray(group) == g].mean(0) for g in range(2)], axis=1)


def _close(got, want, tolerance=1e-3):
    """Up to 30 float32 roundings times the condition of K, which is p / damping = 310 at most, of the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(np.asarray(want)).max())


def test_linear_regression_is_exact_leave_one_out_times_one_minus_leverage():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, xt = rng.normal(size=(30, 4)), rng.normal(size=(5, 4)) + 1
        y = x @ [1.0, -2, 0.5, 3] + rng.normal(size=30)
        theta = np.linalg.lstsq(x, y)[0]
        train, target = (
            Split(x, y, np.zeros(30, int), np.arange(30)),
            Split(xt, np.zeros(5), np.zeros(5, int), np.arange(5)),
        )
        options = trak.Options(identity(), 0.0, output=gradients.prediction_output, factor=gradients.residual_factor)
        got = trak.scores(KEY, LINEAR, {"params": jnp.asarray(theta)[None]}, train, target, options=options)
        leverage = np.einsum("nd,nd->n", x @ np.linalg.inv(x.T @ x), x)
        without = [np.linalg.lstsq(np.delete(x, i, 0), np.delete(y, i))[0] for i in range(30)]
        change = np.stack([xt @ theta - xt @ w for w in without], axis=1)  # having i, less not having it
        np.testing.assert_allclose(got.tau, change * (1 - leverage)[None, :], rtol=1e-8)
        assert float(got.info.residual[0]) < 1e-12

        # The output -(y - f)^2 / 2 has the gradient (y - f) grad f: residuals of the targets times the change of f.
        loss = options._replace(target_output=gradients.negative_squared_error_output)
        of_loss = trak.scores(KEY, LINEAR, {"params": jnp.asarray(theta)[None]}, train, target, options=loss)
        np.testing.assert_allclose(of_loss.tau, (0 - xt @ theta)[:, None] * got.tau, rtol=1e-8)


def test_logistic_regression_is_the_formula_and_ranks_like_leave_one_out():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, xt = rng.normal(size=(40, 3)), rng.normal(size=(6, 3))
        y, yt = (expit(x @ [1.0, -1, 0.5]) > rng.uniform(size=40)).astype(int), np.array([0, 1, 1, 0, 1, 1])

        def fit(x, y, theta=None):
            theta = np.zeros(3) if theta is None else theta
            for _ in range(30):  # Newton, with a slight ridge
                p = expit(x @ theta)
                hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(3)
                theta = theta - np.linalg.solve(hessian, x.T @ (p - y) + 1e-3 * theta)
            return theta

        theta = fit(x, y)
        train, target = (Split(a, b, np.zeros(len(b), int), np.arange(len(b))) for a, b in ((x, y), (xt, yt)))
        options = trak.Options(identity(), 0.0, output=gradients.binary_margin_output)
        checkpoints = {"params": jnp.asarray(theta)[None]}
        got = np.asarray(trak.scores(KEY, LINEAR, checkpoints, train, target, options=options).tau)
        s, st = (2 * y - 1)[:, None] * x, (2 * yt - 1)[:, None] * xt  # gradients of the margins
        q = expit(-s @ theta)
        np.testing.assert_allclose(got, st @ np.linalg.inv(s.T @ s) @ s.T * q[None, :], rtol=1e-5)

        without = np.stack([fit(np.delete(x, i, 0), np.delete(y, i), theta) for i in range(40)])
        change = st @ (theta - without).T
        assert all(np.corrcoef(a, b)[0, 1] > 0.9 for a, b in zip(got, change, strict=True))
        self_influence, _ = trak.self_influence(KEY, LINEAR, checkpoints, train, options=options)
        np.testing.assert_allclose(self_influence, np.diag(s @ np.linalg.inv(s.T @ s) @ s.T) * q, rtol=1e-5)

        # With curvature K is the Hessian (up to the fit's slight ridge), so tau is the exact derivative of the margins
        # by the weight of an example; over one minus the leverage it is one Newton step towards leaving it out.
        plain = got
        options = options._replace(curvature=gradients.logistic_curvature)
        got = np.asarray(trak.scores(KEY, LINEAR, checkpoints, train, target, options=options).tau)
        leverage = np.einsum("nd,nd->n", s @ np.linalg.inv((s * (q * (1 - q))[:, None]).T @ s), s) * q * (1 - q)
        error, error_plain = (np.abs(tau - change).max() for tau in (got / (1 - leverage)[None], plain))
        assert error < 0.15 * np.abs(change).max()
        assert error < 0.25 * error_plain
        exact = st @ np.linalg.inv((s * (q * (1 - q))[:, None]).T @ s) @ s.T * q[None, :]
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-7)  # margins are float32
        grouped = target._replace(group=np.array([0, 1, 1, 0, 0, 1]))
        columns = trak.group_scores(
            KEY, LINEAR, checkpoints, train, grouped, 2, options=options._replace(microbatch=7)
        ).columns
        np.testing.assert_allclose(columns[:, 1], exact[[1, 2, 5]].mean(0), rtol=1e-5, atol=1e-7)


def _dense(damping=0.1, weights=None, target_output=None):
    """The formula, in float64, from gradients and projections that are tested elsewhere: kernels [c t n], q [c n]."""
    train, target = (jax.tree.map(jnp.asarray, split) for split in (TRAIN, TARGET))

    @jax.jit
    def features(key, v):
        projection, output = ROUGH(key, v["params"]), gradients.margin_output(MODEL, v)
        of = (target_output or gradients.margin_output)(MODEL, v)
        phi, phi_target = (
            projection.project(gradients.per_example(f, v["params"], split))
            for f, split in ((output, train), (of, target))
        )
        return phi, phi_target, jax.vmap(output, (None, 0))(v["params"], train)

    kernels, factors = [], []
    for a in range(3):
        v = jax.tree.map(lambda leaf, a=a: leaf[a], CHECKPOINTS)
        phi, phi_target, values = (np.asarray(x, np.float64) for x in features(jax.random.fold_in(KEY, a), v))
        gram = phi.T @ ((np.ones(40) if weights is None else np.asarray(weights, np.float64))[:, None] * phi)
        k = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
        kernels.append(phi_target @ np.linalg.solve(k, phi.T))
        factors.append(expit(-values))
    return np.stack(kernels), np.stack(factors)


def test_scores_are_the_formula():
    kernels, factors = _dense()
    _close(_full(projection=ROUGH).tau, kernels.mean(0) * factors.mean(0))
    _close(_full(projection=ROUGH, factor_inside=True).tau, (kernels * factors[:, None, :]).mean(0))
    assert not np.allclose(kernels.mean(0) * factors.mean(0), (kernels * factors[:, None, :]).mean(0), rtol=1e-2)
    _close(_full(projection=ROUGH, factor=gradients.no_factor).tau, kernels.mean(0))


def test_weights_leave_examples_out_of_the_gram_and_negative_loss_is_another_target():
    weights = jnp.asarray(np.arange(40) % 3, jnp.float32)
    kernels, factors = _dense(weights=weights, target_output=gradients.negative_loss_output)
    options: dict[str, Any] = {
        "projection": ROUGH,
        "target_output": gradients.negative_loss_output,
        "late": {"weights": weights},
    }
    want = kernels.mean(0) * factors.mean(0)
    _close(_full(**options).tau, want)
    _close(_groups(**options).columns, _means(want, TARGET.group))


# -- forms that must agree


@pytest.mark.parametrize("make", [rademacher(7), sjlt(7)], ids=["rademacher", "sjlt"])
def test_group_columns_without_features_are_means_of_the_stored_form(make):
    with jax.enable_x64(True):
        checkpoints = jax.tree.map(lambda a: a.astype(jnp.float64), CHECKPOINTS)
        train, target = (s._replace(x=s.x.astype(np.float64)) for s in (TRAIN, TARGET))
        # An output in float64, which soft margins are not.
        output = lambda model, v: lambda p, e: jnp.sin(gradients.logits_of(model, v)(p, e) + e.y).sum()
        options = trak.Options(make, output=output, factor=lambda values, split: values**2)
        args = (KEY, MODEL, checkpoints, train, target)
        tau = jax.jit(lambda: trak.scores(*args, options=options).tau)()
        got = jax.jit(lambda: trak.group_scores(*args, 2, options=options._replace(microbatch=16)))()
        assert got.columns.dtype == jnp.float64
        _close(got.columns, _means(tau, target.group), 1e-7)  # group means are taken with float32 weights
        assert got.kernel.shape == (3, 40, 2)
        assert got.factor.shape == (3, 40)


@pytest.mark.parametrize("microbatch", [1, 3, 40])
def test_microbatch_changes_nothing(microbatch):
    _close(_groups(microbatch=microbatch).columns, _groups().columns)
    if microbatch == 3:
        _close(_full(microbatch=microbatch).tau, _full().tau)


def test_order_and_sharding_change_nothing():
    want = np.asarray(_groups().columns)
    order, shuffled = np.random.default_rng(0).permutation(40), np.random.default_rng(1).permutation(9)
    train, target = jax.tree.map(lambda a: a[order], TRAIN), jax.tree.map(lambda a: a[shuffled], TARGET)
    _close(_groups(train=train, target=target).columns, want[order])
    mesh = jax.make_mesh((8,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(jax.tree.map(jnp.asarray, TRAIN), jax.NamedSharding(mesh, jax.P("n")))
    _close(_groups(train=sharded).columns, want)


def test_copies_of_a_checkpoint_are_one_and_every_checkpoint_counts():
    copies = jax.tree.map(lambda a: jnp.concatenate([a[:1]] * 3), CHECKPOINTS)
    same: dict[str, Any] = {"projection": ROUGH, "late": {"ids": jnp.zeros(3, int)}}  # one projection for all
    _close(_groups(copies, **same).columns, _groups(_one(0), projection=ROUGH).columns)
    _close(_full(copies).tau, _full(_one(0)).tau)
    columns, tau = _groups().columns, _full().tau
    for a in range(3):
        changed = jax.tree.map(lambda leaf, a=a: leaf.at[a].multiply(1.3), CHECKPOINTS)
        assert not np.allclose(_groups(changed).columns, columns, rtol=1e-2)
        assert not np.allclose(_full(changed).tau, tau, rtol=1e-2)


def test_checkpoints_are_means_of_single_ones_under_their_ids():
    single = [_groups(_one(a), projection=ROUGH, late={"ids": jnp.array([a])}) for a in range(3)]
    whole = _groups(projection=ROUGH)
    _close(whole.kernel, np.concatenate([s.kernel for s in single]))
    _close(whole.columns, per_checkpoint.combine(whole.kernel, whole.factor))


def test_the_kernel_ignores_the_scale_of_gradients_unless_the_library_is_imitated():
    scaled = lambda model, v: lambda p, e: 10 * gradients.margin_output(model, v)(p, e)
    options: dict[str, Any] = {"factor": gradients.no_factor}
    _close(_full(output=scaled, **options).tau, _full(**options).tau)
    plain, library = (_full(_one(0), **options, library_scale=flag).tau for flag in (False, True))
    _close(library / plain, np.full(plain.shape, np.mean(library / plain)), 1e-2)  # one positive constant
    assert float((library / plain)[0, 0]) > 0
    _close(_full(_one(0), output=scaled, **options, library_scale=True).tau, 100 * library)


def test_much_damping_gives_gradient_products():
    v = jax.tree.map(lambda a: a[0], CHECKPOINTS)
    output, make = gradients.margin_output(MODEL, v), identity()
    train, target = (
        make(KEY, v["params"]).project(gradients.per_example(output, v["params"], jax.tree.map(jnp.asarray, s)))
        for s in (TRAIN, TARGET)
    )
    tau = _full(_one(0), projection=make, damping=1e6, factor=gradients.no_factor).tau
    assert np.corrcoef(np.ravel(tau), np.ravel(target @ train.T))[0, 1] > 0.99999


def test_a_last_layer_alone():
    keep = lambda path: "Dense_1" in path
    got = _groups(_one(0), keep=keep, projection=FLAT).columns
    tau = _full(_one(0), keep=keep, projection=FLAT).tau
    _close(got, _means(tau, TARGET.group))
    assert not np.allclose(got, _groups(_one(0), projection=FLAT).columns, rtol=1e-2)


def test_low_precision_parameters_still_give_a_float32_gram():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), _one(0))
    train, target = (s._replace(x=jnp.asarray(s.x, jnp.bfloat16)) for s in (TRAIN, TARGET))
    got = _full(half, train, target)
    assert got.tau.dtype == jnp.float32
    assert float(got.info.residual[0]) < 1e-4


# -- bad input


def test_wrong_arguments_are_named():
    run = functools.partial(trak.group_scores, KEY, MODEL, CHECKPOINTS, TRAIN)
    with pytest.raises(ValueError, match="no target has a group"):
        run(TARGET._replace(group=np.full(9, -1)), 2)
    with pytest.raises(ValueError, match="expected 0 to 0"):
        run(TARGET, 1)
    with pytest.raises(ValueError, match="default_size"):
        trak.scores(KEY, MODEL, CHECKPOINTS, TRAIN, TARGET, options=trak.Options(sjlt(40), 0.0))
    other = dense.mlp((5,), 3).init(KEY, TRAIN.x)
    with pytest.raises(ValueError, match=r"number 1 differs from number 0 .*Dense_0"):
        per_checkpoint.stack_checkpoints([MODEL.init(KEY, TRAIN.x), other])
    with pytest.raises(ValueError, match="leading axes"):
        trak.scores(KEY, MODEL, {**CHECKPOINTS, "more": jnp.zeros(4)}, TRAIN, TARGET)


def test_an_empty_group_is_nan_and_harms_no_other():
    target = TARGET._replace(group=np.zeros(9, int))
    got = _groups(target=target).columns
    assert np.isnan(got[:, 1]).all()
    _close(got[:, 0], _full().tau.mean(0))


def test_non_finite_gradients_name_examples_and_checkpoints():
    broken = TRAIN._replace(x=np.where(np.arange(40)[:, None] == 5, np.nan, TRAIN.x).astype(np.float32))
    info = _groups(train=broken).info
    with pytest.raises(FloatingPointError, match=r"\[15\], at checkpoints \[7, 8, 9\]"):
        trak.check(info, example_ids=TRAIN.id, checkpoint_ids=[7, 8, 9])
    with pytest.raises(FloatingPointError, match=r"of targets are not finite at checkpoints \[7, 8, 9\]"):
        trak.check(_full(target=broken).info, checkpoint_ids=[7, 8, 9])
    left_out = _groups(train=broken, late={"weights": jnp.asarray(np.arange(40) != 5, jnp.float32)})
    assert np.isfinite(np.delete(np.asarray(left_out.columns), 5, 0)).all()  # weight 0 keeps it out of K


def test_a_gram_close_to_singular_warns_and_one_that_is_not_definite_raises():
    same = TRAIN._replace(x=np.repeat(TRAIN.x[:1], 40, 0), y=np.repeat(TRAIN.y[:1], 40))
    # Rank 1: the smallest pivot is damping / p = 3e-6 of the largest, far above float32's rounding and below the limit.
    with pytest.warns(RuntimeWarning, match="close to singular"):
        trak.check(_full(train=same, damping=1e-4).info)
    trak.check(_full(train=same).info)  # the default damping is enough
    with pytest.raises(FloatingPointError, match="not positive definite"):
        trak.check(trak.Info(jnp.array([jnp.nan]), jnp.array([jnp.nan]), jnp.ones((1, 3), bool)))
    with pytest.warns(RuntimeWarning, match="close to singular"):
        trak.check(trak.Info(jnp.array([0.1]), jnp.array([1e-7]), jnp.ones((1, 3), bool)))
