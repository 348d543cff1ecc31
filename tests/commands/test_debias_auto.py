"""The command without group labels: what follows from the groups that are found, and what a refusal does."""

import csv
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from planted_files import QUICK, make_files, planted, write_csv

from d3mjax.attribution import trak
from d3mjax.commands import debias, debias_auto, debias_report, debias_seed, debias_shared, verdict
from d3mjax.commands.debias_data import UserData
from d3mjax.commands.debias_seed import NEGATIVE, OFFSETS, PLAIN, TARGETS_ALONE, WEIGHTS
from d3mjax.debiasing import auto, d3m, pseudo_groups
from d3mjax.types import Split


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


@pytest.fixture
def without_training(monkeypatch):
    """``patch(bit_of, split)``: nothing is trained, targets are on the side ``bit_of(y)``; returns the weights tried.

    Every accuracy is the share of examples kept, every loss of a group with targets is the same, and its column is
    (g + 1) (i / n - 1/2).
    """
    trained = []

    def train(recipe, keys, weights, *, progress, split=None):
        trained.append(np.array(weights))
        return (trained[-1] > 0).mean(1)

    def evaluate(recipe, data, share):
        groups = np.repeat(share[:, None], 2, 1)
        accuracies = (groups, groups, share)
        values = (np.ones((len(share), 4)), *accuracies, 0 * groups, *accuracies)
        right = np.ones((len(share), len(data.test.y)), bool)
        return d3m.Evaluation(*map(jnp.asarray, (*values, right, right)))

    def train_checkpoints(keys, model, trainer, data, num_steps, *, width, mesh):
        sizes = (len(keys), len(data.target.y)), (len(keys), len(data.train.y))
        return auto.Checkpoints({}, np.zeros(sizes[0], np.float32), np.ones(sizes[1], bool))

    def attribute_kernels(keys, model, checkpoints, data, num_groups, attribution, *, width, mesh):
        n, c = len(data.train.y), len(keys)
        present = np.array([np.isin(np.arange(num_groups), g) for g in np.asarray(data.target.group).T])
        b = np.outer(np.arange(n) / n - 0.5, np.tile(np.arange(1, num_groups + 1), len(present))).astype(np.float32)
        b[:, ~present.ravel()] = np.nan
        info = trak.Info(jnp.zeros((c, 2)), jnp.ones((c, 2)), jnp.ones((c, 2, n), bool))
        return np.broadcast_to(b, (c, 2, *b.shape)), np.ones((c, 2, n), np.float32), info

    def patch(bit_of, split):
        def split_targets(tau, checkpoints, y, num_classes, *, min_loss_share):
            bit = bit_of(np.arange(len(y)), y)
            facts = np.array([[0.9] * 2, [0.8] * 2, [0.4] * 2])
            return pseudo_groups.PseudoGroups((2 * y + bit).astype(np.int32), 0.0 * y, np.array(split), *facts)

        tau = lambda key, model, checkpoints, data, options: np.zeros((len(data.target.y), 1))
        for module, name, fake in (
            (debias_seed, "train", train),
            (debias_shared, "train", train),
            (debias_seed, "evaluate", evaluate),
            (auto, "train_checkpoints", train_checkpoints),
            (auto, "attribute_targets", tau),
            (auto, "split_targets", split_targets),
            (auto, "attribute_kernels", attribute_kernels),
        ):
            monkeypatch.setattr(module, name, fake)
        return trained

    return patch


def measured(job, seed):
    """The unit of one division."""
    recipe, silent = debias.recipe_of(job), lambda count, state="": 0
    return debias_seed.measure(recipe, debias_shared.measure(recipe, 0, silent), seed, silent)


@pytest.mark.parametrize("whole", [False, True])
def test_scores_are_for_the_groups_that_were_found(tmp_path, without_training, whole):
    split = [True, not whole]
    without_training(lambda i, y: (i % 4 == 0) & np.array(split)[y], split)
    job = debias.prepare(debias.Config(make_auto_files(tmp_path), **QUICK), results=tmp_path)
    facts, arrays = measured(job, 0)
    # All that have targets weigh the same: (1 + 2 + 3) / 3 or (1 + 2 + 3 + 4) / 4.
    np.testing.assert_allclose(arrays["score"][0], (np.arange(400) / 400 - 0.5) * (2 if whole else 2.5), rtol=1e-5)
    assert facts["removed"][NEGATIVE] == 0.5
    assert facts["removed"][debias_seed.SELECTED] == 0  # accuracy is the share kept, and the worst class selects
    assert arrays["selection"].shape == (len(facts["candidates"]), 2)
    assert arrays["curve"].shape == (len(facts["shares"]), 1, 2)
    sides = np.bincount(arrays["pseudo_group"], minlength=4)
    np.testing.assert_array_equal(np.ravel(facts["auto"]["sides"]), sides)
    assert (sides > 0).tolist() == [True, True, True, not whole]


def test_a_refusal_removes_nothing_and_stores_only_what_was_trained(tmp_path, monkeypatch, capsys, without_training):
    trained = without_training(lambda i, y: 0 * y, [False, False])
    files = make_auto_files(tmp_path)
    line = ["d3mjax-debias", "--train", files.train, "--validation", files.target, "--label", "income", "--auto"]
    monkeypatch.setattr(sys, "argv", [*line, "--id", "row", "--seeds", "2", "--results", str(tmp_path), "--run", "r"])
    debias.cli()
    run = tmp_path / "debias" / "r"
    assert all((weights > 0).all() for weights in trained if weights.shape[1] == 400)
    with open(run / "examples.csv") as file:
        assert {line["keep"] for line in csv.DictReader(file)} == {"1"}
    with open(run / "pseudo_groups.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"r1-{i}" for i in range(400)]
    assert {(line["group"], line["seeds"]) for line in lines} == {("", "0")}
    with np.load(run / "units" / "train-0.npz") as unit:
        assert {name for name in unit.files if name.startswith("test/")} == {
            f"test/{name}" for name in (PLAIN, OFFSETS, WEIGHTS, TARGETS_ALONE)
        }
    first, *others = debias_auto.refusal()
    assert (run / "advice.txt").read_text().startswith(f"{first}\n")
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in [first, *others])
    assert debias_auto.ABOUT.split(".")[0] in (run / "report.html").read_text().replace("&#x27;", "'")


def test_a_seed_that_refuses_counts_as_plain_training(tmp_path, without_training):
    without_training(lambda i, y: i % 4 == 0, [True, True])
    job = debias.prepare(debias.Config(make_auto_files(tmp_path), **QUICK), results=tmp_path)
    found = measured(job, 0)
    without_training(lambda i, y: 0 * y, [False, False])
    refused = measured(job, 1)
    rows = {row["method"]: row for row in debias_report.rows_of("t", [found, refused])}
    assert rows[NEGATIVE]["metrics"]["removed"]["per_seed"] == [0.5, 0.0]
    assert rows[NEGATIVE]["metrics"]["worst_group_accuracy"]["per_seed"] == [0.5, 1.0]
    assert {row["information"] for row in rows.values()} == {"none"}


def test_a_target_is_where_most_seeds_put_it():
    y = np.array([0, 0, 1, 1])
    split = Split(np.zeros((4, 1)), y, y, np.arange(10, 14))
    data = UserData(split, split, None, np.arange(4), np.array(list("abcd")), ("no", "yes"), ("no", "yes"))
    seeds = [([10, 12], [1, 2], [True, False]), ([10, 13], [0, 3], [True, True]), ([10, 13], [1, 2], [True, True])]
    units = [
        ({"auto": {"split": split}}, {"target_id": np.array(ids), "pseudo_group": np.array(group)})
        for ids, group, split in seeds
    ]
    assert debias_auto.target_lines(data, units) == [
        ("a", "no", "no, weaker side", "0.67", 3),
        ("b", "no", "", "", 0),
        ("c", "yes", "", "", 0),
        ("d", "yes", "yes, stronger side", "0.50", 2),
    ]


def test_sizes_and_separation_are_means_over_the_seeds_that_split():
    splits = [
        {"split": [True, True], "sides": [[30, 10], [40, 6]], "separation": [0.8, 0.7], "loss_share": [0.4, 0.3]},
        {"split": [True, False], "sides": [[32, 8], [46, 0]], "separation": [0.6, None], "loss_share": [0.2, None]},
        {"split": [False, False], "sides": [[40, 0], [46, 0]], "separation": [0.1, 0.1], "loss_share": [0.1, 0.1]},
    ]
    refusing, unknown = debias_auto.caveats(splits)
    assert "unknown" in unknown
    assert refusing.startswith("1 of 3 seeds")
    sides = "\n".join(debias_auto.details(splits, ("no", "yes")))
    assert "Class no: 31 on the stronger side + 9 on the weaker side; loss share 0.30, separation 0.70." in sides
    assert "Class yes: 43 on the stronger side + 3 on the weaker side; loss share 0.30, separation 0.70." in sides
    assert debias_auto.refused(splits[2:])
    assert not debias_auto.refused(splits)
    assert not debias_auto.refused([])
    refused = [({"auto": splits[2]}, {})]
    result = debias_report.decide([], refused, ("no", "yes"), 0.05)
    assert result.action == verdict.LEAVE
    assert debias_report.findings(result, [], refused, ("no", "yes")) == debias_auto.refusal()
