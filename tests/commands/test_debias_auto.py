"""The command without group labels: who is found, what follows from it, and what it says and does when it refuses."""

import csv
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_files import QUICK, make_files, planted, write_csv

from d3mjax.commands import debias, debias_auto, debias_data, debias_report
from d3mjax.commands.debias_data import Own
from d3mjax.debiasing import pseudo_groups
from d3mjax.runtime import hosts
from d3mjax.types import Split
from experiments.d3m import engine


def weak_feature(seed, n, aligned):
    """`planted` without noise, its feature of the class so faint that plain training goes by the shortcut."""
    columns = planted(seed, n, aligned)
    columns["a"] = columns["a"] - 2.0 * (columns["income"] == "high")
    return {name: columns[name] for name in ("a", "b", "sex", "income", "row")}


def make_auto_files(path):
    files = make_files(path)
    for name, columns in {"train": weak_feature(0, 400, 0.95), "val": weak_feature(1, 400, 0.75)}.items():
        write_csv(path / f"{name}.csv", {k: v for k, v in columns.items() if k != "sex"})
    return replace(files, group=None, auto=True)


def made_pseudo(y, bit, split):
    return pseudo_groups.PseudoGroups(
        2 * y + bit, 0.0 * y, np.array(split), *np.array([[0.9] * 2, [0.8] * 2, [0.4] * 2])
    )


def split_as(bit_of, split):
    """`debias_auto.make` that trains nothing: sides by ``bit_of(data.target)``, and `made_programs`."""

    def make(task, mesh, source):
        def side(data, root):
            return made_pseudo(data.target.y, bit_of(data.target).astype(np.int32), split)

        return debias_auto.Auto(side, made_programs(2 * len(task.class_names)))

    return make


def made_programs(num_groups, trained=None):
    """Programs that train nothing: every accuracy is the share of examples kept, every loss of a group with targets is
    1, and its column is (g + 1) (i / n - 1/2); weights go to the list ``trained``.
    """

    def fit(train, data, keys, weights):
        if trained is not None:
            trained.append(weights)
        share = (np.asarray(weights) > 0).mean(1)
        groups = np.repeat(share[:, None], num_groups, 1)
        losses = np.where(np.isin(np.arange(num_groups), data.target.group), groups, np.nan)
        return engine.Evaluation(*map(jnp.asarray, (losses, groups, groups, share)))

    def columns(data, key, progress):
        n = len(data.train.y)
        b = np.outer(np.arange(n) / n - 0.5, np.arange(1, num_groups + 1)).astype(np.float32)
        b[:, ~np.isin(np.arange(num_groups), data.target.group)] = np.nan
        return b[None], {}, engine.Checkpoints(np.stack([b, b]), np.ones((2, n), bool))

    return engine.Programs(fit, fit, columns)


def test_the_minority_is_found_without_its_labels(tmp_path):
    files = make_auto_files(tmp_path)
    task = debias.task_of(debias.Config(files, **QUICK), debias_data.read(files))
    task = replace(task, hidden=(8,), steps=100)
    auto = debias_auto.make(task, hosts.local_mesh(), engine.Trak(models=2, size=32))
    data = task.read(0)
    pseudo = auto.split(data, jax.random.key(0))
    columns = weak_feature(1, 400, 0.75)
    minority = ((columns["income"] == "high") != (columns["sex"] == "M"))[np.asarray(data.target.id) - 400]
    assert pseudo.split.all()
    assert ((pseudo.group % 2 == 1) == minority).mean() > 0.95
    assert (pseudo.group // 2 == data.target.y).all()


@pytest.mark.parametrize("whole", [False, True])
def test_scores_are_for_the_groups_that_were_found(tmp_path, monkeypatch, whole):
    files = make_auto_files(tmp_path)
    config = debias.Config(files, **QUICK)
    task = debias.task_of(config, debias_data.read(files))
    split = [True, not whole]
    auto = split_as(lambda target: (target.id % 4 == 0) & np.array(split)[target.y], split)(task, None, None)
    facts, arrays = debias.debias(task, config, made_programs(2), auto, 0, lambda count: None)
    # All that have targets weigh the same: (1 + 2 + 3) / 3 or (1 + 2 + 3 + 4) / 4.
    np.testing.assert_allclose(arrays["score"][0], (np.arange(400) / 400 - 0.5) * (2 if whole else 2.5), rtol=1e-5)
    assert facts["removed"]["D3M, drop negative"] == 0.5
    assert facts["chosen"] == "D3M/0.0"  # accuracy is the share kept, and the worst class selects
    assert arrays["selection/D3M/0.1"].shape == (1, 2)
    sides = np.bincount(arrays["pseudo_group"], minlength=4)
    np.testing.assert_array_equal(facts["auto"]["sides"].ravel(), sides)
    assert (sides > 0).tolist() == [True, True, True, not whole]


def test_a_refusal_removes_nothing_and_says_why(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(debias_auto, "make", split_as(lambda target: 0 * target.y, [False, False]))
    monkeypatch.setattr(engine, "make_programs", lambda *args, **options: made_programs(2, trained))
    files = make_auto_files(tmp_path)
    line = ["d3mjax-debias", "--train", files.train, "--target", files.target, "--label", "income", "--auto"]
    monkeypatch.setattr(sys, "argv", [*line, "--id", "row", "--seeds", "2", "--results", str(tmp_path), "--run", "r"])
    debias.cli()
    run = tmp_path / "debias" / "r"
    assert all((weights == 1).all() for weights in trained if weights.shape[1] == 400)
    with open(run / "examples.csv") as file:
        assert {line["keep"] for line in csv.DictReader(file)} == {"1"}
    with open(run / "pseudo_groups.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"r1-{i}" for i in range(400)]
    assert {(line["group"], line["seeds"]) for line in lines} == {("", "0")}
    advice = (run / "advice.txt").read_text()
    assert "No reliable groups were found among the targets, so nothing is removed" in advice
    assert "targets, not split; loss share 0.40, separation 0.80." in advice
    assert "give group labels for some validation rows" in advice
    assert advice.splitlines()[0] in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "How the worst of the true groups does is unknown" in page


def test_a_target_is_where_most_seeds_put_it():
    y = np.array([0, 0, 1, 1])
    split = Split(np.zeros((4, 1)), y, y, np.arange(10, 14))
    own = Own(split, split, None, np.arange(4), np.array(list("abcd")), ("no", "yes"), ("no", "yes"))
    seeds = [([10, 12], [1, 2], [True, False]), ([10, 13], [0, 3], [True, True]), ([10, 13], [1, 2], [True, True])]
    found = [
        ({"auto": {"split": split}}, {"target_id": np.array(ids), "pseudo_group": np.array(group)})
        for ids, group, split in seeds
    ]
    assert debias_auto.target_lines(own, found) == [
        ("a", "no", "no, weaker side", "0.67", 3),
        ("b", "no", "", "", 0),
        ("c", "yes", "", "", 0),
        ("d", "yes", "yes, stronger side", "0.50", 2),
    ]


def test_sizes_and_separation_are_told_by_class_over_the_seeds_that_split():
    splits = [
        {"split": [True, True], "sides": [[30, 10], [40, 6]], "separation": [0.8, 0.7], "loss_share": [0.4, 0.3]},
        {"split": [True, False], "sides": [[32, 8], [46, 0]], "separation": [0.6, None], "loss_share": [0.2, None]},
        {"split": [False, False], "sides": [[40, 0], [46, 0]], "separation": [0.1, 0.1], "loss_share": [0.1, 0.1]},
    ]
    caveat, told = debias_auto.sentences(splits, ("no", "yes"))
    assert "the true groups are unknown" in caveat
    assert told.startswith("1 of 3 seeds found no reliable groups and removed nothing: do not rely on this list.")
    assert "Class no: 31 on the stronger side + 9 on the weaker side; loss share 0.30, separation 0.70." in told
    assert "Class yes: 43 on the stronger side + 3 on the weaker side; loss share 0.30, separation 0.70." in told
    assert debias_auto.refused(splits[2:])
    assert not debias_auto.refused(splits)
    assert not debias_auto.refused([])
    assert "Class no: 40 targets, not split; loss share 0.10" in debias_auto.refusal(splits[2:], ("no", "yes"))[1]
    refused = [({"auto": splits[2]}, {})]
    assert debias_report.advice([], refused, ("no", "yes")) == debias_auto.refusal(splits[2:], ("no", "yes"))
