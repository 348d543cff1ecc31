"""Networks over sets, their losses by hand, and their training on a planted problem whose types differ by sign."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from d3mjax.diagnosis import claims, set_network
from d3mjax.diagnosis.set_network import MeanPool, Options, SetTransformer

FULL = np.ones((5, 7), bool)
TINY = [
    SetTransformer(width=8, num_inducing=3, num_heads=2, projection=6),
    SetTransformer(width=8, num_inducing=3, num_heads=2, projection=6, as_coded=True),
    SetTransformer(width=8, num_inducing=3, num_heads=4, num_blocks=1, num_seeds=2, projection=6),
    MeanPool(width=8, projection=6),
]
SMALL = SetTransformer(width=16, num_inducing=4, num_heads=2, num_blocks=1, projection=8, dropout=0.1)
MEAN = MeanPool(width=16, projection=8, dropout=0.1)
QUICK = Options(epochs=24, batch_size=64, learning_rate=1e-2)
# Float32 arithmetic of a few hundred operations in another order, for outputs of size one.
ROUNDING = 256 * float(np.finfo(np.float32).eps)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(5, 4, 7)).astype(np.float32)


@functools.cache  # one program for each network and shape
def outputs_of(network):
    example = np.random.default_rng(0).normal(size=(1, 4, 7)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(1), example, FULL[:1])

    @jax.jit
    def call(values, mask):
        logits, projection = network.apply(variables, values, mask)
        return jnp.concatenate([logits, jax.nn.sigmoid(logits), projection], axis=1)

    return call


def assert_same(outputs, expected):
    np.testing.assert_allclose(outputs, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("network", TINY)
def test_order_of_the_set_changes_nothing_and_its_elements_do(network, values):
    call = outputs_of(network)
    whole = call(values, FULL)
    assert whole.shape == (5, 3 + 3 + 6)
    assert_same(call(values[:, :, [3, 0, 6, 2, 5, 1, 4]], FULL), whole)
    changed = values.copy()
    changed[2, 1, 4] += 0.5
    differs = np.abs(np.asarray(call(changed, FULL) - whole)).max(1)
    np.testing.assert_array_equal(differs > 2 * ROUNDING, np.arange(5) == 2)


@pytest.mark.parametrize("network", TINY)
def test_each_row_has_its_own_padding_whose_values_do_not_matter(network, values):
    # Upstream stacks heads before rows but repeats masks row by row: rows then get the mask of another row.
    call, rng = outputs_of(network), np.random.default_rng(1)
    mask = np.zeros((5, 7), bool)
    for row, count in enumerate([7, 1, 4, 6, 2]):
        mask[row, rng.permutation(7)[:count]] = True  # padding anywhere; row 1 has a single element
    outputs = call(values, mask)
    for filler in (0.0, 1e4, np.nan):
        assert_same(call(np.where(mask[:, None], values, np.float32(filler)), mask), outputs)
    for row in range(5):  # among rows that all have its mask
        assert_same(call(values, np.tile(mask[row], (5, 1)))[row], outputs[row])
    assert np.abs(np.asarray(outputs - call(values, FULL)))[1:].max(1).min() > 2 * ROUNDING


@pytest.mark.parametrize("network", [TINY[0], TINY[-1]])
def test_a_set_of_padding_alone_is_finite_and_so_is_its_gradient(network, values):
    variables = jax.jit(network.init)(jax.random.key(1), values[:1], FULL[:1])
    missing = np.full_like(values, np.nan)
    grads = jax.jit(jax.grad(lambda v: sum(a.sum() for a in network.apply(v, missing, ~FULL))))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_half_precision_is_converted_inside(values):
    half = values.astype(np.float16)
    outputs = outputs_of(TINY[0])(half, FULL)
    assert outputs.dtype == jnp.result_type(float)
    assert_same(outputs, outputs_of(TINY[0])(half.astype(np.float32), FULL))


def test_as_coded_drops_the_residual_alone(values):
    proper, coded = TINY[:2]
    shapes = [jax.eval_shape(n.init, jax.random.key(1), values[:1], FULL[:1]) for n in (proper, coded)]
    assert shapes[0] == shapes[1]
    differs = outputs_of(proper)(values, FULL) - outputs_of(coded)(values, FULL)  # equal parameters
    assert np.abs(np.asarray(differs)).max() > 0.01


def test_dropout_acts_in_training_alone(values):
    variables = jax.jit(TINY[-1].init)(jax.random.key(1), values[:1], FULL[:1])
    train = jax.jit(lambda key: TINY[-1].apply(variables, values, FULL, train=True, rngs={"dropout": key})[0])
    one, again, two = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one - two)).max() > 1e-3


def test_published_size(values):
    # Width d = 128. Embedding 4 d + d, norm 2 d, d^2 + d. Five attention blocks of 4 (d^2 + d) + 4 d; 2 * 32 inducing
    # points and one seed. Types: 3 (d d/2 + d/2 + d/2 + 1). Projection: d^2 + d + 32 d + 32.
    d = 128
    expected = 5 * d + 2 * d + d**2 + d + 5 * (4 * (d**2 + d) + 4 * d) + 64 * d + d
    expected += 3 * (d * 64 + 64 + 64 + 1) + d**2 + d + 32 * d + 32
    shapes = jax.eval_shape(SetTransformer().init, jax.random.key(0), values[:1], FULL[:1])
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected


def test_heads_must_divide_the_width(values):
    with pytest.raises(ValueError, match="width: found 9, expected a multiple of num_heads = 2"):
        SetTransformer(width=9, num_heads=2).init(jax.random.key(0), values, FULL)


def test_positive_weights_by_hand():
    flags = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
    rows = np.array([True, True, True, True, False])
    # n = 4. Type 0: 2 of 4, (4 - 2) / 4 = 0.5. Type 1: none, taken as (4 - 0) / 2 = 2. Type 2: 3 of 4, 1 / 6.
    np.testing.assert_allclose(set_network.positive_weights(flags, rows), [0.5, 2, 1 / 6], rtol=1e-5)


def test_prediction_losses_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2.
    logits = jnp.array([[np.log(3), 0.0], [np.log(3), 0.0]], jnp.float32)
    flags = np.array([[True, False], [False, True]])
    weight = jnp.array([2.0, 0.5])
    # Row 0: type 0 true at p = 3/4: (1/4) 2 log(4/3); type 1 false at p = 1/2: (1/2) log 2.
    # Row 1: type 0 false at p = 3/4: p_true = 1/4: (3/4) log 4; type 1 true at p = 1/2: (1/2) 0.5 log 2.
    focal = [0.5 * np.log(4 / 3) + 0.5 * np.log(2), 0.75 * np.log(4) + 0.25 * np.log(2)]
    plain = [2 * np.log(4 / 3) + np.log(2), np.log(4) + 0.5 * np.log(2)]
    squared = [2 / 16 * np.log(4 / 3) + np.log(2) / 4, 9 / 16 * np.log(4) + 0.5 / 4 * np.log(2)]
    for gamma, expected in ((1.0, focal), (0.0, plain), (2.0, squared)):
        losses = set_network.prediction_losses(logits, flags, weight, gamma=gamma)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_prediction_losses_of_sure_mistakes_are_finite_with_their_gradients():
    flags = np.array([[False, True]])
    loss = lambda z: set_network.prediction_losses(z, flags, jnp.ones(2)).sum()
    value, grad = jax.value_and_grad(loss)(jnp.array([[200.0, -200.0]]))
    np.testing.assert_allclose(value, 400, rtol=1e-5)
    np.testing.assert_allclose(grad, [[1, -1]], rtol=1e-5)


def test_info_nce_by_hand():
    # Cosines [[1, 0.6], [0, 0.8]] between anchors (rows) and views, whatever the lengths.
    anchors, views = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([[5.0, 0.0], [0.6, 0.8]])
    # At temperature 0.2 the scores are [[5, 3], [0, 4]]: log(1 + e^-2) and log(1 + e^-4).
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-4))) / 2
    np.testing.assert_allclose(set_network.info_nce(anchors, views, temperature=0.2), expected, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda a: set_network.info_nce(a, views))(jnp.zeros((2, 2)))).all()


def test_the_contrast_does_not_depend_on_the_order_of_the_batch():
    rng = np.random.default_rng(2)
    anchors, views = (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    order = np.array([3, 0, 5, 1, 4, 2])
    loss = set_network.info_nce(anchors, views)
    np.testing.assert_allclose(set_network.info_nce(anchors[order], views[order]), loss, rtol=1e-5)
    assert abs(float(loss - set_network.info_nce(anchors, views[order]))) > 0.1


def test_centroid_spread_by_hand():
    projections = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [9.0, 9.0], [5.0, 5.0]])
    model_ids = np.array([0, 0, 2, 2, 1])
    flags = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], bool)
    # Type 0: centroids (2, 0) of model 0 and (0, 4) of model 2, centre (1, 2): squares 1 and 4 for both: mean 2.5.
    # Type 1: model 2 alone: 0. Model 1 has no row of either type, model 3 none at all.
    np.testing.assert_allclose(set_network.centroid_spread(projections, flags, model_ids, 4), 2.5, rtol=1e-5)
    both = np.concatenate([flags[:, :1], flags[:, :1]], axis=1)
    np.testing.assert_allclose(set_network.centroid_spread(projections, both, model_ids, 3), 5.0, rtol=1e-5)
    one_model = lambda z: set_network.centroid_spread(z, flags, np.zeros(5, int), 3)
    np.testing.assert_array_equal(jax.grad(one_model)(projections), 0)


def test_the_objective_is_the_sum_of_its_parts():
    rng = np.random.default_rng(3)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    flags, model_ids = jnp.asarray(rng.random((4, 3)) < 0.5), jnp.array([0, 1, 1, 0])
    seen = set_network.Seen(normal(4, 3), normal(4, 3), normal(4, 5), normal(4, 5), flags, model_ids, jnp.ones(3))
    risks = [set_network.prediction_losses(z, flags, seen.positive_weight) for z in (seen.logits, seen.view_logits)]
    contrast = set_network.info_nce(seen.anchors, seen.views)
    spread = set_network.centroid_spread(seen.anchors, flags, model_ids, 2)
    expected = risks[0].mean() + 0.1 * contrast + 0.1 * spread
    np.testing.assert_allclose(set_network.demix(2)(seen), expected, rtol=1e-5)
    # V-REx: the variance of the mean risks of 2 models, with all and with part of the validation rows.
    means = [risk[jnp.asarray(rows)].mean() for risk in risks for rows in ([0, 3], [1, 2])]
    other = set_network.demix(2, invariance=set_network.vrex, contrast_weight=0.5, invariance_weight=2.0)
    np.testing.assert_allclose(other(seen), risks[0].mean() + 0.5 * contrast + 2 * np.var(means), rtol=1e-4)
    absent = set_network.demix(5, invariance=set_network.vrex, contrast_weight=0.5, invariance_weight=2.0)
    np.testing.assert_allclose(absent(seen), other(seen), rtol=1e-5)


def planted(seed, n=480, t=10):
    """Rows as DeMix sees them: 25 % each are clean, label errors, feature errors and minority.

    Channel 0 is negative (helpful) towards the row's own class and positive towards the other, reversed for a label
    error, near 0 for the minority; channel 1 is low for a feature error; the loss is noise.
    """
    rng = np.random.default_rng(seed)
    kind = rng.permutation(n) % 4
    agree = rng.random((n, t)) < 0.5
    strength = np.array([0.5, -0.5, 0.5, 0.0])[kind]  # clean, label error, feature error, minority
    influence = -(2 * agree - 1) * strength[:, None]
    cosine = np.where(kind == 2, -0.3, 0.3)[:, None]
    noise = lambda: 0.3 * rng.normal(size=(n, t))
    loss = np.repeat(rng.exponential(size=(n, 1)), t, axis=1)
    vectors = np.stack([influence + noise(), cosine + noise(), agree, loss], axis=1)
    return vectors.astype(np.float16), np.stack([kind == k for k in (1, 2, 3)], axis=1), np.arange(n) % 2


def fit(key, vectors, flags, model_ids, *, network=MEAN, objective=set_network.demix(2), options=QUICK):
    return set_network.fit(key, network, vectors, flags, model_ids, objective, options=options)


FIT = jax.jit(fit)


@pytest.fixture(scope="module")
def data():
    return planted(0)


@pytest.fixture(scope="module")
def fitted(data):
    return FIT(jax.random.key(0), *data)


@pytest.mark.parametrize(
    ("network", "objective", "t_batch"),
    [(SMALL, set_network.demix(2), None), (MEAN, set_network.demix(2, invariance=set_network.vrex), 6)],
)
def test_planted_types_are_found_by_their_sign(data, network, objective, t_batch):
    options = QUICK._replace(t_batch=t_batch)
    trained = jax.jit(partial(fit, network=network, objective=objective, options=options))(jax.random.key(0), *data)
    predict = jax.jit(partial(set_network.predict, network))
    variables, thresholds = trained.diagnoser
    vectors, flags, _ = planted(1)
    p = np.asarray(predict(variables, vectors))
    precision = [average_precision_score(flags[:, k], p[:, k]) for k in range(3)]
    assert min(precision) > 0.85, precision
    f1 = claims.scores(claims.flag(p, thresholds), flags).f1
    assert f1.min() > 0.75, f1
    assert trained.loss[-10:].mean() < 0.5 * trained.loss[:3].mean()
    turned = np.asarray(predict(variables, vectors * np.array([-1, 1, 1, 1], np.float16)[:, None]))
    assert average_precision_score(flags[:, 0], turned[:, 0]) < 0.25  # their share: label errors now look the cleanest


def test_permuted_flags_teach_nothing(data):
    vectors, flags, model_ids = (a[:240] for a in data)
    shuffled = np.stack([np.random.default_rng(seed).permutation(flags) for seed in range(8)])
    quick = jax.jit(jax.vmap(partial(fit, options=QUICK._replace(epochs=4)), (0, None, 0, None)))
    diagnosers = quick(jax.random.split(jax.random.key(5), 8), vectors, shuffled, model_ids).diagnoser
    test, truth, _ = planted(1)
    p = jax.jit(jax.vmap(partial(set_network.predict, MEAN), (0, None)))(diagnosers.variables, test)
    areas = np.array([[roc_auc_score(truth[:, k], one[:, k]) for k in range(3)] for one in np.asarray(p)])
    # A fit to noise may rank by what tells the types apart, either way round: seeds spread widely about one half.
    error = areas.std(0, ddof=1) / np.sqrt(len(areas))
    assert (abs(areas.mean(0) - 0.5) < 4 * error).all(), (areas.mean(0), error)


def test_the_same_key_gives_the_same_diagnoser_and_another_key_another(fitted, data):
    again = FIT(jax.random.key(0), *data)
    jax.tree.map(np.testing.assert_array_equal, fitted, again)
    other = FIT(jax.random.key(1), *data)
    assert (other.held_out != fitted.held_out).any()
    assert np.abs(np.asarray(other.probabilities - fitted.probabilities)).max() > 1e-3


def test_epochs_do_not_grow_the_program(data):
    traces, counts = [], []

    def objective(seen):
        traces.append(None)
        return set_network.demix(2)(seen)

    for epochs in (1, 5):
        jax.eval_shape(
            partial(fit, objective=objective, options=QUICK._replace(epochs=epochs)), jax.random.key(0), *data
        )
        counts.append(len(traces))
        traces.clear()
    assert counts[0] == counts[1] <= 2


def test_held_out_rows_are_a_fifth_of_each_stratum_and_teach_nothing(fitted, data):
    vectors, truth, model_ids = data
    held = np.asarray(fitted.held_out)
    np.testing.assert_array_equal([held[(flags == truth).all(1)].sum() for flags in np.unique(truth, axis=0)], [24] * 4)
    garbage = np.where(held[:, None, None], np.float16(7), vectors)
    other = FIT(jax.random.key(0), garbage, truth, model_ids)
    jax.tree.map(np.testing.assert_array_equal, other.diagnoser.variables, fitted.diagnoser.variables)
    thresholds = claims.best_thresholds(fitted.probabilities[held], truth[held], candidates=set_network.THRESHOLDS)
    np.testing.assert_array_equal(fitted.diagnoser.thresholds, thresholds)


def test_strata_of_uneven_size_are_rounded_to_the_nearest_number():
    flags = np.zeros((23, 3), bool)
    flags[:8, 0] = True  # 1.6 of 8, 0.4 of 2, 2.6 of 13
    flags[8:10, 1:] = True
    held = np.asarray(set_network.hold_out(jax.random.key(0), flags))
    assert [held[:8].sum(), held[8:10].sum(), held[10:].sum()] == [2, 0, 3]


def test_views_are_subsets_of_the_validation_rows_of_a_row():
    t = 9
    values = jnp.broadcast_to(jnp.arange(t, dtype=jnp.float16), (300, 2, t))
    number = np.arange(300) % t + 1
    mask = np.random.default_rng(0).permuted(np.arange(t)[None] < number[:, None], axis=1)
    taken, anchor, view = set_network.two_views(jax.random.key(0), values, jnp.asarray(mask), t_batch=6)
    assert taken.shape == (300, 2, 6)
    np.testing.assert_array_equal(taken[:, 0], taken[:, 1])
    np.testing.assert_array_equal(anchor.sum(1), np.minimum(number, 6))
    assert (view <= anchor).all()
    length = np.asarray(view.sum(1))
    whole = np.minimum(number, 6)
    assert (length >= np.maximum(whole // 2, 1)).all()
    assert (length < np.maximum(whole, 2)).all()
    assert {3, 4, 5} == set(length[whole == 6])
    for row in range(300):
        chosen = np.asarray(taken[row, 0])[np.asarray(anchor[row])].astype(int)
        assert len(set(chosen)) == len(chosen)
        assert mask[row, chosen].all()
    firsts = np.bincount(np.asarray(taken[whole == 6, 0, 0]).astype(int), minlength=t)
    assert (firsts > 0).all()  # about 133 rows with 6 to 9 of 9: every column comes first somewhere


@pytest.mark.parametrize("microbatch", [7, None])
def test_predictions_do_not_depend_on_the_microbatch_or_on_padding(fitted, data, microbatch):
    vectors, variables = data[0][:20], fitted.diagnoser.variables
    expected = set_network.predict(MEAN, variables, vectors)
    assert_same(fitted.probabilities[:20], expected)
    longer = np.concatenate([vectors, np.full((20, 4, 3), -2, np.float16)], axis=2)
    mask = np.broadcast_to(np.arange(13) < 10, (20, 13))
    assert_same(set_network.predict(MEAN, variables, longer, mask=mask, microbatch=microbatch), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "found epochs = 0"),
        ({"held_out": 1.0}, r"held_out = 1\.0, expected"),
        ({"t_batch": 0}, "t_batch: found 0"),
    ],
)
def test_bad_options_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), *data, options=QUICK._replace(**options))
