"""The classifier on a planted problem whose kinds differ by sign, and what must not change its result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from d3mjax.diagnosis import calibration, claim_metrics, network_losses, set_network
from d3mjax.diagnosis.set_transformer import MeanPool, SetTransformer

SMALL = SetTransformer(width=16, num_inducing=4, num_heads=2, num_blocks=1, projection=8, dropout=0.1)
MEAN = MeanPool(width=16, projection=8, dropout=0.1)
VARIANT = network_losses.demix(
    2,
    contrast=lambda s: network_losses.supervised_info_nce(s.anchors, s.views, s.flags),
    invariance=network_losses.vrex,
)
QUICK = {"epochs": 24, "batch_size": 64, "learning_rate": 1e-2}


def _planted(seed, n=480, t=10):
    """Rows as DeMix sees them. Of the rows, 25 % each are label errors, feature errors, minority, and clean.

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


VECTORS, FLAGS, MODEL_IDS = _planted(0)


def _fit(key, vectors, flags, model_ids, *, network=MEAN, objective=None, **options):
    objective = objective or network_losses.demix(2)
    return set_network.fit(key, network, vectors, flags, model_ids, objective, **{**QUICK, **options})


TRACES = []
FIT = jax.jit(lambda *args: (TRACES.append(None), _fit(*args))[1])


@pytest.fixture(scope="module")
def fitted():
    return FIT(jax.random.key(0), VECTORS, FLAGS, MODEL_IDS)


@pytest.mark.parametrize(
    ("network", "objective", "t_batch"),
    [
        (SMALL, network_losses.demix(2), None),
        (MEAN, VARIANT, 6),
    ],
)
def test_planted_kinds_are_found_by_their_sign(network, objective, t_batch):
    fit = jax.jit(partial(_fit, network=network, objective=objective, t_batch=t_batch))
    ask = jax.jit(partial(set_network.predict, network))
    found = fit(jax.random.key(0), VECTORS, FLAGS, MODEL_IDS)
    vectors, flags, _ = _planted(1)
    p = np.asarray(ask(found.diagnoser, vectors))
    assert ((p > 0) & (p < 1)).all()
    precision = [average_precision_score(flags[:, k], p[:, k]) for k in range(3)]
    assert min(precision) > 0.85, precision
    scores = claim_metrics.scores(claim_metrics.flag(p, found.diagnoser.thresholds), flags).f1
    assert scores.min() > 0.75, scores
    assert found.loss[-10:].mean() < 0.5 * found.loss[:3].mean()
    q = np.asarray(ask(found.diagnoser, vectors * np.array([-1, 1, 1, 1], np.float16)[:, None]))
    assert average_precision_score(flags[:, 0], q[:, 0]) < 0.25  # their share: now label errors look the cleanest


def test_permuted_flags_teach_nothing():
    order = [np.random.default_rng(seed).permutation(len(FLAGS)) for seed in range(16)]
    quick = partial(_fit, epochs=4)
    fits = jax.jit(jax.vmap(quick, (0, None, 0, None)))(
        jax.random.split(jax.random.key(5), 16), VECTORS[:240], FLAGS[np.stack(order)][:, :240], MODEL_IDS[:240]
    )
    vectors, flags, _ = _planted(1)
    p = np.asarray(jax.jit(jax.vmap(partial(set_network.predict, MEAN), (0, None)))(fits.diagnoser, vectors))
    areas = np.array([[roc_auc_score(flags[:, k], one[:, k]) for k in range(3)] for one in p])
    # A fit to noise may rank by what tells the kinds apart, either way round: seeds spread widely about one half.
    error = areas.std(0, ddof=1) / np.sqrt(16)
    assert (abs(areas.mean(0) - 0.5) < 3 * error).all(), (areas.mean(0), error)
    assert (error < 0.09).all(), error  # so that the tolerance is below 0.27


def test_the_same_key_gives_the_same_diagnoser_and_another_key_another(fitted):
    again = FIT(jax.random.key(0), VECTORS, FLAGS, MODEL_IDS)
    jax.tree.map(np.testing.assert_array_equal, fitted, again)
    other = FIT(jax.random.key(1), VECTORS, FLAGS, MODEL_IDS)
    assert (other.held_out != fitted.held_out).any()
    assert np.abs(np.asarray(other.probabilities - fitted.probabilities)).max() > 1e-3


def test_epochs_and_keys_share_one_program(fitted):
    traces = []

    def objective(seen):
        traces.append(None)
        return network_losses.demix(2)(seen)

    counts = []
    for epochs in (1, 5):
        jax.eval_shape(partial(_fit, objective=objective, epochs=epochs), jax.random.key(0), VECTORS, FLAGS, MODEL_IDS)
        counts.append(len(traces))
        traces.clear()
    assert counts[0] == counts[1] <= 2, f"the objective was traced {counts} times for 1 and 5 epochs"
    assert len(TRACES) == 1
    FIT(jax.random.key(2), VECTORS, FLAGS, MODEL_IDS)
    assert len(TRACES) == 1, "another key compiled the fit again"


def test_training_in_two_calls_is_training_in_one():
    data = set_network.as_split(VECTORS, FLAGS, MODEL_IDS, None)
    weights = jnp.ones(len(FLAGS))
    trainer = set_network.make_trainer(MEAN, network_losses.demix(2), jnp.ones(3), 6, batch_size=64)
    run = jax.jit(trainer.run, static_argnums=3)
    start = jax.jit(trainer.init)(jax.random.key(3), data.x)
    whole, info = run(start, data, weights, 6)
    half, first = run(start, data, weights, 3)
    rest, second = run(half, data, weights, 3)
    np.testing.assert_array_equal(info.loss, np.concatenate([first.loss, second.loss]))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, rest.variables)


def test_held_out_rows_are_a_fifth_of_each_stratum_and_teach_nothing(fitted):
    held = np.asarray(fitted.held_out)
    np.testing.assert_array_equal([held[(flags == FLAGS).all(1)].sum() for flags in np.unique(FLAGS, axis=0)], [24] * 4)
    np.testing.assert_array_equal(set_network.hold_out(jax.random.fold_in(jax.random.key(0), 0), FLAGS), held)
    garbage = np.where(held[:, None, None], np.float16(7), VECTORS)
    other = FIT(jax.random.key(0), garbage, FLAGS, MODEL_IDS)
    jax.tree.map(np.testing.assert_array_equal, other.diagnoser.variables, fitted.diagnoser.variables)
    p = fitted.probabilities
    thresholds = claim_metrics.best_thresholds(p[held], FLAGS[held], candidates=set_network.GRID)
    np.testing.assert_array_equal(fitted.diagnoser.thresholds, thresholds)
    np.testing.assert_allclose(fitted.diagnoser.calibration, calibration.platt(p[held], FLAGS[held]), rtol=1e-3)


def test_strata_of_uneven_size_are_rounded_to_the_nearest_number():
    flags = np.zeros((23, 3), bool)
    flags[:8, 0] = True  # 1.6 of 8, 0.4 of 2, 2.6 of 13
    flags[8:10, 1:] = True
    held = np.asarray(set_network.hold_out(jax.random.key(0), flags))
    assert [held[:8].sum(), held[8:10].sum(), held[10:].sum()] == [2, 0, 3]


def test_views_are_subsets_of_what_a_row_has():
    t = 9
    values = jnp.broadcast_to(jnp.arange(t, dtype=jnp.float16), (300, 2, t))
    number = np.arange(300) % t + 1
    mask = np.random.default_rng(0).permuted(np.arange(t)[None] < number[:, None], axis=1)
    found, anchor, view = set_network.two_views(jax.random.key(0), values, jnp.asarray(mask), t_batch=6)
    assert found.shape == (300, 2, 6)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_array_equal(anchor.sum(1), np.minimum(number, 6))
    assert (view <= anchor).all()
    length = np.asarray(view.sum(1))
    whole = np.minimum(number, 6)
    assert (length >= np.maximum(whole // 2, 1)).all()
    assert (length < np.maximum(whole, 2)).all()
    assert {3, 4, 5} == set(length[whole == 6])
    for row in range(300):
        chosen = np.asarray(found[row, 0])[np.asarray(anchor[row])].astype(int)
        assert len(set(chosen)) == len(chosen)
        assert mask[row, chosen].all()
    firsts = np.bincount(np.asarray(found[whole == 6, 0, 0]).astype(int), minlength=t)
    assert (firsts > 0).all()  # about 133 rows with 6 to 9 of 9: every column comes first somewhere


@pytest.mark.parametrize("microbatch", [1, 7, None])
def test_predictions_do_not_depend_on_the_microbatch_or_on_padding(fitted, microbatch):
    vectors = VECTORS[:20]
    expected = set_network.predict(MEAN, fitted.diagnoser, vectors)
    np.testing.assert_allclose(fitted.probabilities[:20], expected, atol=1e-6)
    longer = np.concatenate([vectors, np.full((20, 4, 3), -2, np.float16)], axis=2)
    mask = np.broadcast_to(np.arange(13) < 10, (20, 13))
    found = set_network.predict(MEAN, fitted.diagnoser, longer, mask=mask, microbatch=microbatch)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "found epochs = 0"),
        ({"held_out": 1.0}, r"held_out = 1\.0, expected"),
        ({"t_batch": 0}, "t_batch: found 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _fit(jax.random.key(0), VECTORS, FLAGS, MODEL_IDS, **options)
