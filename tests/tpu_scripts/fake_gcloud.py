"""A fake gcloud for the tests of tpu_scripts: it plays a list of events and writes down its calls.

Beside it lies ``play.json``: ``states``, those of the queued resource each time it is asked for, the last for ever;
``node``, that of its machines; ``workers``; and ``runs``, one after the other: ``{worker: [seconds, status]}``, and
with ``then`` what else changes. Creating it leads to ``created``, deleting it to ABSENT.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
STUDY = ("lds_datamodels", "--config.seeds", "5")
REVISION = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "NAME": "d3m-1",
    "ZONE": "us-west4-a",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "BUCKET": "gs://bucket/folder",
    "REPOSITORY": "https://example.com/d3mjax.git",
    "REVISION": REVISION,
    "CLUSTER": "cluster",
    "IMAGE": "image",
    "STORAGE": "results",
    "RESULTS": "found results",
}
# `-S -E`: it is started hundreds of times, and needs no site-packages.
GCLOUD = (
    f"#!{sys.executable} -SE\n"
    + """
import fcntl, json, os, signal, sys, time

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # which must not leave half a file

here = os.path.dirname(os.path.abspath(__file__))
arguments = sys.argv[1:]
value = lambda flag: next((a.split("=", 1)[1] for a in arguments if a.startswith(flag + "=")), None)
with open(here + "/play.json", "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # workers call at the same time
    with open(here + "/calls", "a") as calls:
        calls.write(json.dumps(arguments) + "\\n")
    play = json.load(file)
    out, status, seconds = "", 0, 0
    if arguments[3] == "describe":
        if arguments[2] == "queued-resources":
            out = play["states"].pop(0) if len(play["states"]) > 1 else play["states"][0]
        else:
            out = str(play["workers"]) if "networkEndpoints" in value("--format") else play["node"]
        errors = {"ABSENT": "NOT_FOUND: Resource 'projects/p/d3m-1' was not found", "DENIED": "PERMISSION_DENIED: no"}
        if out in errors:
            print("ERROR: (gcloud)", errors[out], file=sys.stderr)
            out, status = "", 1
    elif arguments[:4] == ["compute", "tpus", "tpu-vm", "ssh"] and value("--worker") != "all":
        what = "runs" if "exec env" in value("--command") else "setups"
        worker = value("--worker")
        seen, log = play.setdefault("seen " + what, []), os.path.dirname(os.readlink("/proc/self/fd/1"))
        if log not in seen:
            seen.append(log)  # all workers of one turn have their logs in one directory
        turns = play.get(what, [{}])
        turn = turns[min(seen.index(log), len(turns) - 1)]
        play.update(turn.get("then", {}))
        seconds, status = turn.get(worker, [0, 0])
        out = f"worker {worker}, turn {seen.index(log)}"
    elif arguments[:4] == ["compute", "tpus", "queued-resources", "create"]:
        status = play.get("refused", 0)
        play.update({} if status else {"states": play["created"], "node": "READY"})
    elif arguments[:4] == ["compute", "tpus", "queued-resources", "delete"]:
        play["states"] = ["ABSENT"]
    file.seek(0)
    file.truncate()
    json.dump(play, file)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
if out:
    print(out, flush=True)
time.sleep(seconds)
sys.exit(status)
"""
)


class Fake:
    """A directory to work in, and the fake gcloud first on the PATH."""

    def __init__(self, tmp_path: Path, **play):
        self.work, self.bin = tmp_path / "work", tmp_path / "bin"
        for directory in (self.work, self.bin):
            directory.mkdir()
        (self.bin / "gcloud").write_text(GCLOUD)
        (self.bin / "gcloud").chmod(0o755)
        (self.bin / "calls").touch()
        start = {"states": ["ACTIVE"], "created": ["ACTIVE"], "node": "READY", "workers": 2, "runs": [{}]}
        (self.bin / "play.json").write_text(json.dumps(start | play))
        kept = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "PROJECT", "WORKERS")}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | SETTINGS | {"PATH": path, "PAUSE_SECONDS": "0"}

    def command(self, verb, *arguments):
        return [str(SCRIPTS / verb), *arguments]

    def run(self, verb, *arguments, scripts=SCRIPTS, **environment):
        """The finished verb; an environment variable that is None is not set."""
        settings = {name: value for name, value in (self.environment | environment).items() if value is not None}
        command = [str(scripts / verb), *arguments]
        return subprocess.run(command, cwd=self.work, env=settings, capture_output=True, text=True, timeout=60)

    @property
    def calls(self):
        return [json.loads(line) for line in (self.bin / "calls").read_text().splitlines()]

    @property
    def verbs(self):
        """The calls in short, commands to several workers as one."""
        short = []
        for call in self.calls:
            words = call[2] + " " + call[3]
            words = {"queued-resources describe": "state", "tpu-vm describe": "node"}.get(words, call[3])
            if words == "ssh":
                words = "stop" if "--worker=all" in call else "run" if "exec env" in " ".join(call) else "setup"
            if words in ("state", "node") or (short[-1:] == [words] and words in ("run", "setup")):
                continue
            short.append(words)
        return short

    def logs(self):
        """Name and text, of all verbs."""
        return [(path.name, path.read_text()) for path in sorted(self.work.glob("logs/d3m-1/*/worker-*.log"))]


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def flag(call, name):
    (value,) = [word.split("=", 1)[1] for word in call if word.startswith(f"--{name}=")]
    return value
