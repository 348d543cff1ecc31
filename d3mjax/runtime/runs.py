"""Directories of runs: atomic files, finished units that a rerun skips, and ``metrics.json``.

A run is one directory, ``<root>/<experiment>/<run>/``, bound to one configuration. The same command run again finds the
directory by its configuration, skips the units that are finished, and computes the others. Code is not part of the
configuration: after changing it, give the run a new name.
"""

import hashlib
import importlib.metadata
import io
import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3mjax.runtime import hosts, progress
from d3mjax.runtime.progress import Progress
from d3mjax.runtime.store import differences, json_text, npz_bytes, read_json, seal, unseal, write_bytes, write_json

INFORMATION = ("none", "validation groups", "training groups")
"""Group labels that a method needs, from the least to the most."""
ROLES = ("ours", "plain", "control", "rival", "yardstick", "ceiling")
"""Parts that a row plays in a comparison; ``plain`` is plain training, with which all others are compared."""

Unit = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Result of one piece of work, such as a task and seed: facts that JSON can hold, and arrays by name."""


def environment() -> dict[str, Any]:
    """Revision, versions and device of this process: all that numbers depend on besides their configuration."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "revision": _revision(),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "cores": hosts.cores(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB (memory of the host, not of the device)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux, the parent's peak before exec counts, too
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB


def open_run(root: str | Path, experiment: str, config: Mapping[str, Any], name: str | None = None) -> Path:
    """Make, or find again, the directory of one configuration, and check that it can be written to.

    The run is named by a short hash of ``config`` unless ``name`` is given. Raises ValueError if the directory belongs
    to another configuration, naming the fields that differ, and OSError if it cannot be written, before any work.
    """
    config = json.loads(json_text(config))
    name = name or hashlib.sha256(json_text(config, sort_keys=True).encode()).hexdigest()[:10]
    for part in (experiment, name):
        if part != Path(part).name or part in ("", ".."):
            raise ValueError(f"experiment, name: found {part!r}, expected the name of one directory")
    path = Path(root) / experiment / name
    bind(path, config, "config.json", results="units")
    return path


def bind(path: Path, facts: Mapping[str, Any], file: str, *, results: str) -> None:
    """Make the directory ``path``, or find it again, for results of ``facts`` alone, which the JSON ``file`` stores.

    ``results``: pattern of files that must not exist without it. Raises as `open_run`, before any work starts.
    """
    facts = json.loads(json_text(facts))
    if ":/" in str(path):  # what Path leaves of a URL
        raise ValueError(f"results: found {path}, expected a local directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_bytes(path / ".writable", b"")  # mode bits are not enough: root, full disks
        (path / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write results to {path}: {error}") from error
    if (path / file).exists():
        if differ := differences(read_json(path / file), facts):
            raise ValueError(f"{path} belongs to another configuration: {differ}")
    elif any(path.glob(results)):
        raise ValueError(f"{path}: found results without {file}, expected none: give the run another name")
    else:
        write_json(path / file, facts)


def unit(run: Path, name: str, compute: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> Unit:
    """The result of one finished piece of work (say one task and seed): read if its file is whole, else computed.

    ``compute`` returns facts that JSON can hold and arrays by name; both are returned as read from the file, so that a
    resumed run sees exactly what the first one saw. The file is an ``.npz`` with a checksum (`store.seal`); a damaged
    one is computed again.
    """
    path = run / "units" / f"{name}.npz"
    stored = _read_unit(path)
    if stored is None:
        facts, arrays = compute()
        if "__json__" in arrays:
            raise ValueError("arrays: found the name __json__, expected another")
        text = np.frombuffer(json_text(facts).encode(), np.uint8)
        payload = npz_bytes({**arrays, "__json__": text})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, seal(payload))
        stored = _read_unit(path)
        if stored is None:
            raise OSError(f"{path} does not read back as it was written")
    return stored


def read_unit(run: Path, name: str) -> Unit | None:
    """The result that `unit` stored; None if there is none, or if it is damaged."""
    return _read_unit(run / "units" / f"{name}.npz")


def run_units(
    run: Path,
    name: str,
    seeds: range,
    measure: Callable,
    *,
    models: int,
    together: bool = False,
    shown: Progress | None = None,
) -> list[Unit]:
    """``measure(seed, progress)`` of every seed as a `unit`, behind one progress bar.

    Units are dealt out to hosts; with ``together`` all hosts work on every one. ``models``: total that a unit reports
    to ``progress``. ``shown``: a bar of several calls, on which this one goes on (`progress.shown`). Raises OSError if
    a host does not see the units of the others.
    """
    with nullcontext(shown) if shown else progress.shown(len(seeds) * models, name) as bar:
        begin = bar(0)
        for i, seed in enumerate(seeds):
            unit_name = f"{name}-{seed}"
            if together:
                # All or none: there are waits in it. One stores what all have.
                if hosts.any_host(read_unit(run, unit_name) is None):
                    result = measure(seed, bar)
                    if hosts.leads():
                        unit(run, unit_name, lambda result=result: result)
                    hosts.wait(unit_name)
            elif i % jax.process_count() == jax.process_index():
                unit(run, unit_name, partial(measure, seed, bar))
            bar(0, at=begin + (i + 1) * models)  # a unit that was read has reported nothing
    hosts.wait(name)
    units = [read_unit(run, f"{name}-{seed}") for seed in seeds]
    if missing := [seed for seed, stored in zip(seeds, units, strict=True) if stored is None]:
        raise OSError(f"{run}: this host does not see the units of seeds {missing}, which were written")
    return [stored for stored in units if stored is not None]


def metrics_document(
    experiment: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """Content of ``metrics.json``: rows, configuration and environment. ``seconds`` is the caller's wall time.

    Raises ValueError as `validate_document`.
    """
    document = {
        "experiment": experiment,
        "config": config,
        "environment": environment(),
        "seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "rows": rows,
    }
    document = json.loads(json_text(document))
    validate_document(document)
    return document


def validate_document(document: Any) -> None:
    """Raises ValueError, naming the field, unless ``document`` follows the schema of ``metrics.json``.

    Every metric holds its values per seed and their mean and standard deviation (ddof=1); None where there is none.
    Accuracies and ``removed`` (a share of the training set) are in [0, 1]. Rows of a task differ in method or settings.
    """
    top = {"experiment": str, "config": dict, "environment": dict, "rows": list}
    numbers = {"seconds": float, "peak_memory_mib": float}
    _check_fields(document, {**top, **numbers}, "document")
    known = {"revision": str, "versions": dict, "device": object, "cores": int}
    _check_fields(document["environment"], known, "environment", exact=False)
    row_fields = {"task": str, "method": str, "role": str, "information": str, "settings": dict, "metrics": dict}
    seen = set()
    for i, row in enumerate(document["rows"]):
        _check_fields(row, row_fields, f"rows[{i}]")
        where = f"rows[{i}] ({row['task']}, {row['method']})"
        check_kind(row, where)
        identity = (row["task"], row["method"], json_text(row["settings"], sort_keys=True))
        if identity in seen:
            raise ValueError(f"{where}: found task, method and settings of an earlier row, expected others")
        seen.add(identity)
        for metric, value in row["metrics"].items():
            _check_metric(value, metric, f"{where}.metrics.{metric}")


def check_kind(row: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless role and information are known and a control names what it controls for."""
    for name, known in (("role", ROLES), ("information", INFORMATION)):
        if row[name] not in known:
            raise ValueError(f"{where}: {name}: found {row[name]!r}, expected one of {known}")
    if row["role"] == "control" and not row["settings"].get("controls"):
        raise ValueError(f"{where}: settings.controls: found none, expected what the control controls for")


def _check_fields(value, fields, where, exact=True):
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {type(value).__name__}, expected an object")
    missing, extra = fields.keys() - value.keys(), (value.keys() - fields.keys() if exact else ())
    if missing or extra:
        raise ValueError(f"{where}: missing {sorted(missing)}, unexpected {sorted(extra)}")
    for name, kind in fields.items():
        if kind is float and _is_number(value[name]) and value[name] >= 0:
            continue
        if kind is float or not isinstance(value[name], kind):
            raise ValueError(f"{where}.{name}: found {value[name]!r}, expected {kind.__name__}")


def _check_metric(value, metric, where):
    _check_fields(value, {"mean": object, "std": object, "per_seed": list}, where)
    seeds = value["per_seed"]
    if not seeds or not all(v is None or _is_number(v) for v in seeds):
        raise ValueError(f"{where}.per_seed: found {seeds!r}, expected finite numbers or null")
    if metric.endswith("accuracy") or metric == "removed":
        for v in seeds:
            if v is not None and not 0 <= v <= 1:
                raise ValueError(f"{where}: found {v}, expected a share in [0, 1]")
    complete = None not in seeds
    expected = {
        "mean": float(np.mean(seeds)) if complete else None,
        "std": float(np.std(seeds, ddof=1)) if complete and len(seeds) > 1 else None,
    }
    for name, want in expected.items():
        got = value[name]
        same = got is None if want is None else _is_number(got) and math.isclose(got, want, rel_tol=1e-5, abs_tol=1e-7)
        if not same:
            raise ValueError(f"{where}.{name}: found {got!r}, expected {want!r}, as per_seed has it")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _revision():
    """Git revision of this source, marked where tracked files were changed; the package version outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:  # an installed copy inside another repository is untracked there, and must not take its revision
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            revision = subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"d3mjax {importlib.metadata.version('d3mjax')}"
    return revision + (f" + changes {hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")


def _read_unit(path):
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    if (payload := unseal(raw)) is None:
        return None
    with np.load(io.BytesIO(payload)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("__json__").tobytes()), arrays
