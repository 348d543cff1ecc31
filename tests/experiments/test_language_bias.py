"""Texts with shared beginnings against whole texts, edits on pairs against their formulas, and how rows are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import ekfac, tangents
from d3mjax.attribution.dense_gradients import Factors
from experiments.language import fmd_language, language_edits, made_language, stereotype_tasks
from experiments.language.fmd_language import Effects
from experiments.language.stereotype_parts import TASKS

SIDES = (
    ("the aunt is kind today", "the baker is loud", "monk"),
    ("the aunt is bold today", "the baker is loud today", "nun is calm today"),
)


@pytest.fixture(scope="module")
def language():
    return made_language.language()


@pytest.fixture(scope="module")
def texts(language, tmp_path_factory):
    return stereotype_tasks.sided(language, SIDES, tmp_path_factory.mktemp("states"))


def whole(language, side):
    tokens, _ = language.encode([made_language.BEGIN] * len(side), side)
    return np.asarray(language.model.apply(language.variables, tokens)[0]), tokens["response"].sum(1)


def test_log_probabilities_are_those_of_whole_texts(language, texts):
    network = stereotype_tasks.network_of(language)
    rest, means = stereotype_tasks.log_probs(network, network.variables, texts)
    (first, lengths), (second, others) = (whole(language, side) for side in SIDES)
    np.testing.assert_array_equal(texts.counts, np.stack([lengths, others], 1))
    np.testing.assert_allclose(means, np.stack([first / lengths, second / others], 1), rtol=1e-5)
    np.testing.assert_allclose(rest[:, 0] - rest[:, 1], first - second, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stereotype_tasks.of_differences(network, network.variables, texts), rest, rtol=1e-5)


def test_shared_tokens_are_computed_once(texts):
    """Rows share "the aunt is", "the baker is loud" (the first side ends there), and nothing."""
    counted = texts.tokens["response"].sum(1)
    np.testing.assert_array_equal(counted, [3, 4, 0, 2, 0, 1, 2, 1, 4])


def test_rows_of_a_benchmark(language, texts):
    network = stereotype_tasks.network_of(language)
    _, means = stereotype_tasks.log_probs(network, network.variables, texts)
    _, some = stereotype_tasks.log_probs(network, network.variables, stereotype_tasks.part(texts, np.array([2, 0])))
    np.testing.assert_allclose(some, means[[2, 0]], rtol=1e-5)


def test_tangents_of_sides_are_those_of_differences(language, texts):
    """At no change the tangent has the log-probability of what differs, and its gradient is the network's."""
    network = stereotype_tasks.network_of(language, stereotype_tasks.ABOVE_ATTENTION)
    rest, _ = stereotype_tasks.log_probs(network, network.variables, texts)
    sides = stereotype_tasks.tangent_sides(network, texts, np.array([2, 0]))
    np.testing.assert_allclose(np.stack([side["values"] for side in sides], 1), rest[[2, 0]], rtol=1e-4)
    linear, rng = tangents.tangent(), np.random.default_rng(0)
    start = linear.init(jax.random.key(0), sides[0])["params"]
    change = jax.tree.map(lambda a: jnp.asarray(0.01 * rng.normal(size=a.shape), jnp.float32), start)
    variables = {"params": change}
    moved, _ = stereotype_tasks.log_probs(network, tangents.with_change(network.variables, change), texts)
    predicted = np.stack([linear.apply(variables, side)[0] for side in sides], 1)
    effect = np.abs(moved - rest)[[2, 0]].max()
    assert effect > 0.03
    np.testing.assert_allclose(predicted, moved[[2, 0]], atol=0.2 * effect)


def test_log_probabilities_that_are_not_finite_name_their_rows(language, texts):
    network = stereotype_tasks.network_of(language)
    change = {"block_1": {"down": {"kernel": np.full((24, 16), np.nan, np.float32)}}}
    broken = tangents.with_change(network.variables, change)
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[0, 1, 2\]"):
        stereotype_tasks.log_probs(network, broken, texts)


@pytest.fixture
def sides():
    rng = np.random.default_rng(0)
    make = lambda: {
        "values": rng.normal(size=5).astype(np.float32),
        "factors": {"kernel": Factors(*(jnp.asarray(rng.normal(size=(5, 3, k)), jnp.float32) for k in (4, 2)))},
    }
    return [make() for _ in range(3)]


IDENTITY = ekfac.Fisher({(): ekfac.Layer(jnp.eye(4), jnp.eye(2), jnp.zeros((4, 2)))}, {})
STEPS = language_edits.Steps(etas=(0.5, 1.0), round_etas=(0.01, 0.01))


def test_fmd_goes_down_the_difference_of_log_probabilities(sides):
    """With a damping of 0.1 for each of 10 examples and no curvature: ``-eta sum grad (log p - log p other)``."""
    paths = language_edits.paths_of(STEPS, damping=0.1)
    changes = paths["FMD"](jax.random.key(0), sides, IDENTITY)["kernel"]
    of_side = [np.asarray(side["factors"]["kernel"].matrix()).sum(0) for side in sides]
    np.testing.assert_allclose(changes[1], -(of_side[0] - of_side[1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(changes[0], changes[1] / 2, rtol=1e-5, atol=1e-6)


def test_first_round_follows_the_losses(sides):
    """The first step of DPO is beta / 2 times that of the difference, as all margins are 0; CDA raises both sides."""
    paths = language_edits.paths_of(STEPS, damping=0.1)
    run = lambda name: np.asarray(paths[name](jax.random.key(0), sides, IDENTITY)["kernel"])
    gradients = [np.asarray(side["factors"]["kernel"].matrix()) for side in sides]
    first, second, unrelated = gradients
    np.testing.assert_allclose(run("DPO")[0], -0.01 * 0.1 / 2 * (first - second).sum(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run("CDA")[1], (first + second).sum(0), rtol=1e-4, atol=1e-5)
    values = [side["values"] for side in sides]
    missed = [1 / (1 + np.exp(value - values[2])) for value in values[:2]]  # of either side against the unrelated
    kept = sum(np.einsum("b,bio->io", m, g - unrelated) for m, g in zip(missed, gradients[:2], strict=True))
    np.testing.assert_allclose(run("related sides alone")[0], 0.01 * kept, rtol=1e-4, atol=1e-6)
    likelier = 1 / (1 + np.exp(values[1] - values[0]))  # the stereotype
    step = kept - np.einsum("b,bio->io", likelier, first - second)
    np.testing.assert_allclose(run("FMD, related kept")[0], 0.01 * step, rtol=1e-4, atol=1e-6)
    mirrored = kept + np.einsum("b,bio->io", 1 - likelier, first - second)
    np.testing.assert_allclose(run("FMD, related kept, sign flipped")[0], 0.01 * mirrored, rtol=1e-4, atol=1e-6)


def test_random_signs_swap_sides(sides):
    pairs = language_edits.pairs_of(sides)
    mixed = language_edits.at_random(np.array([1.0, -1, 1, 1, -1]), pairs)
    np.testing.assert_array_equal(mixed.x["first"]["values"][:2], [sides[0]["values"][0], sides[1]["values"][1]])
    inputs = lambda side: side["factors"]["kernel"].inputs[4]
    np.testing.assert_array_equal(inputs(mixed.flipped["first"]), inputs(sides[0]))


def test_temperature_divides_logits(language, texts):
    """At a temperature that is large, every token has a share of one over the vocabulary."""
    network = stereotype_tasks.network_of(language)
    _, means = stereotype_tasks.log_probs(network, fmd_language.cooled(network.variables, 1e6), texts)
    np.testing.assert_allclose(means, -np.log(language.config.vocabulary), rtol=1e-4)


@pytest.mark.parametrize("name", list(TASKS))
def test_no_term_and_no_row_is_in_two_parts(name):
    rows = made_language.benchmarks()
    folds = TASKS[name].draw(rows["stereoset"], rows["crows"], np.random.default_rng(3))
    unit = np.arange(len(rows["crows"].id)) if name == "crows" else np.array(rows["stereoset"].term)
    for parts in folds:
        assert all(len(part) for part in parts)
        used = [set(unit[part].tolist()) for part in (parts if name != "crows" else parts[:2])]
        for i, one in enumerate(used):
            assert all(one.isdisjoint(other) for other in used[:i])
    measured = np.concatenate([parts.report for parts in folds])
    kinds = np.array(rows["stereoset"].kind)
    assert sorted(measured.tolist()) == np.flatnonzero((kinds == "gender") | (name != "kinds")).tolist()
    if name == "kinds":
        (parts,) = folds
        assert set(kinds[parts.report]) == {"gender"}
        assert "gender" not in {*kinds[parts.reference], *kinds[parts.selection]}


def test_the_step_nearest_to_50_that_keeps_lms():
    start = Effects(60.0, 90.0)
    tried = {0: Effects(58.0, 90.0), 1: Effects(47.0, 89.2), 2: Effects(50.0, 80.0)}
    assert fmd_language.nearest(start, tried, least=0.99) == 1
    assert fmd_language.nearest(start, {2: tried[2]}, least=0.99) == -1
    assert fmd_language.nearest(start, {0: Effects(41.0, 95.0)}, least=0.99) == 0


def test_way_to_half():
    values = fmd_language.against({"ss gender": 47.0, "lms gender": 81.0}, {"ss gender": 60.0, "lms gender": 90.0})
    np.testing.assert_allclose([values["share of the way"], values["lms of before"]], [0.7, 0.9])


def test_other_words_replace_one_that_both_sides_have():
    rows = made_language.benchmarks()["crows"]
    made = fmd_language.with_other_words(np.random.default_rng(0), rows)
    for text, first, second in zip(made, rows.stereotype, rows.anti, strict=True):
        changed = [(a, b) for a, b in zip(first.split(), text.split(), strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][0] in second.split()


def test_a_layer_below_the_attention(language):
    with pytest.raises(ValueError, match="found \\['key'\\], expected some of output, gate, up, down"):
        stereotype_tasks.network_of(language, ("key",))


def test_a_tokenizer_without_a_beginning(language, tmp_path, monkeypatch):
    monkeypatch.setattr(stereotype_tasks, "BEGINNINGS", ("<s>",))
    with pytest.raises(ValueError, match="found none of <s>, expected one that begins a text"):
        stereotype_tasks.sided(language, SIDES, tmp_path)
