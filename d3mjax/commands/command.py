"""What both commands share: their shape, the options that mean the same, and the files that every run leaves.

A command has ``prepare(config, results, run) -> job``, which reads and checks everything before any work starts and
opens the directory of the run, and ``work(job) -> directory``, which computes and may be killed and run again. The
docstring of ``prepare`` is the text of ``--help``.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Int

from d3mjax.data import files
from d3mjax.data.files import Columns
from d3mjax.reports import page, tables
from d3mjax.reports.rows import by_task
from d3mjax.runtime import cache, hosts, preemption, runs, store
from d3mjax.types import AnyArray

Tables = Mapping[str, Columns]  # by the option that names the source, --train first
MAX_TEXTS = 200  # different values of one text column, each of which becomes a feature

Label = Annotated[
    str, tyro.conf.arg(help="Column (of a table), array (of an .npz file) or feature (of TFDS) that holds the class.")
]
Id = Annotated[
    str | None, tyro.conf.arg(help="Column that names the training examples; row numbers from 0 if not given.")
]
Categorical = Annotated[
    str, tyro.conf.arg(help="Columns of numbers that are codes of categories, as in zip,district. Text always is.")
]
Text = Annotated[str, tyro.conf.arg(help="Columns of free text, whose words are features, as in review.")]
Drop = Annotated[
    str, tyro.conf.arg(help="Columns of tables that are not features, as in name,date. Label and id never are.")
]


def cli(prog: str, prepare: Callable[..., Any], work: Callable[[Any], Path]) -> None:
    """Run a command of the terminal. Bad input, and a training that diverges, is one line on stderr and status 1."""
    cache.enable()
    try:
        job = tyro.cli(prepare, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{prog}: {error}") from error
    try:
        with preemption.at_once():
            work(job)
    except FloatingPointError as error:
        raise SystemExit(f"{prog}: {error}") from error


def start(config: Any, counts: Sequence[str]) -> None:
    """Start JAX on one host; the fields ``counts`` of the configuration must be at least 1, or None.

    Raises:
      ValueError: naming the option, or if there are several processes.
    """
    hosts.start()
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: this command runs on one host")
    for name in counts:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: found {value}, expected at least 1")


def open_run(
    results: Path,
    command: str,
    config: Any,
    arrays: Mapping[str, AnyArray],
    run: str | None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """The directory ``results/command/run``, bound to the configuration, the contents of the files and ``facts``.

    Other contents are another run. Raises as `runs.open_run`, before any work starts.
    """
    everything = asdict(config) | {"data": store.digest(dict(arrays))} | dict(facts or {})
    return runs.open_run(results, command, everything, run)


def read(flag: str, source: str) -> Columns:
    """The columns of one source; errors name the option."""
    try:
        return files.read(source)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def classes(tables: Tables, label: str, num_train: int) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Classes 0..C-1 of all examples of all tables, and their names: those of the training examples, in order."""
    values = levels(tables, "--label", label)
    known = np.unique(values[:num_train])
    if missing := sorted(set(values.tolist()) - set(known.tolist())):
        others = " or ".join(list(tables)[1:])
        raise ValueError(f"--train: found no example of class {missing} of {label!r}, which {others} has")
    if len(known) < 2:
        raise ValueError(f"--label: found {len(known)} class in {label!r} of --train, expected at least 2")
    return np.searchsorted(known, values).astype(np.int32), tuple(map(str, known))


def levels(tables: Tables, option: str, name: str) -> np.ndarray:
    """A column of all tables, end to end: whole numbers, or text where one of them holds text."""
    values = [columns[name] for columns in tables.values()]
    for flag, a in zip(tables, values, strict=True):
        whole = a.dtype.kind in "biuU" or (a.dtype.kind == "f" and np.array_equal(a, np.round(a)))
        if not whole or a.ndim != 1:
            raise ValueError(f"{option}: found {a.dtype}{list(a.shape)} in {flag}, expected whole numbers or text")
    return np.concatenate([a if a.dtype.kind == "U" else a.astype(np.int64) for a in values])


def names(text: str) -> tuple[str, ...]:
    """The names of an option such as ``--drop name,date``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def task_name(source: str) -> str:
    """The name of the training file without directory and suffix, as it stands in tables and in names of units."""
    return re.sub(r"\W+", "-", Path(source).stem).strip("-")


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a header and lines, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    store.write_bytes(path, text.getvalue().encode())


def finish(
    directory: Path,
    config: Any,
    rows: Sequence[Mapping[str, Any]],
    sections: Mapping[str, page.Section],
    seconds: float,
) -> None:
    """Write ``metrics.json``, ``report.html`` and ``advice.txt``, and print the latter: verdict, table, findings."""
    of_task = by_task(rows)
    text = "\n".join(tables.summary(section.findings, of_task[task]) for task, section in sections.items())
    store.write_bytes(directory / "advice.txt", text.encode())
    page.finish(directory, directory.parent.name, asdict(config), rows, sections, seconds)
