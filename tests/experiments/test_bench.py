"""The benchmarks run without PyTorch, and leave a valid record."""

import pytest

from d3mjax.runtime import runs, store
from experiments.bench import models, replays
from experiments.bench.__main__ import main


@pytest.mark.slow
def test_smoke_run_without_pytorch_says_so_and_leaves_valid_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "SIZES", models.SIZES[:1])
    main(tmp_path, "smoke", tmp_path / "no-python", smoke=True)
    printed = capsys.readouterr().out
    assert printed.count("no comparison with") == 2
    document = store.read_json(tmp_path / "bench" / "smoke" / "metrics.json")
    runs.validate_document(document)
    rows = {(row["task"].split(",")[0], row["method"]): row for row in document["rows"]}
    expected = {"Rademacher", "SJLT", "tensor sketch", "group_scores, 256 examples"}
    assert {method for task, method in rows if task == "TRAK"} == {f"d3mjax, {name}" for name in expected}
    assert not any("ratio_to_library" in row["metrics"] for row in rows.values())
    # Products and explicit gradients of float32, and both paths of the LASSO, agree.
    assert rows["influence tensor", "d3mjax, Gram products"]["metrics"]["largest_error"]["mean"] < 1e-5
    # Every preconditioner leads to the scores of plain CG, and every scheme to the same derivatives.
    every = {method: row["metrics"] for (_, method), row in rows.items()}
    assert all(figures["difference"]["mean"] < 1e-3 for name, figures in every.items() if name.startswith("CG"))
    values = [every[scheme]["largest"]["mean"] for scheme in replays.SCHEMES if scheme != "training alone"]
    assert max(values) < 1.0001 * min(values)
    for steps in ("float32", "bfloat16 steps"):
        assert rows["LASSO", f"d3mjax, {steps}"]["metrics"]["largest_excess"]["mean"] < 1e-3


def test_work_of_a_training_counts_the_products_of_every_layer():
    mlp = models.Task(inputs=3, hidden=4, classes=2, steps=5, batch=7)
    forward = [3 * 4, 4 * 2]
    # Forward and weight gradients of both layers; input gradients of the second alone.
    assert mlp.flops == 2 * 5 * 7 * (2 * sum(forward) + forward[1])
