"""The table of all tasks of DeMix takes its numbers from the rows that it names, and names those that are missing."""

import pytest

from experiments import demix_tasks, published


def documents(name):
    """Every row that an entry asks for, with values that differ by the place of the row."""
    rows = []
    for i, entry in enumerate(demix_tasks.ENTRIES):
        if entry.diagnosis[0] == name:
            for j, method in enumerate(entry.methods):
                keys = ("label_f1", "feature_f1", "minority_f1_published" if i % 2 else "minority_f1")
                metrics = {key: {"mean": i / 100 + j / 10} for key in keys}
                rows.append({"task": entry.diagnosis[1], "method": method, "metrics": metrics})
        if entry.repair and entry.repair[0] == name:
            for j, method in enumerate(filter(None, entry.repairs)):
                metrics = {entry.metric[1]: {"mean": 100 * i + j}}
                rows.append({"task": entry.repair[1], "method": method, "metrics": metrics})
    return {"rows": rows}


def test_every_cell_is_that_of_its_row():
    lines = demix_tasks.markdown(documents).splitlines()
    assert len(lines) == 2 + len(demix_tasks.ENTRIES)
    for i, (entry, line) in enumerate(zip(demix_tasks.ENTRIES, lines[2:], strict=True)):
        cells = line.strip("| ").split(" | ")
        assert cells[0] == entry.task
        assert cells[2:5] == [f"{i / 100:.2f} ({i / 100 + 0.1:.2f})"] * 3
        if entry.task == "bike":
            assert [float(cell) for cell in cells[6:]] == [100 * i + j for j in range(5)]


def test_a_missing_row_is_named():
    with pytest.raises(ValueError, match="demix_tables: found no row 'adult'"):
        demix_tasks.markdown(lambda name: {"rows": []})


def test_the_published_runs_have_all_rows():
    read = lambda name: published.read(published.METRICS / f"{name}.json.gz")
    assert all(entry.task in demix_tasks.markdown(read) for entry in demix_tasks.ENTRIES)
