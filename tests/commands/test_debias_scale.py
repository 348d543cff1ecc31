"""What the number of examples decides, half precision, progress, and runs that are stopped or killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from planted_files import QUICK, make_files

import d3mjax
from d3mjax.commands import command, debias, debias_recipe, debias_seed, debias_shared
from d3mjax.runtime import progress, runs, store


def test_small_tables_train_for_ten_epochs_of_batches_of_50():
    for n, steps in ((60, 300), (1500, 300), (2800, 560), (5000, 1000)):
        assert debias_recipe.schedule_of(n) == (50, steps, 0.05)


def test_large_tables_train_for_fewer_epochs_of_larger_batches():
    sizes = (5_000, 20_000, 60_000, 200_000, 2_000_000)
    schedules = [debias_recipe.schedule_of(n) for n in sizes]
    assert [schedule.batch for schedule in schedules] == [50, 100, 173, 316, 400]
    assert [round(s.batch * s.steps / n, 1) for s, n in zip(schedules, sizes, strict=True)] == [10, 6.4, 4.5, 3.0, 1.4]
    assert all(np.isclose(s.rate / s.batch, 0.001) for s in schedules)
    assert debias_recipe.schedule_of(200_000, steps=7).steps == 7


def test_counts_are_what_was_asked_for_or_depend_on_size_and_quick():
    of = debias_recipe.counts_of
    assert of(2800)[:3] == (5, 20, 4)
    assert of(20_000)[:3] == (5, 20, 2)
    assert of(2800, quick=True)[:3] == (2, 8, 1)
    assert of(2800, divisions=3, retrains=2, quick=True)[:3] == (3, 8, 2)
    assert 0.1 in of(10).grid
    assert 0.1 in of(10, quick=True).grid


def test_a_quick_look_is_called_one():
    counts, schedule = debias_recipe.counts_of(2800, quick=True), debias_recipe.schedule_of(2800)
    text = debias_recipe.describe(counts, schedule, quick=True)
    assert text.startswith("A quick look (--quick); run without it before you decide. 2 divisions")
    assert "8 checkpoints" in text
    assert "560 steps of 50 examples" in text
    assert "quick" not in debias_recipe.describe(counts, schedule, quick=False)


@pytest.mark.parametrize(
    ("retrains", "models"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])]
)
def test_rounds_double_up_to_the_number_of_models(retrains, models):
    assert debias_seed.rounds(retrains) == models


def test_features_are_stored_in_half_precision_where_they_are_large_and_fit(monkeypatch):
    model, x = d3mjax.mlp((4,), 2), np.linspace(-3, 3, 80, dtype=np.float32).reshape(8, 10)
    assert debias_recipe.stored(model, x)[1] is x
    monkeypatch.setattr(debias_recipe, "HALF_BYTES", x.nbytes - 1)
    assert debias_recipe.stored(model, x * 1e5)[1].dtype == np.float32
    half, stored = debias_recipe.stored(model, x)
    assert stored.dtype == np.float16
    variables = half.init(jax.random.key(0), stored[:1])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    exact, rounded = (m.apply(variables, a)[0] for m, a in ((model, x), (half, stored)))
    np.testing.assert_allclose(rounded, exact, atol=10 * 3 * 2.0**-11 * np.abs(exact).max())
    np.testing.assert_array_equal(rounded, model.apply(variables, stored.astype(np.float32))[0])


def test_class_weights_have_mean_1_and_balance_the_classes():
    y = np.repeat([0, 1], [9, 1])
    assert debias_shared.class_weights(y, 0.0).tolist() == [1] * 10
    np.testing.assert_allclose(debias_shared.class_weights(y, 1.0), np.repeat([5 / 9, 5], [9, 1]), rtol=1e-6)
    # n ** -.5 is 1/3 and 1, of mean .4.
    np.testing.assert_allclose(debias_shared.class_weights(y, 0.5), np.repeat([1 / 1.2, 2.5], [9, 1]), rtol=1e-6)


def test_progress_is_a_line_for_each_state_where_there_is_no_terminal(capsys):
    with progress.shown(10, "train") as bar:
        assert bar(0, "compiling") == 0
        assert bar(4, "compiling") == 4
        assert bar(1, "trying") == 5
        assert bar(0, at=8) == 8
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" models")[0] for line in lines] == [
        "train: compiling (0 of 10",
        "train: trying (5 of 10",
        "train: finished (10 of 10",
    ]


def test_units_report_their_models_whatever_was_read(tmp_path, capsys):
    def measure(seed, bar):
        bar(2, f"seed {seed}")
        return {}, {"seed": np.array(seed)}

    with progress.shown(9, "all") as bar:
        bar(1)
        runs.run_units(tmp_path, "u", range(2), measure, models=3, shown=bar)
        assert bar(0) == 7
        runs.run_units(tmp_path, "u", range(2), measure, models=1, shown=bar)
        assert bar(0) == 9
    assert capsys.readouterr().err.count("seed") == 2


def test_ctrl_c_names_the_line_that_goes_on(monkeypatch, capsys):
    def prepare(name: str = "a b"):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["d3mjax-debias", "--name", "a b"])
    with pytest.raises(SystemExit) as stopped:
        command.cli("d3mjax-debias", prepare, lambda job: job)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nd3mjax-debias: stopped. To go on: d3mjax-debias --name 'a b'\n"


def command_line(files, path):
    options = {"steps": QUICK["steps"], "checkpoints": 4, "seeds": 2, "retrains": 1, "run": "r"}
    line = [sys.executable, "-m", "d3mjax.commands.debias", "--train", files.train, "--validation", files.target]
    line += ["--label", "income", "--group", "income,sex", "--id", "row", "--results", str(path)]
    return line + [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_killed_at_ten_moments_the_same_command_ends_with_equal_rows(tmp_path):
    files = make_files(tmp_path)
    quiet: dict = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begin = time.monotonic()
    subprocess.run(command_line(files, tmp_path / "whole"), check=True, **quiet)
    spent = time.monotonic() - begin
    for moment in range(10):
        with subprocess.Popen(command_line(files, tmp_path / "killed"), **quiet) as process:
            time.sleep(spent * (moment + 1) / 11)
            process.send_signal(signal.SIGKILL)
    subprocess.run(command_line(files, tmp_path / "killed"), check=True, **quiet)
    rows = [store.read_json(tmp_path / name / "debias" / "r" / "metrics.json")["rows"] for name in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_two_processes_share_the_units_and_end_with_the_rows_of_one(tmp_path):
    files = make_files(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    joined = alone | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    quiet: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = command_line(files, tmp_path / "two")
    both = [subprocess.Popen(line, env=joined | {"JAX_PROCESS_ID": str(host)}, **quiet) for host in range(2)]
    texts = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert "examples.csv" in texts[0][0]
    assert "examples.csv" not in texts[1][0]
    subprocess.run(command_line(files, tmp_path / "one"), check=True, env=alone, capture_output=True)
    rows = [store.read_json(tmp_path / name / "debias" / "r" / "metrics.json")["rows"] for name in ("one", "two")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_ctrl_c_during_the_work_ends_without_a_traceback(tmp_path):
    line, env = command_line(make_files(tmp_path), tmp_path), os.environ | {"PYTHONUNBUFFERED": "1"}
    # Where the suite runs in the background, its shell has told it to ignore Ctrl-C. A process of its own unlearns
    # that: a `preexec_fn` would fork this one, which runs the threads of JAX.
    listen = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    line = [sys.executable, "-c", listen, *line]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if "compiling" in text:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "To go on: d3mjax-debias --train" in rest
    assert "Traceback" not in rest


def test_the_shared_unit_is_made_once(tmp_path, monkeypatch):
    computed, measure = [], debias_shared.measure
    monkeypatch.setattr(debias_shared, "measure", lambda *args: (computed.append(args[1]), measure(*args))[1])
    config = debias.Config(make_files(tmp_path), **QUICK)
    run = debias.main(config, tmp_path)
    (run / "units" / "train-0.npz").unlink()
    rows = store.read_json(run / "metrics.json")["rows"]
    debias.main(config, tmp_path)
    assert computed == [0]
    assert store.read_json(run / "metrics.json")["rows"] == rows
