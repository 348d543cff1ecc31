"""The harness of all studies: one unit of work for each task and data seed, stored when done, found again on a rerun.

A study is a file of one wing that ends with a `Study`:

    @dataclass(frozen=True)
    class Config:  # what determines the numbers; its hash names the run
        tasks: tuple[str, ...] = ("adult", "patch")
        seeds: int = 5
        first_seed: int = 10
        smoke: bool = False

    def prepare(task, config, results):  # once a task: what its seeds share, such as compiled functions
        return partial(measure, task, config)  # measure(task, config, seed, progress) -> (facts, arrays)

    def describe(task, config, units):  # units: (facts, arrays) of every seed
        rows = [row(task.name, "ours", {"lds": [facts["lds"] for facts, _ in units]}, role="ours")]
        return rows, Section("What the page shows.", {"A caption.": plots.curves(...)})

    STUDY = Study("name", claim="...", config=Config(), tasks=TASKS, prepare=prepare, describe=describe, minutes=2)

``python -m experiments name`` runs it, resumes it, shows its progress, and leaves ``metrics.json``, plots and
``report.html`` in ``results/name/<run>``; ``--smoke`` runs it on little data.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import tyro

from d3mjax.reports import page
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.runtime.store import digest

Unit = runs.Unit
run_units = runs.run_units


class Config(Protocol):
    """What a configuration has at least; a frozen dataclass, as its hash names the run."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def seeds(self) -> int: ...  # splits of the data
    @property
    def first_seed(self) -> int: ...


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Study:
    """One study: what it claims, what determines its numbers, and the functions that make and show them."""

    name: str  # also the directory of its results
    claim: str  # one sentence that its table supports
    config: Any  # the default configuration, a frozen dataclass with the fields of `Config`
    tasks: Mapping[str, Any]
    minutes: float  # of the default configuration on two CPU cores
    prepare: Callable[..., Any] = lambda *_: None  # (task, config, results) -> measure(seed, progress) -> unit
    describe: Callable[..., Any] = lambda *_: None  # (task, config, units) -> rows and section, or sections by task
    work: Callable[[Any, Path, str | None], Path] | None = None  # (config, results, run): all of it, in place of units
    headline: tuple[str, str, str] | None = None  # task, method and metric of the number that the list shows
    smoke: Callable[[Any], Any] = lambda config: config  # the configuration of a smoke run
    small: Callable[[Any], Any] = lambda task: task  # the task of a smoke run
    models: Callable[[Any], int] = lambda config: 1  # models that a unit reports to its progress bar
    together: bool = False  # all hosts work on every unit, as banks deal out their blocks


def run(study: Study, config: Any, results: Path = Path("results"), name: str | None = None) -> Path:
    """Run or resume a study and write ``results/<study>/<run>``; raises as `run_experiment`."""
    config = study.smoke(config) if config.smoke else config
    if study.work is not None:
        return study.work(config, results, name)

    def prepare(task, config):
        return study.prepare(study.small(task) if config.smoke else task, config, results)

    def describe(task, config, units):
        return study.describe(study.small(task) if config.smoke else task, config, units)

    return run_experiment(
        study.name,
        config,
        study.tasks,
        prepare,
        describe,
        models=study.models(config),
        results=results,
        run=name,
        together=study.together,
    )


def cli(study: Study, arguments: Sequence[str]) -> Path:
    """`run` from the command line: ``[--smoke] [--results DIR] [--run NAME] [--config.FIELD VALUE ...]``."""
    config_type = type(study.config)

    def command(
        config: config_type = study.config,  # pyright: ignore[reportInvalidTypeForm]  # the study's own fields
        results: Path = Path("results"),
        run: str | None = None,
        smoke: bool = False,
    ) -> tuple[Any, Path, str | None]:
        return (replace(config, smoke=True) if smoke else config), results, run

    command.__doc__ = study.claim
    config, results, run_name = tyro.cli(command, prog=f"python -m experiments {study.name}", args=arguments)
    return run(study, config, results, run_name)


def run_experiment(
    experiment: str,
    config: C,
    tasks: Mapping[str, Any],
    prepare: Callable[[Any, C], Callable],
    describe: Callable[[Any, C, list[Unit]], tuple[list[dict[str, Any]], Any]],
    *,
    models: int,
    results: Path,
    run: str | None,
    together: bool = False,
) -> Path:
    """Run or resume every task and seed, write ``results/<experiment>/<run>``, and return it.

    ``prepare(task, config) -> measure`` and ``measure(seed, progress) -> (facts, arrays)`` do the work;
    ``describe(task, config, units) -> (rows, section)`` shows the results of all seeds, with a section of the page or a
    dict of sections by task. ``models``: how many a unit reports to ``progress(count)``. Where there are several hosts,
    units are dealt out to them; with ``together`` all hosts work on every unit, which is for banks: their blocks are
    dealt out. The first host writes the page. SIGTERM ends it between two pieces of work.

    Raises:
      ValueError: a task that is not in ``tasks``, before anything is written; a run that belongs to another config;
        hosts of different code or configuration, or that do not share ``results``.
      OSError: on every host, naming those that cannot write there.
    """
    if unknown := set(config.tasks) - tasks.keys():
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(tasks)}")
    begin = time.perf_counter()
    hosts.start()
    if jax.process_count() > 1:
        environment = runs.environment()
        first = {
            name: digest(getattr(tasks[name], "task", tasks[name]).read(config.first_seed)) for name in config.tasks
        }
        facts = {"config": asdict(config), "run": run, "revision": environment["revision"], "data": first}
        hosts.agree({"experiment": experiment, **facts, "versions": environment["versions"]})
    hosts.check_shared(results)
    with preemption.at_once():
        directory = hosts.on_every_host(lambda: runs.open_run(results, experiment, asdict(config), run))
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        rows, sections = [], {}
        for name in config.tasks:
            measure = prepare(tasks[name], config)
            found = runs.run_units(directory, name, seeds, measure, models=models, together=together)
            of_task, section = describe(tasks[name], config, found)
            sections |= section if isinstance(section, dict) else {name: section}
            rows += of_task
        if hosts.leads():
            page.finish(directory, experiment, asdict(config), rows, sections, time.perf_counter() - begin)
        hosts.wait("finished")
    return directory
