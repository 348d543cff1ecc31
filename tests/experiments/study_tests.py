"""Every study runs from raw data to its page on little data, resumes, shows what it claims, and keeps its rows.

One file a wing inherits these tests, as workers take whole files; `conftest.py` makes ``name`` the studies of a wing.
"""

import re

import numpy as np
import pytest
import smoke


class StudyTests:
    """Tests of every study of ``wing``."""

    wing: str

    def test_a_study_runs_from_data_to_page(self, name, results):
        run = smoke.execute(name, results)
        rows = smoke.read_rows(run)
        if rows:
            assert len({(row["task"], row["method"]) for row in rows}) == len(rows)
            page = (run / "report.html").read_text()
            assert "data:image/png;base64," in page
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # pictures have any letters
            assert "http" not in text.replace("http-equiv", "")
            for check in smoke.SMOKES[name].checks:
                check(smoke.means(rows, rows[0]["task"]), run)

    def test_the_same_command_computes_nothing_again(self, name, results):
        run = smoke.execute(name, results)
        units, rows = {path: path.stat().st_mtime_ns for path in (run / "units").glob("*")}, smoke.read_rows(run)
        assert smoke.execute(name, results) == run
        assert units == {path: path.stat().st_mtime_ns for path in (run / "units").glob("*")}
        assert smoke.read_rows(run) == rows

    def test_rows_are_those_frozen(self, name, results):
        """On every machine: tasks, methods, roles, information, names of settings and metrics; see `make freeze`."""
        rows = smoke.comparable(smoke.read_rows(smoke.execute(name, results)))
        frozen = smoke.read_frozen()[name]["rows"]

        def names(row):
            settings, metrics = sorted(row["settings"]), sorted(row["metrics"])
            return {**row, "settings": settings, "metrics": metrics}

        assert list(map(names, rows)) == list(map(names, frozen))

    def test_numbers_are_those_frozen(self, name, results):
        """To the last bit, on the machine and with the compiler that made them.

        Skipped elsewhere: processors and compilers differ in rounding, which training enlarges.
        """
        frozen = smoke.read_frozen()[name]
        if frozen["machine"] != (this := smoke.machine()):
            differing = {key: (value, this[key]) for key, value in frozen["machine"].items() if value != this[key]}
            # Other processors and compilers round differently; the names of all rows are compared above.
            pytest.skip(f"numbers were frozen elsewhere, (frozen, here) are {differing}: only names are compared")
        rows = smoke.comparable(smoke.read_rows(smoke.execute(name, results)))
        for row, expected in zip(rows, frozen["rows"], strict=True):
            for metric, values in expected["metrics"].items():
                np.testing.assert_array_equal(
                    np.array(row["metrics"][metric], float), np.array(values, float), f"{row['task']}: {row['method']}"
                )
