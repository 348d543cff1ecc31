"""d3mjax-diagnose --regression by the diagnoser that ships: wrong labels are listed, repaired, judged in their unit."""

import csv
import json

import numpy as np
import pytest
from planted_files import write_csv

from d3mjax.commands import diagnose, verdict
from d3mjax.commands.diagnose_data import Files

WRONG = 40


def planted(seed, n, wrong):
    """Columns of n rows with labels around 500, of which the first ``wrong`` are 900."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    price = np.round(500 + 100 * a + 50 * b + 5 * rng.normal(size=n)).astype(int)
    price[:wrong] = 900
    columns = {"a": np.round(a, 3), "b": np.round(b, 3), "job": rng.choice(["cook", "clerk"], n), "price": price}
    return {name: values.astype(str) for name, values in columns.items()} | {
        "row": np.array([f"r{seed}-{i}" for i in range(n)])
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers")
    files = Files(
        write_csv(path / "train.csv", planted(0, 400, WRONG)),
        write_csv(path / "val.csv", planted(1, 96, 0)),
        "price",
        id="row",
        regression=True,
    )
    return diagnose.main(diagnose.Config(files, networks=2, seeds=3), path / "results")


def test_wrong_labels_are_suspects_and_lose_their_weight(run):
    with open(run / "suspects.csv", newline="") as file:
        suspects = [line for line in csv.DictReader(file) if line["kind"] == "label error"]
    wrong = {f"r0-{i}" for i in range(WRONG)}
    listed = {line["id"] for line in suspects}
    assert len(wrong & listed) >= 0.8 * WRONG
    proposals = [line["proposal"] for line in suspects if line["id"] in wrong and line["proposal"].startswith("drop")]
    assert len(proposals) >= WRONG / 2
    predicted = [float(text.removeprefix("drop: weight 0; other rows predict ")) for text in proposals]
    assert abs(np.mean(predicted) - 500) < 150
    with open(run / "repaired.csv", newline="") as file:
        rows = {line["row"]: line for line in csv.DictReader(file)}
    assert {row["price"] for name, row in rows.items() if name in wrong} == {"900"}
    dropped = {name for name, row in rows.items() if float(row["weight"]) == 0}
    assert len(dropped & wrong) >= len(proposals)


def test_the_page_and_the_verdict_are_of_errors(run):
    rows = {row["method"]: row["metrics"] for row in json.loads((run / "metrics.json").read_text())["rows"]}
    before, after = (rows[name] for name in (diagnose.diagnose_report.BEFORE, diagnose.diagnose_report.AFTER))
    assert {"rms_error", "worst_quarter_rms_error", "mean_absolute_error"} <= before.keys()
    assert after["rms_error"]["mean"] < before["rms_error"]["mean"]
    advice = (run / "advice.txt").read_text()
    assert "root mean square error from" in advice
    assert "accuracy" not in advice
    assert "labels from" in (run / "report.html").read_text()


def figures(*errors):
    return {"metrics": {name: {"mean": float(np.mean(errors)), "std": float(np.std(errors, ddof=1))} for name in NAMES}}


NAMES = (verdict.RMS, verdict.WORST_QUARTER)


def test_smaller_errors_are_better():
    decide = lambda before, after, **options: verdict.decide_repair(
        figures(*before), figures(*after), suspects=3, reliable=["label error"], risk=None, errors=True, **options
    )
    assert decide((10, 10.5), (8, 8.5)).action == verdict.REPAIR
    assert decide((10, 10.5), (12, 12.5)).action == verdict.LOOK
    assert "from 10.25 to 8.25" in decide((10, 10.5), (8, 8.5)).sentence
    assert "worst quarter" in decide((10, 10.5), (12, 12.5)).reasons[0]


def test_a_label_of_two_values_is_refused(tmp_path):
    columns = planted(0, 300, 0) | {"price": np.array(["0", "1"])[np.arange(300) % 2]}
    files = Files(
        write_csv(tmp_path / "train.csv", columns),
        write_csv(tmp_path / "val.csv", planted(1, 96, 0)),
        "price",
        regression=True,
    )
    with pytest.raises(ValueError, match=r"--label: found 2 different values in 'price'.*use classification"):
        diagnose.diagnose_data.read(files)
