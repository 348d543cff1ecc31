"""What all experiments share: one unit of work for each task and data seed, stored when done, found again on a rerun.

An experiment is a frozen dataclass with the fields of `Config` and whatever else determines its numbers, and two
functions; all that is left to write is

    def prepare(task, config):  # once a task: what its seeds share, such as compiled functions
        return partial(measure, task, config)  # measure(task, config, seed, progress) -> (facts, arrays)

    def describe(task, config, found):  # found: (facts, arrays) of every seed
        rows = [report.row(task.name, "ours", {"lds": [facts["lds"] for facts, _ in found]})]
        return rows, report.Section("What the page says.", {"A caption.": plots.curves(...)})

    def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
        config = replace(config, seeds=2, models=4) if config.smoke else config
        return units.run_experiment(
            "name", config, TASKS, prepare, describe, models=config.models, results=results, run=run
        )

    if __name__ == "__main__":
        tyro.cli(main)

and it resumes, shows its progress, and leaves ``metrics.json``, plots and ``report.html``. ``python -m
experiments.report results/name/<run> --into README.md`` puts its tables between the lines ``<!-- name -->`` and
``<!-- /name -->``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from d3mjax.reports import page as report
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.runtime.store import digest

Unit = tuple[dict[str, Any], dict[str, np.ndarray]]
"""What one task and seed leave: facts that JSON holds, and arrays by name."""


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


def run_experiment(
    experiment: str,
    config: C,
    tasks: Mapping[str, Any],
    prepare: Callable[[Any, C], Callable],
    describe: Callable[[Any, C, list[Unit]], tuple[list[dict[str, Any]], report.Section]],
    *,
    models: int,
    results: Path,
    run: str | None,
    together: bool = False,
) -> Path:
    """Run or resume every task and seed, write ``results/<experiment>/<run>``, and return it.

    ``prepare(task, config) -> measure`` and ``measure(seed, progress) -> (facts, arrays)`` do the work;
    ``describe(task, config, units) -> (rows, section)`` says what came out of all seeds. ``models``: how many a unit
    reports to ``progress(count)``. Where there are several hosts, units are dealt out to them; with ``together`` all
    hosts work on every unit, which is for banks: their blocks are dealt out. The first host writes the page. SIGTERM
    ends it between two pieces of work.

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
            found = run_units(directory, name, seeds, measure, models=models, together=together)
            of_task, sections[name] = describe(tasks[name], config, found)
            rows += of_task
        if hosts.leads():
            report.finish(directory, experiment, asdict(config), rows, sections, time.perf_counter() - begin)
        hosts.wait("finished")
    return directory


def run_units(
    directory: Path, name: str, seeds: range, measure: Callable, *, models: int, together: bool = False
) -> list[Unit]:
    """``measure(seed, progress)`` of every seed behind one progress bar, read where ``directory`` has it already."""
    with tqdm(total=len(seeds) * models, unit="model", desc=name) as bar:
        for i, seed in enumerate(seeds):
            unit = f"{name}-{seed}"
            if together:
                # All or none: there are waits in it. One stores what all have.
                if hosts.any_host(runs.read_unit(directory, unit) is None):
                    found = measure(seed, bar.update)
                    if hosts.leads():
                        runs.unit(directory, unit, lambda found=found: found)
                    hosts.wait(unit)
            elif i % jax.process_count() == jax.process_index():
                runs.unit(directory, unit, partial(measure, seed, bar.update))
            bar.n = (i + 1) * models  # a unit that was read has reported nothing
            bar.refresh()
    hosts.wait(name)
    found = [runs.read_unit(directory, f"{name}-{seed}") for seed in seeds]
    if missing := [seed for seed, unit in zip(seeds, found, strict=True) if unit is None]:
        raise OSError(f"{directory}: this host does not see the units of seeds {missing}, which were written")
    return [unit for unit in found if unit is not None]
