"""One device, two, eight, or two processes of four: the same numbers; a host that is killed, and one that differs."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_hosts  # beside this file

from d3mjax.attribution import projections, trak
from d3mjax.data import splits
from d3mjax.runtime import hosts, long_training, preemption, sharded
from d3mjax.training import ensemble

pytestmark = pytest.mark.slow
SCRIPT = Path(two_hosts.__file__)
# Outputs of order 1 after tens of float32 steps; sums in another order move the last digits.
close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


TASKS = ("ensemble", "bank", "sweep", "attribution", "large")


def launch(directory, *tasks, devices=1, num_hosts=1, **environment):
    """The processes of one run, started on loopback; ``environment``: variables as ``NAME=(host, value)``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory.mkdir(exist_ok=True)
    started = []
    for host in range(num_hosts):
        joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(num_hosts)}
        own = {key: value for key, (at, value) in environment.items() if at == host}
        variables = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"} | own
        variables |= (joined | {"JAX_PROCESS_ID": str(host)}) if num_hosts > 1 else {}
        command = [sys.executable, str(SCRIPT), str(directory), *tasks]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=variables, **pipes))
    return started


def finish(processes):
    """Exit status, standard output and errors of each."""
    found = [process.communicate(timeout=100) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def results(directory, *tasks, **options):
    """What a run leaves, by task and name, after all its processes ended well."""
    for status, _, errors in finish(launch(directory, *tasks, **options)):
        assert status == 0, errors[-3000:]
    found = {}
    for task in tasks:
        with np.load(directory / f"{task}.npz") as stored:
            found |= {f"{task}/{name}": stored[name] for name in stored.files}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """All tasks on one device."""
    return results(tmp_path_factory.mktemp("alone"), *TASKS)


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """All tasks on two devices of one host, and where their files are."""
    directory = tmp_path_factory.mktemp("two")
    return results(directory, *TASKS, devices=2), directory


@pytest.mark.parametrize(("devices", "num_hosts"), [(2, 1), (8, 1), (4, 2)])
def test_devices_and_hosts_change_nothing(alone, two_devices, devices, num_hosts, tmp_path):
    known = {(2, 1): lambda: dict(two_devices[0])}
    found = known.get((devices, num_hosts), lambda: results(tmp_path, *TASKS, devices=devices, num_hosts=num_hosts))()
    assert found.keys() == alone.keys()
    assert found.pop("large/share") * devices * num_hosts == alone["large/share"] == 16  # parameters on each device
    for name, values in found.items():
        if values.dtype.kind in "bi":
            np.testing.assert_array_equal(values, alone[name], err_msg=name)
        else:
            close(values, alone[name], err_msg=name)


def test_two_hosts_of_which_one_is_killed_leave_the_uninterrupted_bank(two_devices, tmp_path):
    whole, directory = two_devices  # of one host, as each of these has two devices
    (_, (status, _, _)) = finish(launch(tmp_path, "bank", devices=2, num_hosts=2, DIE_AFTER=(1, "1")))
    assert status == -signal.SIGKILL
    blocks = {path.name for path in (tmp_path / "bank").glob("block-*")}
    assert 0 < len(blocks) < 7
    again = results(tmp_path, "bank", devices=2, num_hosts=2)
    for name, values in again.items():
        np.testing.assert_array_equal(values, whole[name])
    for path in (directory / "bank").glob("block-*"):
        assert path.read_bytes() == (tmp_path / "bank" / path.name).read_bytes()


def test_sigterm_saves_a_checkpoint_and_training_goes_on_elsewhere(alone, tmp_path):
    for status, _, errors in finish(launch(tmp_path, "large", devices=2, num_hosts=2, TERM_AT=(1, "16"))):
        assert status == preemption.STATUS, errors[-3000:]
    assert sorted(int(p.name) for p in (tmp_path / "large").iterdir() if p.name.isdecimal()) == [8, 16]
    found = results(tmp_path, "large", devices=8)
    for name in ("large/kernel", "large/losses"):
        close(found[name], alone[name])


def test_hosts_that_are_told_to_go_leave_even_while_they_wait(tmp_path):
    # JAX itself would wait for the other for minutes, and abort with another status.
    assert [status for status, *_ in finish(launch(tmp_path, "leave", num_hosts=2))] == [preemption.STATUS] * 2


BUSY = """
import sys, jax, jax.numpy as jnp
from d3mjax.runtime import preemption
with preemption.at_once(grace=1):
    print("ready", flush=True)
    jax.block_until_ready(jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jnp.sin(x), jnp.ones(8)))
"""
PATIENT = """
import time
from d3mjax.runtime import preemption
try:
    with preemption.at_once(grace=30):
        print("ready", flush=True)
        time.sleep(60)
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize(("program", "said"), [(BUSY, ""), (PATIENT, "cleaned up\n")])
def test_sigterm_ends_python_between_two_calls_and_anything_else_after_the_grace(program, said):
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (preemption.STATUS, said)


def test_hosts_that_do_not_belong_together_are_named_and_units_dealt_out(tmp_path):
    for status, said, errors in finish(launch(tmp_path, "refusals", devices=4, num_hosts=2)):
        assert status == 0, errors[-3000:]
        found = json.loads(said.splitlines()[-1])
        assert "host 1 differs from host 0: config.lr: found 1.1, expected 0.1" in found["agree"]
        assert "hosts [1] do not see what host 0 wrote there" in found["shared"]
        assert "expected a divisor of all 8 devices" in found["divide"]
        assert "devices: asked for 16, found 8 on 2 hosts" in found["asked"]
        assert "host 1 differs from host 0: data.task: found" in found["data"]
        assert "config.rate: found 1.1, expected 0.1" in found["config"]
        assert found["together-False"] == [0, 1, 0]
        assert found["together-True"] == [0, 0, 0]
        assert found["mean"] == 6


def test_where_one_host_cannot_write_all_are_told_and_none_waits(tmp_path):
    for status, said, errors in finish(launch(tmp_path, "unwritable", num_hosts=2)):
        assert status == 0, errors[-3000:]
        found = json.loads(said.splitlines()[-1])
        assert found["shared"].startswith("host 0: ")
        assert found["shared"].endswith(f"Not a directory: '{tmp_path / 'file' / 'in it'}'")
        for name in ("bank", "checkpoint", "experiment"):
            assert found[name].startswith("host 1: cannot write results to ")
            assert found[name].endswith("no space for .writable")


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        ({"D3MJAX_DISTRIBUTED": "yes"}, ValueError, "D3MJAX_DISTRIBUTED: found 'yes', expected 'auto'"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, ValueError, "JAX_NUM_PROCESSES: found ''"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            ValueError,
            "JAX_PROCESS_ID: found 2 of JAX_NUM_PROCESSES=2, expected 0 to 1",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "nobody", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            ValueError,
            "JAX_COORDINATOR_ADDRESS: found 'nobody', expected host:port",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            TimeoutError,
            "no coordinator at 127.0.0.1:9 after 1 s: is process 0 running",
        ),
    ],
)
def test_a_start_that_cannot_work_says_why(environment, error, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message.replace("(", r"\(")):
        hosts.start(timeout=1)


def collectives(compiled_text):
    """The kinds of operations of a compiled program that go between devices, with how often each is there."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind: count for kind in kinds if (count := compiled_text.count(f" {kind}("))}


def test_models_side_by_side_never_talk_to_each_other():
    everywhere = hosts.global_mesh()
    many, chosen = two_hosts.program(everywhere), two_hosts.subsets(np.arange(16))
    keys = ensemble.model_keys(jax.random.key(1), np.arange(16))
    for arguments in ((keys, chosen), hosts.place((keys, chosen), everywhere, "model")):
        assert collectives(many.lower(*arguments).compile().as_text()) == {}


def test_a_gram_is_one_sum_between_devices():
    everywhere = hosts.global_mesh(data=8)
    x, y = np.ones((16, 3), bool), np.ones((16, 2), np.float32)
    gram = jax.jit(lambda x, y: sharded.moments(x, y, mesh=everywhere, axis="data").gram)
    # the means; then all that is centred at them
    assert collectives(gram.lower(x, y).compile().as_text()) == {"all-reduce": 2}

    train = splits.take(two_hosts.TRAIN, np.arange(40))
    model, target = two_hosts.MODEL, two_hosts.TARGET
    variables = jax.vmap(lambda k: model.init(k, train.x[:1]))(jax.random.split(jax.random.key(0), 2))

    @jax.jit
    def columns(variables):
        options = trak.Options(projections.rademacher(12))
        args = (jax.random.key(5), model, variables, train, target, 2)
        return sharded.group_scores(*args, mesh=everywhere, options=options).columns

    assert collectives(columns.lower(variables).compile().as_text()) == {"all-reduce": 1}


def test_ridge_sums_over_models_and_leaves_targets_where_they_are(monkeypatch):
    programs, jit = [], jax.jit

    def watched(function):
        compiled = jit(function)
        return lambda *arrays: (programs.append(compiled.lower(*arrays).compile().as_text()), compiled(*arrays))[1]

    masks, outputs = np.asarray(two_hosts.subsets(np.arange(64))), np.ones((64, 16), np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "jit", watched)
        linear = sharded.fit_ridge(masks, outputs, np.array([0.1, 1.0]), mesh=hosts.global_mesh())
    (program,) = programs
    assert collectives(program).keys() == {"all-reduce"}
    grams = [
        line for line in program.splitlines() if " all-reduce(" in line and f"f32[{two_hosts.N},{two_hosts.N}]" in line
    ]
    assert len(grams) == 1
    assert linear.weight.sharding.shard_shape(linear.weight.shape) == (2, 2, two_hosts.N)


def test_blocks_of_a_bank_compile_once(tmp_path):
    traces = []
    many = two_hosts.program(hosts.local_mesh(), lambda: traces.append(1))
    run = lambda ids, chosen: many(ensemble.model_keys(jax.random.key(1), ids), chosen)
    facts = two_hosts.bank.manifest(jax.random.key(0), two_hosts.subsets, {}, {}, num_targets=two_hosts.T)
    two_hosts.bank.fill(tmp_path / "b", facts, two_hosts.subsets, run, np.arange(11), block=4)
    assert len(traces) == 1


def test_a_finished_training_is_not_asked_for_another_length(tmp_path):
    run = two_hosts.trainer()
    state = run.init(jax.random.key(0), two_hosts.TRAIN.x[:1])
    train = lambda num_steps: long_training.train(
        tmp_path, {}, run, state, two_hosts.TRAIN, jnp.ones(two_hosts.N), num_steps, every=5
    )
    after, losses = train(10)
    assert (after.step, losses.shape) == (10, (10,))
    again, _ = train(10)
    jax.tree.map(np.testing.assert_array_equal, after.variables, again.variables)
    with pytest.raises(ValueError, match="num_steps: found 10, expected 20"):
        train(20)


def test_a_long_training_gives_the_memory_of_its_state_to_the_next(tmp_path, monkeypatch):
    given, run = [], two_hosts.trainer()

    def jit(function, *args, original=jax.jit, **options):
        compiled = original(function, *args, **options)
        watched = lambda state, *rest: (given.append(state), compiled(state, *rest))[1]
        return watched if function is run.run else compiled

    monkeypatch.setattr(jax, "jit", jit)
    state = run.init(jax.random.key(0), two_hosts.TRAIN.x[:1])
    after, _ = long_training.train(tmp_path, {}, run, state, two_hosts.TRAIN, jnp.ones(two_hosts.N), 15, every=5)
    assert len(given) == 3
    # On CPUs Orbax writes the others from where they lie, and until it is done they are copied instead.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, after)))


def test_what_does_not_divide_is_named():
    eight = hosts.global_mesh()
    with pytest.raises(ValueError, match="found 6 rows for 8 devices along model, expected a multiple"):
        hosts.place(np.zeros(6), eight, "model")
    with pytest.raises(ValueError, match=r"\['w'\]: found 6 rows for 8 devices along 'model'"):
        sharded.spread({"w": np.zeros(6)}, eight, lambda path, leaf: jax.P("model"))
    run = two_hosts.trainer()
    state = run.init(jax.random.key(0), two_hosts.TRAIN.x[:1])
    with pytest.raises(ValueError, match="every, keep: found 0, 2"):
        long_training.train("nowhere", {}, run, state, two_hosts.TRAIN, jnp.ones(two_hosts.N), 1, every=0)
