"""Cells of preference pairs do not depend on the sides; tasks of pairs from texts to data of D3M."""

import json
from dataclasses import replace

import jax
import made_decoders
import numpy as np
import pytest
from made_pairs import swapped

from d3mjax.data import splits
from d3mjax.data.sets import preferences
from d3mjax.diagnosis import cells
from d3mjax.networks import decoders
from experiments import diagnoses, local_data, preference_tasks, text_tasks
from experiments.language import demix_alignment, language, pair_cells
from experiments.preference_tasks import KINDNESS, TASKS, make_features, small, split_of, standardised

TASK = small(KINDNESS)
CONFIG = demix_alignment.Config(train=60, validation=24, seeds=1, cleans=(0.5,))


@pytest.fixture(scope="module")
def drawn():
    """One draw of errors in made sentences, and the learner."""
    pairs = TASK.load()
    features = make_features(TASK, pairs)
    learner = pair_cells.rewards(features, hidden=(8,))
    parts = preferences.divide(pairs, 0, demix_alignment.SHARES)
    return demix_alignment.draw(CONFIG, learner, features, parts, 0.5, 0), learner


def cell_of(learner, draw):
    train = pair_cells.make_train(learner, CONFIG.train, width=1, mesh=None)
    return train(jax.random.key(0), [draw.pairs], [draw.seen], [draw.table])[0]


def test_a_cell_does_not_depend_on_the_sides_or_the_microbatch(drawn):
    draw, learner = drawn
    other = draw._replace(**{name: tuple(map(swapped, getattr(draw, name))) for name in ("pairs", "seen")})
    before, after = cell_of(learner, draw), cell_of(learner._replace(microbatch=7), other)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=2e-3, rtol=1e-3)
    first, second = (pair_cells.signals(before, draw.table, one.seen[0]) for one in (draw, other))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_channels_are_those_of_the_pairs_as_recorded(drawn):
    draw, learner = drawn
    cell = cell_of(learner, draw)
    assert cell.vectors.shape == (60, 4, 24)
    x, of = draw.seen
    preferred = [np.where(s.y[:, None] == 0, s.x["first"], s.x["second"]) for s in (x, of)]
    others = [np.where(s.y[:, None] == 0, s.x["second"], s.x["first"]) for s in (x, of)]
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    both = [unit(np.concatenate(sides, axis=1)) for sides in zip(preferred, others, strict=True)]
    towards = [unit(a - b) for a, b in zip(preferred, others, strict=True)]
    np.testing.assert_allclose(cell.vectors[:, 1], both[0] @ both[1].T, atol=2e-3)
    products = towards[0] @ towards[1].T
    sure = np.abs(products) > 1e-5
    np.testing.assert_array_equal(cell.vectors[:, 2][sure] > 0.5, products[sure] > 0)
    losses = np.log1p(np.exp(cell.logits[:, 1] - cell.logits[:, 0]))
    np.testing.assert_allclose(cell.vectors[:, 3, 0], losses, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(cell.vectors[:, 0], -cell.by_class[:, 0], atol=1e-6)
    assert np.isfinite(cells.features(cell, np.zeros(60, np.int32), 1)[:, -5:]).all()


def test_a_reader_sees_lengths_likeness_and_endings():
    lines = [preferences.Line("p", "Good one.", "bad"), preferences.Line("p", "good!", "Very bad thing,")]
    pairs = preferences.shuffled(lines, np.arange(2), np.zeros(2, np.int32), seed=0)
    x = make_features(TASK, pairs)(pairs)
    table = pair_cells.table_of(pairs, x)
    np.testing.assert_allclose(np.exp(table.columns["preferred: letters"]), [9, 5])
    np.testing.assert_allclose(table.columns["other: letters of a word"], [3, 5])
    assert table.columns["preferred: ends with"].tolist() == [1, 1]
    assert table.columns["other: ends with"].tolist() == [0, 2]
    assert table.columns["other: begins with"].tolist() == [0, 1]
    vectors = TASK.encode([text for line in lines for text in line])
    np.testing.assert_allclose(
        table.columns["preferred: like the prompt"], (vectors[0::3] * vectors[1::3]).sum(1), rtol=1e-5
    )
    np.testing.assert_allclose(table.columns["likeness"], (vectors[1::3] * vectors[2::3]).sum(1), rtol=1e-5)


def test_features_of_sides_are_encoded_once():
    seen = []
    task = preference_tasks.PairTask("made", "", TASK.load, lambda texts: (seen.extend(texts), TASK.encode(texts))[1])
    pairs = TASK.load()
    features = make_features(task, pairs)
    x = features(preferences.take(pairs, np.arange(5)))
    features(pairs._replace(first=["new text", *pairs.first[1:]]))
    assert len(seen) == len(set(seen)) == len({*pairs.prompt, *pairs.first, *pairs.second}) + 1
    assert x["first"].shape == (5, 25)
    one = standardised(features(pairs), features(pairs))
    both = np.concatenate([one["first"], one["second"]])
    np.testing.assert_allclose(both.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(both.std(0), 1, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_have_a_length_bias_in_training_alone(name):
    task = TASKS[name]
    data = task.load(3, smoke=True)
    splits.check_data(data, 2, len(task.group_names))
    if name != "commonsense-sources":
        assert splits.group_sizes(data.train, 2).tolist() == [180, 20]
        assert 0.3 < data.test.group.mean() < 0.7
    network = task.network()
    variables = network.init(jax.random.key(0), data.test.x)
    logits, other = (network.apply(variables, split.x)[0] for split in (data.test, swapped(data.test)))
    assert logits.shape == (len(data.test.y), 2)
    np.testing.assert_allclose(other, -logits, atol=1e-5)  # biases are 0


def test_accuracies_by_length():
    lines = [
        preferences.Line("", "long one", "b"),
        preferences.Line("", "b", "long one"),
        preferences.Line("", "ab", "cd"),
    ]
    pairs = preferences.shuffled(lines, np.arange(3), np.zeros(3, np.int32), seed=0)
    made = demix_alignment.accuracies(np.array([[1.0, -1.0, 2.0], [1.0, 3.0, -2.0]]), pairs)
    expected = {"accuracy": (1 + 0.5 + 0.5) / 3, "longer_preferred": 1, "shorter_preferred": 0.5}
    assert made == pytest.approx(expected | {"worst_group_accuracy": 0.5, "reward_margin": 4 / 6})


def test_training_sets_repair_by_kind(drawn):
    draw, _ = drawn
    truth, y = draw.train.flags, draw.train.pairs.y
    sets = demix_alignment.training_sets(draw, np.ones(60, bool), truth.astype(float), truth, 0)
    roles = {name: diagnoses.kind_of(name, demix_alignment.KINDS).role for name in sets}
    assert set(roles.values()) == {"plain", "ours", "ceiling", "rival", "control"}
    assert all(role == "ceiling" for name, role in roles.items() if name.startswith("oracle"))
    assert roles[demix_alignment.RECOMMENDED] == "ours"
    np.testing.assert_array_equal(sets["predicted, sides exchanged"][0] != y, truth[:, 0])
    np.testing.assert_array_equal(sets["oracle, as published"][1] == 0, truth[:, 1])
    np.testing.assert_array_equal(sets["drop all detected"][1] == 0, truth.any(1))
    assert sets["drop as many at random"][1].sum() == sets["drop all detected"][1].sum()
    assert (sets["dirty"][1] == 1).all()


def test_first_seeds_that_teach_are_refused():
    with pytest.raises(ValueError, match="first_seed: found 2, expected 4 or more"):
        demix_alignment.Config(first_seed=2)


def test_split_of_has_the_labels_and_ids():
    pairs = TASK.load()
    split = split_of(pairs, make_features(TASK, pairs)(pairs))
    splits.check_split(split, name="pairs", num_classes=2)


@pytest.fixture
def language_model(tmp_path, monkeypatch):
    """A folder of the hub with a Llama of three blocks and random weights, and a place for kept states."""
    config = decoders.LlamaConfig(vocabulary=300, width=16, blocks=3, heads=2, key_heads=1, inner=24, positions=64)
    made_decoders.write_folder(tmp_path / "model", config)
    monkeypatch.setattr(text_tasks, "MINILM", text_tasks.MINILM._replace(made=tmp_path / "made"))
    return tmp_path / "model"


@pytest.mark.slow
def test_a_language_model_is_diagnosed_and_repaired_like_a_reward(language_model, tmp_path):
    few = demix_alignment.STUDY.smoke(demix_alignment.Config())
    config = replace(few, cleans=(0.5,), train=40, validation=16, rounds=3, model=str(language_model), test=10)
    facts, _ = demix_alignment.prepare(TASK, config, tmp_path)(2, lambda count: None)
    repaired = facts["0.5"]["repair"]
    assert {"dirty", "oracle, as published", demix_alignment.RECOMMENDED} <= repaired.keys()
    assert all(0 <= of["accuracy"] <= 1 and np.isfinite(of["reward_margin"]) for of in repaired.values())
    assert all(0 <= of["macro_f1"] <= 1 for of in facts["0.5"]["diagnosis"].values())


def test_adapters_start_at_the_reference_and_are_all_that_is_trained(language_model, tmp_path):
    learner = pair_cells.dpo(pair_cells.language_model(str(language_model)), 40, tmp_path, rank=2)
    pairs = preferences.take(TASK.load(), np.arange(6))
    split = split_of(pairs, learner.inputs(pairs, pairs))
    model = learner.model(learner.shared)
    variables = model.init(jax.random.key(0), split.x)
    assert variables.keys() == {"params"}
    np.testing.assert_allclose(model.apply(variables, split.x)[0], 0, atol=1e-5)
    # Of two blocks, rank 2: queries and output, keys and values, three matrices between 16 and 24.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 2 * 2 * (2 * 32 + 2 * 24 + 3 * 40)


def test_pairs_that_all_prefer_the_longer_response_have_one_group(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a longer response", "rejected": "short"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = language.Config(pairs=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(ValueError, match=r"found {'longer preferred': 22, 'shorter preferred': 0} in the train part"):
        language.parts_of(language.TASK, config, 0)


def test_pairs_of_the_user_are_read_where_data_are(tmp_path, monkeypatch):
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": "bad" if i else "good 0"} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert preference_tasks.PAIRS.load().id.tolist() == [1, 2]
