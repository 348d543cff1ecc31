"""The page over all results shows what each run's own page shows, and no smoke runs."""

import os

import pytest

from d3mjax.reports import page, plots
from d3mjax.reports.rows import row
from d3mjax.runtime import runs
from experiments import overview


def finished(results, experiment, run, *, smoke=False, accuracy=0.5, at=0):
    directory = runs.open_run(results, experiment, {"smoke": smoke}, run)
    rows = [row("patch", "ERM", {"worst_group_accuracy": [accuracy, accuracy + 0.02]}, role="plain")]
    figure = plots.curves({"ours": ([1, 2], [[0.1, 0.2]])}, xlabel="x", ylabel="y")
    page.finish(
        directory, experiment, {"smoke": smoke}, rows, {"patch": page.Section("About it.", {"Seen.": figure})}, 1.0
    )
    os.utime(directory / "metrics.json", (at, at))
    return directory


def test_newest_full_runs_in_order_with_claims_tables_and_figures(tmp_path):
    finished(tmp_path, "leakage", "one", accuracy=0.123, at=1)
    finished(tmp_path, "leakage", "two", accuracy=0.223, at=2)
    finished(tmp_path, "leakage", "three", accuracy=0.323, smoke=True, at=3)
    finished(tmp_path, "d3m", "run", accuracy=0.423, at=1)
    text = overview.main(tmp_path).read_text()
    assert text.index('id="d3m"') < text.index('id="leakage"')
    assert "42.3" in text or "43.3" in text
    assert ("23.3" in text, "13.3" in text, "33.3" in text) == (True, False, False)
    assert text.count("<b>Claim.</b>") == 2
    assert "<h3>patch</h3>" in text
    also = overview.main(tmp_path, ("leakage/one",)).read_text()
    assert "13.3" in also
    assert also.count('id="leakage"') == 1


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no finished run"):
        overview.main(tmp_path)
    finished(tmp_path, "d3m", "run")
    with pytest.raises(SystemExit, match="d3m/other"):
        overview.main(tmp_path, ("d3m/other",))
