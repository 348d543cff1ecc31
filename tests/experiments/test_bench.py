"""The benchmarks run without PyTorch, and leave a valid record."""

from d3mjax.runtime import runs, store
from experiments.bench import models
from experiments.bench.__main__ import main


def test_smoke_run_without_pytorch_says_so_and_leaves_valid_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "SIZES", models.SIZES[:1])
    main(tmp_path, "smoke", tmp_path / "no-python", smoke=True)
    printed = capsys.readouterr().out
    assert "no comparison with PyTorch" in printed
    assert "no comparison with the TRAK library" in printed
    document = store.read_json(tmp_path / "bench" / "smoke" / "metrics.json")
    runs.validate_document(document)
    trak = [row for row in document["rows"] if row["task"].startswith("TRAK")]
    assert {row["method"] for row in trak} == {
        "d3mjax, Rademacher",
        "d3mjax, SJLT",
        "d3mjax, tensor sketch",
        "d3mjax, group_scores, 256 examples",
    }
    assert all(row["metrics"]["seconds"]["mean"] > 0 for row in trak)
    (bank,) = [row for row in document["rows"] if row["task"].startswith("Bank")]
    assert 0 < bank["metrics"]["r2"]["mean"] < 1
    assert "ratio_to_library" not in {name for row in trak for name in row["metrics"]}
