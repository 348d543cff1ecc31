"""Runs on several workers: logs, failures, preemption, and what becomes of the processes."""

import os
import signal
import subprocess
import time

import pytest
from fake_gcloud import STUDY, Fake, flag, wait_for


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def test_run_sends_the_experiment_to_every_worker_and_keeps_their_logs(fake):
    found = fake.run("run", *STUDY, "--config.tasks", "it's two", WORKERS=None)
    assert found.returncode == 0, found.stderr
    assert sorted(flag(call, "worker") for call in fake.calls[1:]) == ["0", "1"]
    (command,) = {flag(call, "command") for call in fake.calls[1:]}
    *_, last = command.splitlines()
    # The tilde of --results must reach the worker's shell as it is, and the apostrophe must not.
    arguments = "experiments lds_datamodels --config.seeds 5 --config.tasks it\\'s\\ two --results ~/results"
    assert last == (f'cd ~/d3mjax && exec env D3MJAX_DISTRIBUTED=auto "$HOME/d3mjax/.venv/bin/python" -m {arguments}')
    assert fake.logs() == [(f"worker-{k}.log", f"worker {k}, turn 0\n") for k in range(2)]


def test_what_an_earlier_run_left_on_a_worker_is_ended_first(fake, tmp_path):
    # The command as a worker would run it: its python writes down how it is called, and hangs on the first time.
    fake.run("run", *STUDY)
    command = flag(fake.calls[-1], "command")
    home = tmp_path / "home"
    python = home / "d3mjax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/bash\necho "$D3MJAX_DISTRIBUTED $*" >> ~/said\n[[ -e ~/hung ]] || { touch ~/hung; sleep 30; }'
    )
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    with subprocess.Popen(["bash", "-c", command], env=environment, start_new_session=True) as first:
        try:
            wait_for((home / "hung").exists)
            with subprocess.Popen(["bash", "-c", command], env=environment, stderr=subprocess.PIPE) as second:
                assert first.wait(timeout=30) == -signal.SIGTERM
                assert second.communicate(timeout=30) == (None, b"")
                assert second.returncode == 0
        finally:
            os.killpg(first.pid, signal.SIGKILL)  # and the sleep
    expected = f"auto -m experiments {' '.join(STUDY)} --results {home}/results"
    assert (home / "said").read_text().splitlines() == [expected] * 2


def test_the_first_failure_stops_all_workers_and_gives_its_status(tmp_path):
    fake = Fake(tmp_path, workers=4, runs=[{"0": [50, 0], "1": [0, 0], "2": [0.2, 7], "3": [50, 9]}])
    begin = time.monotonic()
    found = fake.run("run", *STUDY)
    assert time.monotonic() - begin < 20
    assert found.returncode == 7
    assert "worker 2 ended with status 7" in found.stderr
    assert "worker 2, turn 0" in found.stderr  # the end of its log
    assert len(fake.logs()) == 4
    # Killing ssh does not end what it started, so the workers are told as well.
    assert fake.calls[-1][:4] == ["compute", "tpus", "tpu-vm", "ssh"]
    assert "--worker=all" in fake.calls[-1]
    assert "kill -TERM" in flag(fake.calls[-1], "command")


@pytest.mark.parametrize("verb", ["run", "babysit"])
def test_sigterm_stops_the_workers(tmp_path, verb):
    fake = Fake(tmp_path, runs=[{"0": [50, 0], "1": [50, 0]}])
    command = fake.command(verb, *STUDY)
    with subprocess.Popen(command, cwd=fake.work, env=fake.environment, stderr=subprocess.PIPE) as process:
        wait_for(lambda: sum(text != "" for _, text in fake.logs()) == (2 if verb == "run" else 4))
        process.terminate()
        assert process.wait(timeout=20) == 143
    assert fake.verbs[-1] == "stop"


def test_check_pod_asks_for_all_devices(tmp_path):
    fake = Fake(tmp_path, runs=[{}, {"1": [0, 1]}])
    assert fake.run("check_pod").returncode == 0
    assert "-m tpu_scripts.check_pod --devices 16" in flag(fake.calls[-1], "command")
    assert fake.run("check_pod").returncode == 1


def test_babysit_makes_a_lost_tpu_anew_and_reruns_until_the_run_is_done(tmp_path):
    lost = {"1": [0, 1], "then": {"states": ["SUSPENDED"]}}
    # The machines may be gone before the queue knows, and the run may be told before that.
    stopped = {"0": [0, 143], "then": {"node": "PREEMPTED"}}
    created = ["WAITING_FOR_RESOURCES", "ACTIVE"]
    fake = Fake(tmp_path, states=["ABSENT"], created=created, runs=[lost, stopped, {"1": [0, 1]}, {}])
    found = fake.run("babysit", "--spot", *STUDY)
    assert found.returncode == 0, found.stderr
    ends = ["setup", "run", "stop"]
    assert fake.verbs == ["create", *ends, "delete", "create", *ends, "delete", "create", *ends, "setup", "run"]
    assert all("--spot" in call for call in fake.calls if call[3] == "create")
    for message in ("1, preempted or out of reach", "143, preempted", "1, 1 in a row, and not for want of machines"):
        assert f"run: status {message}" in found.stderr


def test_babysit_gives_up_after_the_same_failure_three_times(tmp_path):
    fake = Fake(tmp_path, runs=[{"0": [0, 3]}, {"0": [0, 4]}, {"0": [0, 3]}])
    found = fake.run("babysit", *STUDY, WORKERS="1")
    assert found.returncode == 3
    assert "giving up: that is an error of the program" in found.stderr
    assert fake.verbs == ["setup", "run", "stop"] * 5  # 3 4 3 3 3


def test_babysit_never_blames_the_program_for_preemption_and_tries_no_more_than_allowed(tmp_path):
    fake = Fake(tmp_path, runs=[*[{"0": [0, 255]}] * 3, {"0": [0, 143]}])
    found = fake.run("babysit", "--max-attempts", "6", *STUDY, WORKERS="1")
    assert found.returncode == 143
    assert "giving up after 6 attempts" in found.stderr
    assert fake.verbs == ["setup", "run", "stop"] * 6


def test_babysit_gives_up_on_requests_that_are_refused(tmp_path):
    fake = Fake(tmp_path, states=["ABSENT"], refused=1)
    assert fake.run("babysit", *STUDY).returncode == 1
    assert fake.verbs == ["create"] * 3


@pytest.mark.parametrize(
    ("state", "node", "message"),
    [
        ("DENIED", "READY", "PERMISSION_DENIED"),
        ("ACTIVE", "DENIED", "PERMISSION_DENIED"),
        ("ACTIVE", "REPAIRING", "is REPAI"),
    ],
)
def test_babysit_deletes_nothing_that_may_be_well(tmp_path, state, node, message):
    fake = Fake(tmp_path, states=[state], node=node)
    found = fake.run("babysit", "--max-attempts=4", *STUDY)
    assert (found.returncode, fake.verbs) == (1, [])
    assert message in found.stderr


@pytest.mark.parametrize("node", ["ABSENT", "TERMINATED"])
def test_babysit_makes_machines_anew_that_are_gone_from_an_active_request(tmp_path, node):
    fake = Fake(tmp_path, node=node)
    assert fake.run("babysit", *STUDY).returncode == 0
    assert fake.verbs == ["delete", "create", "setup", "run"]
