"""Files are whole or absent, runs belong to one configuration, and `metrics.json` keeps to its schema."""

import importlib.metadata
import json
import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.reports.rows import summary
from d3mjax.runtime import runs, store


def test_environment_names_code_versions_and_device():
    got = runs.environment()
    assert json.loads(json.dumps(got)) == got
    assert set(got["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy", "python"}
    assert got["device"] == {"platform": "cpu", "kind": "cpu", "count": 8}
    assert got["cores"] >= 1
    assert 10 < runs.peak_memory_mib() < 1e6


def test_revision_is_the_package_version_where_git_does_not_track_the_source(monkeypatch):
    def no_git(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert runs.environment()["revision"] == f"d3mjax {importlib.metadata.version('d3mjax')}"


def test_json_and_arrays_come_back(tmp_path):
    store.write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": jnp.arange(3), "z": np.int64(7)})
    assert store.read_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1, 2], "z": 7}
    store.write_arrays(tmp_path / "a.npz", {"scores": jnp.ones(3), "ids": np.arange(2)})
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["scores"], np.ones(3, np.float32))
        np.testing.assert_array_equal(archive["ids"], [0, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.npz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    store.write_json(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(path, float("nan"))
    with pytest.raises(TypeError, match="expected what JSON can hold"):
        store.write_json(path, {1, 2})
    with pytest.raises(TypeError, match="bfloat16"):
        store.write_arrays(tmp_path / "b.npz", {"half": jnp.ones(2, jnp.bfloat16)})

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write_json(path, 2)
    assert store.read_json(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_read_json_names_a_damaged_file(tmp_path):
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        store.read_json(tmp_path / "a.json")


def test_open_run_finds_the_same_directory_for_the_same_configuration(tmp_path):
    first = runs.open_run(tmp_path, "d3m", {"seeds": (0, 1), "model": {"width": 64}})
    again = runs.open_run(tmp_path, "d3m", {"model": {"width": 64}, "seeds": [0, 1]})
    other = runs.open_run(tmp_path, "d3m", {"model": {"width": 65}, "seeds": [0, 1]})
    assert first == again != other
    assert first.parent == tmp_path / "d3m"
    assert store.read_json(first / "config.json") == {"seeds": [0, 1], "model": {"width": 64}}
    assert [p.name for p in first.iterdir()] == ["config.json"]


def test_open_run_refuses_a_directory_of_another_configuration(tmp_path):
    runs.open_run(tmp_path, "d3m", {"steps": 800, "model": {"width": 64, "depth": 2}}, "mine")
    with pytest.raises(
        ValueError, match=r"model\.width: found 64, expected 32; seeds: found absent, expected 3"
    ) as error:
        runs.open_run(tmp_path, "d3m", {"steps": 800, "model": {"width": 32, "depth": 2}, "seeds": 3}, "mine")
    assert "depth" not in str(error.value)
    assert "steps" not in str(error.value)


def test_open_run_refuses_results_of_an_unknown_configuration(tmp_path):
    run = runs.open_run(tmp_path, "d3m", {"steps": 1}, "mine")
    runs.unit(run, "seed0", lambda: ({}, {}))
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"found results without config\.json"):
        runs.open_run(tmp_path, "d3m", {"steps": 1}, "mine")


def test_open_run_fails_early_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write results to"):
        runs.open_run(tmp_path / "file", "d3m", {})
    with pytest.raises(OSError, match="cannot write results to"):
        runs.open_run("/proc/results", "d3m", {})
    with pytest.raises(ValueError, match="expected a local directory"):
        runs.open_run("gs://bucket/results", "d3m", {})
    for name in ("..", "a/b", "."):
        with pytest.raises(ValueError, match="expected the name of one directory"):
            runs.open_run(tmp_path, "d3m", {}, name)


def test_open_run_fails_early_where_no_directory_can_be_made(tmp_path):
    (tmp_path / "d3m").write_text("a file in the way, as permissions do not bind root")
    with pytest.raises(OSError, match="cannot write results to"):
        runs.open_run(tmp_path, "d3m", {})


def _counting():
    calls = []

    def compute():
        calls.append(0)
        return {"wga": 0.25, "pair": (1, 2)}, {"scores": jnp.arange(3.0), "none": np.zeros((0, 2), bool)}

    return compute, calls


def _same(result):
    facts, arrays = result
    assert facts == {"wga": 0.25, "pair": [1, 2]}
    assert set(arrays) == {"scores", "none"}
    np.testing.assert_array_equal(arrays["scores"], [0, 1, 2])
    assert arrays["none"].shape == (0, 2)


def test_a_finished_unit_is_not_computed_again(tmp_path):
    compute, calls = _counting()
    for _ in range(3):
        _same(runs.unit(tmp_path, "adult-0", compute))
    assert len(calls) == 1
    _same(runs.unit(tmp_path, "adult-1", compute))
    assert len(calls) == 2
    with np.load(tmp_path / "units" / "adult-0.npz") as archive:  # readable without this package
        np.testing.assert_array_equal(archive["scores"], [0, 1, 2])


def test_every_damage_to_a_unit_is_noticed(tmp_path):
    compute, calls = _counting()
    _same(runs.unit(tmp_path, "u", compute))
    path = tmp_path / "units" / "u.npz"
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"x", whole[::-1]]
    damaged += [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), 97)]
    for content in damaged:
        path.write_bytes(content)
        _same(runs.unit(tmp_path, "u", compute))
    assert len(calls) == 1 + len(damaged)


def test_a_unit_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        runs.unit(tmp_path, "u", fail)
    assert not (tmp_path / "units").exists()


def _row(**changes):
    row = {
        "task": "adult",
        "method": "ERM",
        "role": "plain",
        "information": "none",
        "settings": {"steps": 800},
        "metrics": {"worst_group_accuracy": summary([0.5, 0.6]), "removed": summary([0.0, 0.0])},
    }
    return {**row, **changes}


def test_metrics_document_has_the_schema_and_survives_json(tmp_path):
    document = runs.metrics_document("d3m", {"seeds": (0, 1)}, [_row(), _row(method="D3M")], 1.5)
    assert list(document) == ["experiment", "config", "environment", "seconds", "peak_memory_mib", "rows"]
    store.write_json(tmp_path / "metrics.json", document)
    assert store.read_json(tmp_path / "metrics.json") == document
    runs.validate_document(document)
    assert runs.metrics_document("d3m", {}, [_row(), _row(settings={"steps": 9})], 1.5)["rows"][1]["settings"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"information": "test groups"}, "information: found 'test groups', expected one of"),
        ({"role": "winner"}, "role: found 'winner', expected one of"),
        ({"role": "control"}, "settings.controls: found none"),
        ({"extra": 1}, r"unexpected \['extra'\]"),
        ({"task": 3}, "task: found 3, expected str"),
        ({"metrics": {"lds": 0.5}}, "lds: found float, expected an object"),
        ({"metrics": {"lds": {"mean": 0.5, "std": None}}}, r"missing \['per_seed'\]"),
        (
            {"metrics": {"lds": {"mean": 0.5, "std": None, "per_seed": []}}},
            "per_seed: found .*, expected finite numbers",
        ),
        ({"metrics": {"lds": {"mean": 0.4, "std": None, "per_seed": [0.5]}}}, "mean: found 0.4, expected 0.5"),
        ({"metrics": {"lds": {"mean": 0.5, "std": 0.0, "per_seed": [0.5]}}}, "std: found 0.0, expected None"),
        ({"metrics": {"lds": {"mean": 0.5, "std": 0.1, "per_seed": [0.5, None]}}}, "mean: found 0.5, expected None"),
        ({"metrics": {"removed": summary([12.0])}}, "found 12.0, expected a share"),
        ({"metrics": {"average_accuracy": summary([-0.1])}}, "found -0.1, expected a share"),
    ],
)
def test_validate_document_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        runs.metrics_document("d3m", {}, [_row(**changes)], 1.0)


def test_validate_document_checks_the_whole():
    document = runs.metrics_document("d3m", {}, [_row()], 1.0)
    for wrong, message in [
        ({**document, "seconds": "fast"}, "seconds: found .*, expected float"),
        ({**document, "seconds": -1.0}, "seconds: found .*, expected float"),
        ({k: v for k, v in document.items() if k != "environment"}, r"missing \['environment'\]"),
        ({**document, "environment": {}}, r"missing \['cores', 'device', 'revision', 'versions'\]"),
        (
            {**document, "rows": [_row(), _row()]},
            r"rows\[1\] \(adult, ERM\): found task, method and settings of an earlier row",
        ),
        ([], "found list, expected an object"),
    ]:
        with pytest.raises(ValueError, match=message):
            runs.validate_document(wrong)
