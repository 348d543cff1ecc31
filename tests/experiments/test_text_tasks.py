"""The tasks of sentences on small made files and a tiny encoder of random weights, from files to tables."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import made_encoder
import made_text
import numpy as np
import published_weights
import pytest
import smoke
from safetensors.numpy import save_file

from d3mjax.data import splits
from d3mjax.networks import transformers
from experiments import local_data, study, text_tasks
from experiments.d3m import case_study, d3m
from experiments.d3m.hidden_attributes import CASES
from experiments.d3m.retraining import retrain
from experiments.local_data import Source
from experiments.tasks import Trak, columns

TINY = transformers.BertConfig(vocabulary=60, width=8, blocks=2, heads=2, inner=12, positions=24)
SICK = {"train": (20, 8, 12, 7, 9), "trial": (5, 2, 3, 3, 6), "test": (6, 4, 5, 3, 2)}
MULTINLI = {"train": (7, 4, 6, 4, 6, 4), "val": (12,) * 6, "test": (3,) * 6}
PLANTED = text_tasks.sentences.Sizes((3, 12, 12, 3), (3,) * 4, (4,) * 4, (5,) * 4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """All data sets and one encoder."""
    directory = tmp_path_factory.mktemp("data")
    made_text.sick(directory / "sick", SICK)
    made_text.multinli(directory / "multinli", MULTINLI)
    made_text.rated(directory / "rated.tar.gz", made_text.corpora(25))
    (directory / "encoder").mkdir()
    made_text.vocabulary(directory / "encoder" / "vocab.txt")
    (directory / "encoder" / "config.json").write_text(json.dumps(made_encoder.config_of(TINY)))
    tensors = published_weights.bert_tensors(TINY)
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(body, directory / "encoder" / "model.safetensors")
    return directory


@pytest.fixture
def tasks(directory, tmp_path, monkeypatch):
    """All tasks on these files, at two steps."""
    monkeypatch.setenv(local_data.VARIABLE, str(directory))
    monkeypatch.setitem(local_data.SOURCES, "encoder", Source("encoder", "the tests"))
    monkeypatch.setitem(local_data.SOURCES, "vader", Source("rated.tar.gz", "the tests"))
    encoder = text_tasks.Encoder("encoder", TINY, 24, tmp_path / "made")
    options = {name: {"sizes": (60, 40, 40)} for name in ("sentences", "domains")}
    options |= {"negation": {"sizes": PLANTED}}
    networks = {"sick-blocks": 1, "multinli": 0}
    made = {}
    for name, task in text_tasks.TASKS.items():
        load = partial(task.load, encoder=encoder, counts=None, **options.get(name, {}))
        make = (
            partial(text_tasks.fine_tuned, encoder, len(task.class_names), networks[name]) if name in networks else None
        )
        made[name] = replace(task, load=load, make_model=make, steps=2, batch=8)
    blocks = lambda encoder, *pairs: text_tasks.states(encoder, 1, *pairs)
    made["sick-blocks"] = replace(made["sick-blocks"], load=partial(made["sick-blocks"].load, features=blocks))
    return made


WIDTHS = {"sentences": 8, "negation": 8, "domains": 8, "sick": 16, "sick-hypothesis": 32}


@pytest.mark.parametrize("name", WIDTHS)
def test_frozen_features_are_standardised(name, tasks):
    data = tasks[name].read(0)
    assert data.train.x.shape[1:] == (WIDTHS[name],)
    np.testing.assert_allclose(data.train.x.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(data.train.x.std(0), 1, atol=1e-4)


def test_features_that_hardly_vary_are_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    x[:, 2] = 0.1 + 1e-9 * x[:, 2]
    split = splits.Split(x, np.zeros(6, int), np.zeros(6, int), np.arange(6))
    data = text_tasks.standardised(splits.Data(split, split, split, split._replace(x=x + 1)))
    assert (data.test.x[:, 2] == 0).all()
    np.testing.assert_allclose(data.train.x.std(0), [1, 1, 0, 1], rtol=1e-5)


def test_vectors_are_those_of_each_sentence_alone(tasks, directory):
    encoder = tasks["sick"].load.keywords["encoder"]
    texts = ["a man is eating", "old dog", "a man is eating", "bad film " * 5]
    vectors = text_tasks.vectors(encoder, texts)
    model = transformers.sentence_encoder(TINY)
    weights = transformers.from_published(model, text_tasks.tensors(encoder))
    for text, vector in zip(texts, vectors, strict=True):
        alone = model.apply(weights, text_tasks.encode(encoder, [text]))[0][0]
        np.testing.assert_allclose(vector, alone, rtol=1e-4, atol=1e-5)
    u, v = vectors[[0, 1]]
    expected = np.concatenate([u, v, np.abs(u - v), u * v])
    np.testing.assert_allclose(text_tasks.both(encoder, texts[:1], texts[1:2])[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        text_tasks.differences(encoder, texts[:1], texts[1:2])[0], expected[16:], rtol=1e-4, atol=1e-6
    )


def test_sentences_of_examples_are_shown(tasks):
    for name, part in (("sick", "test not"), ("sentences", " not ")):
        data = tasks[name].read(0)
        negated = np.flatnonzero(data.test.group == (4 if name == "sick" else 1))[:2]
        for text in tasks[name].examples(0, data.test, negated):
            assert part in text if name == "sentences" else text.endswith(" not")
            assert (" / " in text) == (name == "sick")


def test_smoke_data_keep_every_group(tasks):
    data = tasks["domains"].read(0, smoke=True)
    splits.check_data(data, 2, 8)
    assert splits.group_sizes(data.test, 8).max() <= text_tasks.FEW


def test_texts_that_are_cut_are_counted(tasks, capsys):
    encoder = tasks["sick"].load.keywords["encoder"]
    text_tasks.encode(encoder._replace(max_length=8), ["a man is eating a good dog", "old"])
    assert capsys.readouterr().err == "1 of 2 texts are cut to 8 tokens\n"


def test_a_network_goes_on_from_the_states_of_its_frozen_blocks(tasks, monkeypatch):
    blocks, encoder = tasks["sick-blocks"], tasks["sick"].load.keywords["encoder"]
    data, pairs = blocks.read(0), text_tasks.sick.read_sick(local_data.find("sick"))
    rows = [pairs.id.tolist().index(i) for i in data.test.id.tolist()]
    tokens = text_tasks.encode(encoder, pairs.first, pairs.second)
    whole = text_tasks.fine_tuned(encoder, 3)
    upper = blocks.network()
    variables = whole.init(jax.random.key(0), jax.tree.map(lambda a: a[:1], tokens))
    above = transformers.divided(variables, 1)[1]
    expected, _ = whole.apply(variables, jax.tree.map(lambda a: jnp.asarray(a[rows]), tokens))
    monkeypatch.setattr("experiments.tasks.PART", 7)
    np.testing.assert_allclose(upper.apply(above, data.test.x)[0], expected, rtol=1e-3, atol=1e-4)


def test_missing_files_are_named(tasks, monkeypatch, tmp_path):
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    for name, source in (("sick", "sick"), ("sentences", "rated"), ("multinli", "multinli")):
        with pytest.raises(ValueError, match=rf"found no {source}.*Origin: "):
            tasks[name].read(0)
    with pytest.raises(ValueError, match=r"found no encoder \(encoder\)"):
        tasks["multinli"].network()


@pytest.mark.slow
def test_d3m_runs_from_files_to_tables(tasks, tmp_path):
    name = "sick-hypothesis"
    config = d3m.Config(tasks=(name,), seeds=1, retrains=1, source=Trak(models=1, size=16), others=())
    run = study.run(replace(d3m.STUDY, tasks=tasks), config, tmp_path)
    methods = smoke.means(smoke.read_rows(run), name)
    assert methods.keys() == d3m.KINDS.keys()
    assert all(0 <= row["worst_group_accuracy"] <= row["average_accuracy"] <= 1 for row in methods.values())


@pytest.mark.slow
def test_the_case_study_shows_sentences_of_both_ends(tasks, tmp_path):
    case = CASES["sick"]._replace(task=tasks["sick"])
    config = case_study.Config(tasks=("sick",), seeds=1, retrains=1, source=Trak(models=1, size=16))
    run = study.run(replace(case_study.STUDY, tasks={"sick": case}), config, tmp_path)
    methods = smoke.means(smoke.read_rows(run), "sick")
    assert methods.keys() == case_study.METHODS.keys()
    assert 0.5 <= methods[case_study.FIRST]["AUC hidden"] <= 1
    page = (run / "report.html").read_text()
    data = tasks["sick"].read(0)
    shown = tasks["sick"].examples(0, data.target, np.arange(len(data.target.y)))
    assert any(text in page for text in shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sick-blocks", "multinli"])
def test_fine_tuned_networks_are_attributed_and_trained_again(name, tasks):
    task, data = tasks[name], tasks[name].read(0)
    made = columns(task, Trak(models=1, size=16), jax.random.key(0), data).columns
    assert made.shape == (1, len(data.train.y), len(task.group_names))
    assert np.isfinite(made).all()
    keep = np.ones(len(data.train.y))
    keep[np.argsort(made[0].mean(1))[:2]] = 0
    (evaluation,) = retrain(task, data, jax.random.split(jax.random.key(1), 1), {"D3M": keep}).values()
    assert np.isfinite(evaluation.losses).all()
    assert evaluation.test.shape == (1, len(task.group_names))
