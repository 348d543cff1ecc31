"""No table ends in a traceback: random and damaged files through both commands, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_table_ends_in_a_job_or_in_one_line():
    command = [sys.executable, fuzz.__file__, "--cases", "500", "--works", "6"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(ended.stdout)
    assert result["faults"] == {}
    assert result["peak_mib"] < 2048
    counts = result["counts"]
    for name in ("debias", "diagnose"):
        assert counts[f"{name} accepted"] + counts[f"{name} refused"] == 500
        assert counts[f"{name} accepted"] >= 50
        assert counts[f"{name} worked"] == 6
