"""The loop of experiments on one that needs no training: what is run, what is stored, and what is found again."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.runtime import runs, store
from experiments import study


@dataclass(frozen=True)
class Config:
    tasks: tuple[str, ...] = ("b", "a")
    seeds: int = 3
    first_seed: int = 10


TASKS = {"a": 1.0, "b": 2.0, "c": 3.0}


def experiment(results, config, done, fail_at=None):
    def measure(scale, seed, progress):
        if seed == fail_at:
            raise KeyboardInterrupt
        done.append((scale, seed))
        progress(4)
        return {"value": scale * seed}, {"seed": np.array(seed)}

    def prepare(scale, _):
        return partial(measure, scale)

    def describe(scale, config, found):
        assert [int(arrays["seed"]) for _, arrays in found] == [
            *range(config.first_seed, config.first_seed + len(found))
        ]
        rows = [row("ab"[scale == 2], "ours", {"value": [facts["value"] for facts, _ in found]}, role="ours")]
        return rows, Section(f"A scale of {scale}.", {})

    return study.run_experiment("toy", config, TASKS, prepare, describe, models=4, results=results, run=None)


def test_every_task_and_seed_in_order_up_to_the_page(tmp_path, capsys):
    done = []
    run = experiment(tmp_path, Config(), done)
    assert done == [(2, 10), (2, 11), (2, 12), (1, 10), (1, 11), (1, 12)]
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    per_seed = {row["task"]: row["metrics"]["value"]["per_seed"] for row in document["rows"]}
    assert per_seed == {"b": [20, 22, 24], "a": [10, 11, 12]}
    assert document["config"] == store.read_json(run / "config.json")
    assert "A scale of 2.0." in (run / "report.html").read_text()
    assert "12 of 12 models" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, capsys):
    done = []
    with pytest.raises(KeyboardInterrupt):
        experiment(tmp_path, Config(), done, fail_at=12)
    assert done == [(2, 10), (2, 11)]
    experiment(tmp_path, Config(), done)
    assert done[2:] == [(2, 12), (1, 10), (1, 11), (1, 12)]
    assert capsys.readouterr().err.count("12 of 12 models") >= 2
    experiment(tmp_path, Config(), done)
    assert len(done) == 6


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"tasks: found \['x'\], expected names among \['a', 'b', 'c'\]"):
        experiment(tmp_path, Config(tasks=("a", "x")), [])
    assert not list(tmp_path.iterdir())
