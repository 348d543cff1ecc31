"""D3M as one call on a planted shortcut, its parts by hand, and the sources of its columns against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

import d3mjax
from d3mjax.attribution import influence, metagradient, projections, trak
from d3mjax.debiasing import d3m, offsets, sources
from d3mjax.types import Data, Model

N, STEPS, GROUPS = 200, 40, 4
DATA = d3mjax.planted_shortcut(seed=0, train=N, target=160, selection=160, test=400)
AGREES = DATA.train.group % 2 == DATA.train.y  # the cue says the label: the majority
LINEAR = d3mjax.linear(2)
APPLY, TRACES = planted.count_traces(LINEAR.apply)
MODEL = Model(LINEAR.init, APPLY)
# Batches of all examples: their order then matters only to rounding.
TRAINER = d3mjax.make_trainer(MODEL, d3mjax.cross_entropy(), optax.sgd(0.1), d3mjax.shuffled(), batch_size=N)
ATTRIBUTION = sources.by_trak(
    trak.Options(projection=projections.identity(), damping=0.1, microbatch=50), dampings=(10.0,)
)
OPTIONS = d3m.Options(attribution=ATTRIBUTION, retrains=2, shares=(0.1, 0.3))
KEY = jax.random.key(0)
ROUNDING = {"terms": 4 * STEPS * N}  # steps of sums over all examples, and a solve behind them


def close(got, expected):
    """Training is in float32, whatever the precision of the rest."""
    planted.close(*(jax.tree.map(np.float32, tree) for tree in (got, expected)), **ROUNDING)


def run(data=DATA, key=KEY, options=OPTIONS, **layout):
    layout = {"mesh": planted.mesh_of(2), **layout}
    return d3mjax.debias(key, MODEL, TRAINER, data, GROUPS, num_steps=STEPS, checkpoints=2, options=options, **layout)


@pytest.fixture(scope="module")
def result():
    return run()


def test_the_worst_group_rises_and_the_majority_scores_lower(result):
    before, after = (evaluation.test.mean(0) for evaluation in (result.before, result.after))
    assert after.min() > before.min() + 0.1
    removed = result.weights == 0
    assert removed.any()
    assert AGREES[removed].mean() > AGREES.mean()
    assert result.scores[AGREES].mean() < 0 < result.scores[~AGREES].mean()


def test_the_parts_of_the_result_belong_together(result):
    weights = d3m.score(result.columns[None], result.group_losses).group_weights
    planted.close(weights, jax.nn.softmax(result.group_losses), terms=GROUPS)
    planted.close(result.scores, result.columns @ np.asarray(weights), terms=GROUPS)
    assert len(result.tried) == len(ATTRIBUTION.readings) * (len(OPTIONS.shares) + 2)
    keys = d3mjax.keys.members(KEY, d3mjax.keys.D3M.REPORT, 2)
    rows = np.stack([np.ones(N, np.float32)] * 2 + [result.weights] * 2)
    alone = d3m.retrain(
        jnp.tile(keys, 2), MODEL, TRAINER, DATA.train, DATA, rows, GROUPS, STEPS, mesh=planted.mesh_of(2)
    )
    before, after = (jax.tree.map(lambda a, i=i: a[i : i + 2], alone) for i in (0, 2))
    planted.equal((before, d3m.with_offsets(before)), (result.before, result.control))
    planted.equal(d3m.with_offsets(after) if result.chosen.offsets else after, result.after)
    planted.equal(after.offsets * result.chosen.offsets, result.offsets)


@pytest.fixture(scope="module")
def without():
    return run(options=OPTIONS._replace(offsets=False))


def test_removal_is_the_same_without_offsets(result, without):
    planted.equal(without.tried, result.tried)
    planted.equal((without.before, without.control), (result.before, result.control))
    assert without.chosen == d3m.choose(result.tried, DATA.selection.group, offsets=False)
    assert not without.chosen.offsets
    assert not without.offsets.any()
    assert not np.array_equal(without.control.test, without.before.test)
    best = max(result.tried.values(), key=lambda evaluation: evaluation.selection_with_offsets.mean(0).min())
    assert best.selection_with_offsets.mean(0).min() > best.selection.mean(0).min()


def test_a_flipped_sign_is_noticed(result):
    def flipped(*arguments):
        kernel, factor, info = ATTRIBUTION.attribute(*arguments)
        return -kernel, factor, info

    hurt = run(options=OPTIONS._replace(attribution=ATTRIBUTION._replace(attribute=flipped)))
    worst = lambda result, name: result.tried[name].test.mean(0).min()
    assert worst(hurt, "D3M/0.3") < worst(result, "D3M/0.3") - 0.1


def test_the_order_of_training_examples_does_not_matter(without):
    order = np.random.default_rng(1).permutation(N)
    reordered = DATA._replace(train=jax.tree.map(lambda a: a[order], DATA.train))
    # With offsets two candidates are as good, and models of subsets, whose batches straddle epochs, do vary.
    permuted = run(reordered, options=OPTIONS._replace(offsets=False))
    assert permuted.chosen == without.chosen
    close(permuted.scores, without.scores[order])
    close(permuted.weights, without.weights[order])


@pytest.mark.parametrize("layout", [{"width": 3}, {"mesh": planted.mesh_of(1)}, {"mesh": planted.mesh_of(8)}])
def test_width_and_devices_do_not_matter(result, layout):
    other = run(**layout)
    assert other.chosen == result.chosen
    for a, b in ((other.scores, result.scores), (other.weights, result.weights), (other.after, result.after)):
        close(a, b)


def test_groups_of_the_training_set_are_not_read(result):
    unknown = DATA.train._replace(group=np.full(N, -1))
    planted.equal(run(DATA._replace(train=unknown)), result)


def test_another_key_compiles_nothing_again_and_changes_the_models(result):
    count = len(TRACES)
    other = run(key=jax.random.key(1))
    assert len(TRACES) == count
    assert not np.array_equal(other.scores, result.scores)


def test_bad_input_is_named():
    overlapping = DATA._replace(target=DATA.target._replace(id=DATA.train.id[:160]))
    with pytest.raises(ValueError, match=r"target\.id: found 160 ids of train"):
        run(overlapping)
    with pytest.raises(ValueError, match=r"selection\.group: found"):
        run(DATA._replace(selection=DATA.selection._replace(group=DATA.selection.group + 1)))
    diverging = d3mjax.make_trainer(MODEL, d3mjax.cross_entropy(), optax.sgd(1e38), d3mjax.shuffled(), batch_size=N)
    arguments = (MODEL, diverging, DATA.train, DATA, np.ones((2, N), np.float32), GROUPS, 4)
    with pytest.raises(FloatingPointError, match="training diverged: loss not finite for models 0"):
        d3m.retrain(d3mjax.model_keys(KEY, np.arange(2)), *arguments, mesh=planted.mesh_of(1))
    negative = np.ones((2, N), np.float32)
    negative[1, 0] = -1
    arguments = (MODEL, TRAINER, DATA.train, DATA, negative, GROUPS, STEPS)
    with pytest.raises(ValueError, match=r"weights: found -1\.0 for example 0 of row 1"):
        d3m.retrain(d3mjax.model_keys(KEY, np.arange(2)), *arguments)


def test_evaluation_by_hand():
    variables = LINEAR.init(KEY, DATA.train.x[:1])
    got = d3m.evaluate(MODEL, variables, DATA, GROUPS)
    layer = variables["params"]["Dense_0"]
    logits = {name: split.x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]) for name, split in _splits(DATA)}
    right = {name: logits[name].argmax(1) == split.y for name, split in _splits(DATA)}
    members = {name: [split.group == g for g in range(GROUPS)] for name, split in _splits(DATA)}
    log_sum = np.logaddexp(*logits["target"].T)
    losses = log_sum - logits["target"][np.arange(160), DATA.target.y]
    planted.close(got.losses, np.array([losses[m].mean() for m in members["target"]]), terms=160, scale=10)
    planted.close(got.selection, np.array([right["selection"][m].mean() for m in members["selection"]]))
    planted.close(got.test, np.array([right["test"][m].mean() for m in members["test"]]))
    planted.close(got.average, right["test"].mean())
    planted.equal(got.right, right["test"])
    first = np.asarray(offsets.choose(logits["target"], DATA.target.y, DATA.target.group, GROUPS))
    pair = [(logits[name], split.y, split.group) for name, split in _splits(DATA) if name in ("target", "selection")]
    both, y, group = map(np.concatenate, zip(*pair, strict=True))
    final = np.asarray(offsets.choose(both, y, group, GROUPS))
    planted.close(got.offsets, final, terms=100)
    moved = {"selection": logits["selection"] + first, "test": logits["test"] + final}
    right = {name: some.argmax(1) == DATA._asdict()[name].y for name, some in moved.items()}
    planted.close(got.selection_with_offsets, np.array([right["selection"][m].mean() for m in members["selection"]]))
    planted.close(got.test_with_offsets, np.array([right["test"][m].mean() for m in members["test"]]))
    planted.close(got.average_with_offsets, right["test"].mean())
    planted.equal(d3m.with_offsets(got)[:4], (got.losses, *got[5:8]))
    planted.equal((got.right_with_offsets, d3m.with_offsets(got).right), (right["test"], right["test"]))


def _splits(data: Data):
    return data._asdict().items()


def test_scores_and_candidates_by_hand():
    columns = np.arange(20, dtype=np.float32).reshape(2, 5, 2) - 9
    scored = d3m.score(columns, np.array([0, np.log(3)], np.float32), beta=1.0)  # weights 1/4 and 3/4
    planted.close(scored.scores, columns @ np.array([0.25, 0.75]), terms=2)
    absent = d3m.score(columns * [1, np.nan], np.array([0.5, np.nan], np.float32))  # a group without targets
    np.testing.assert_array_equal(absent.scores, columns[..., 0])
    with pytest.raises(FloatingPointError, match="group_columns: found 5 train examples"):
        d3m.score(columns * [1, np.nan], np.array([0.5, 1], np.float32))
    scores, y = jnp.array([-3.0, 1, -2, 2, -1]), np.array([0, 0, 1, 1, 1])
    tried = d3m.candidates(scores, y, 2, shares=(0.2, 0.4))
    assert {name: mask.tolist() for name, mask in tried.items()} == {
        "D3M/0.2": [False, True, True, True, True],
        "D3M/0.4": [False, True, False, True, True],
        "D3M, drop negative": [False, True, False, True, True],  # at most half: -1 stays
    }
    soft = d3m.soft_candidate(jnp.arange(20.0) - 10)
    np.testing.assert_array_equal(soft[:2], 0)
    assert (np.diff(soft[2:]) > 0).all()
    assert soft[10] == 0.5


def test_each_weighting_is_retrained_from_the_same_keys():
    seen = []

    def fit(keys, weights):
        seen.append((keys, weights))
        first = weights[:, 0]
        return d3m.Evaluation._make([*[weights, weights, weights, first] * 2, weights > 0, weights > 0])

    keys = d3mjax.model_keys(KEY, np.arange(2))
    both = d3m.retrain_each(fit, keys, {"one": np.array([True, False]), "each": np.array([[0.5, 1], [2, 3]])})
    ((all_keys, rows),) = seen
    planted.equal(jax.random.key_data(all_keys), jax.random.key_data(jnp.tile(keys, 2)))
    np.testing.assert_array_equal(rows, [[1, 0], [1, 0], [0.5, 1], [2, 3]])
    np.testing.assert_array_equal(both["one"].average, [1, 1])
    np.testing.assert_array_equal(both["each"].losses, [[0.5, 1], [2, 3]])


def test_choice_reads_the_selection_split_alone():
    def evaluation(selection, test, with_offsets=(0.0, 0.0)):
        of = lambda groups: jnp.tile(jnp.array(groups), (3, 1))
        without = d3m.Evaluation(of([9.0, 9.0]), of(selection), of(test), jnp.zeros(3), *[of(with_offsets)] * 6)
        return without._replace(test_with_offsets=of(test), average_with_offsets=jnp.zeros(3))

    tried = {
        "average": evaluation([0.50, 0.99], [1.0, 1.0]),
        "worst": evaluation([0.70, 0.80], [0.0, 0.0]),
        "near": evaluation([0.69, 0.90], [0.0, 0.0]),
    }
    group = np.repeat([0, 1], [10, 90])
    assert d3m.choose(tried, group) == ("near", False)
    assert d3m.choose(tried, group, tolerance=0.0) == ("worst", False)
    tried["moved"] = evaluation([0.1, 0.9], [0.0, 0.0], (0.71, 0.95))
    assert d3m.choose(tried, group) == ("moved", True)
    assert d3m.choose(tried, group, offsets=False) == ("near", False)


def _columns(attribution, **options):
    options = {"checkpoints": 2, "mesh": planted.mesh_of(2), **options}
    return sources.from_checkpoints(KEY, MODEL, TRAINER, DATA, GROUPS, STEPS, attribution, **options)


def test_columns_are_means_over_checkpoints_of_identity():
    two, three = (_columns(ATTRIBUTION, checkpoints=count) for count in (2, 3))
    assert two.kernel is not None
    assert two.right is not None
    assert three.kernel is not None
    assert (two.columns.shape, two.kernel.shape, two.right.shape) == ((2, N, GROUPS), (2, N, GROUPS), (2, N))
    planted.close(three.kernel[:2], two.kernel, **ROUNDING)  # the third changes nothing of the others
    assert two.right.mean() > 0.9
    one = sources.by_trak(trak.Options(projection=projections.identity(), damping=10.0, microbatch=50))
    planted.close(_columns(one).columns[0], two.columns[1], **ROUNDING)  # a damping beside others is that damping


def test_influence_and_datamodels_agree_with_trak_on_who_helps():
    columns = _columns(ATTRIBUTION).columns[0]
    exact = influence.Options(damping=0.1, microbatch=50)
    bank = sources.Bank(models=96, min_share=0.3, max_share=0.7, steps=STEPS, block=48)
    seen = []
    arguments = (KEY, MODEL, TRAINER, DATA, GROUPS)
    banked = sources.from_datamodels(*arguments, bank, mesh=planted.mesh_of(2), progress=seen.append)
    assert seen == [48, 48]
    assert banked.kernel is None
    run_back = sources.from_metagradients(*arguments, STEPS, checkpoints=2, mesh=planted.mesh_of(2))
    for other in (_columns(sources.by_influence(exact, rtol=1e-3)), run_back, banked):
        assert other.columns.shape == (1, N, GROUPS)
        for g in range(GROUPS):
            assert np.corrcoef(other.columns[0, :, g], columns[:, g])[0, 1] > 0.3
    blocks = sources.from_datamodels(*arguments, bank._replace(block=32), mesh=planted.mesh_of(2))
    planted.close(blocks.columns, banked.columns, **ROUNDING)


def test_metagradients_debias():
    options = OPTIONS._replace(attribution=metagradient.Options())
    result = run(options=options)
    before, after = (evaluation.test.mean(0) for evaluation in (result.before, result.after))
    assert after.min() > before.min() + 0.1
    assert len(result.tried) == len(OPTIONS.shares) + 2
    assert result.info["drift"] == 0
