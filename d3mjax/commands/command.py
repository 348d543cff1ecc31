"""What both commands share: their shape, the options that mean the same, and the files that every run leaves.

A command has ``prepare(config, results, run) -> job``, which reads and checks everything before any work starts and
opens the directory of the run, and ``work(job) -> directory``, which computes and may be killed and run again. The
docstring of ``prepare`` is the text of ``--help``.
"""

import csv
import io
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from d3mjax.reports import page, tables
from d3mjax.reports.rows import by_task
from d3mjax.runtime import cache, hosts, preemption, runs, store
from d3mjax.types import AnyArray

Label = Annotated[
    str, tyro.conf.arg(help="Column (of a table), array (of an .npz file) or feature (of TFDS) that holds the class.")
]
Regression = Annotated[
    bool,
    tyro.conf.arg(help="The label is a number to predict, not a class. Errors are reported in its unit."),
]
Id = Annotated[
    str | None, tyro.conf.arg(help="Column that names the training examples; row numbers from 0 if not given.")
]
Categorical = Annotated[
    str, tyro.conf.arg(help="Columns of numbers that are codes of categories, as in zip,district. Text always is.")
]
Text = Annotated[
    str,
    tyro.conf.arg(
        help="Columns of free text, whose words are features, as in review: n-grams of characters are features."
    ),
]
TextEncoder = Annotated[
    str | None,
    tyro.conf.arg(
        help="Directory of a frozen BERT, which encodes free text in place of n-grams: config.json, model.safetensors, "
        "and tokenizer.json or vocab.txt, as of sentence-transformers/all-MiniLM-L6-v2. Or OWNER/NAME@REVISION of the "
        "Hugging Face hub, REVISION being the 40 digits of a commit. Needs the extra hub: pip install 'd3mjax[hub]'."
    ),
]
Drop = Annotated[
    str, tyro.conf.arg(help="Columns of tables that are not features, as in name,date. Label and id never are.")
]


def cli(prog: str, prepare: Callable[..., Any], work: Callable[[Any], Path]) -> None:
    """Run a command of the terminal. Bad input, and a training that diverges, is one line on stderr and status 1.

    Ctrl-C ends it with status 130 and the line that goes on.
    """
    try:
        _run(prog, prepare, work)
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped. To go on: {shlex.join([prog, *sys.argv[1:]])}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _run(prog, prepare, work):
    cache.enable()
    try:
        job = tyro.cli(prepare, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{prog}: {error}") from error
    try:
        with preemption.at_once():
            work(job)
    except (FloatingPointError, OSError) as error:  # such as a full disk
        raise SystemExit(f"{prog}: {error}") from error


def start(config: Any, counts: Sequence[str], *, many: bool = False) -> None:
    """Start JAX, with ``many`` on several hosts, too; the fields ``counts`` of the configuration must be at least 1.

    Raises:
      ValueError: naming the option, or if there are several processes where one is expected.
    """
    hosts.start()
    if jax.process_count() > 1 and not many:
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

    Other contents are another run. All hosts of a run must see the directory and have the same options and files.
    Raises as `runs.open_run`, `hosts.agree` and `hosts.check_shared`, before any work starts.
    """
    everything = asdict(config) | {"data": store.digest(dict(arrays))} | dict(facts or {})
    hosts.agree(everything | {"run": run})
    hosts.check_shared(results)
    return hosts.on_every_host(lambda: runs.open_run(results, command, everything, run))


def names(text: str) -> tuple[str, ...]:
    """The names of an option such as ``--drop name,date``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def task_name(source: str) -> str:
    """The name of the training file without directory and suffix, as it stands in tables and in names of units."""
    return re.sub(r"\W+", "-", Path(source).stem).strip("-")[:60] or "train"


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
