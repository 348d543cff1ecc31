"""The command d3mjax-debias: from the user's files to a list of training examples to drop, and whether to drop them.

    d3mjax-debias --train train.csv --validation val.csv --label y --group g       (--help explains every option)
    d3mjax-debias --train train.csv --validation val.csv --label y --auto          (the groups are unknown)

Half a minute for 4,000 examples, a few minutes for 200,000, on two CPU cores; any JAX device works.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from d3mjax.commands import (
    command,
    debias_data,
    debias_divisions,
    debias_page,
    debias_recipe,
    debias_report,
    debias_seed,
    debias_shared,
    inputs,
    verdict,
)
from d3mjax.commands.debias_data import Files, UserData
from d3mjax.commands.user_model import load_model
from d3mjax.data import splits
from d3mjax.networks import conv, dense
from d3mjax.runtime import hosts, progress, runs
from d3mjax.types import Model

CNN = (16, 32, 64)  # channels of the network for folders of images
AUTO_BYTES = 4 << 30  # the largest attribution of every target to every training example


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    files: Files
    # Your own model: module:function in the current directory, or file.py:function. Called with the number of classes,
    # with --regression with 1, it returns a Flax linen or nnx module, or a d3mjax Model, which maps features [b, ...]
    # to logits [b, C], or predictions [b, 1] of standardised labels. If not given: an MLP on flat features with one
    # hidden layer, 32 wide below 2,000 training examples, 64 below 20,000, then 128; with --images, but without
    # --image-encoder, a small CNN.
    model: str | None = None
    # Training steps, by SGD with momentum, the rate falling linearly to zero. If not given: ten epochs of batches of
    # 50, at least 300 steps; beyond 5,000 examples fewer epochs of larger batches (3 of 316 at 200,000 examples).
    steps: int | None = None
    # Learning rate at the start, for batches of 50; it grows with the batch. If not given: 0.05, or 0.1 with
    # --regression.
    rate: float | None = None
    # Models behind the scores, which all seeds share: 20, with --quick 8.
    checkpoints: int | None = None
    # Divisions of the targets; means and deviations are over these: 5, with --quick 2.
    seeds: int | None = None
    # Models behind every number of one seed: 4, from 20,000 examples on 2, with --quick 1.
    retrains: int | None = None
    # A quick look in about a quarter of the time: fewer seeds, checkpoints, models and candidates.
    quick: bool = False
    # Average accuracy, as a share, that a gain of the worst group may cost, with --regression the growth of the error
    # of all examples; beyond it the verdict names the trade-off and the best method within it. It changes no number, so
    # the same run serves every value.
    max_loss: float = verdict.MAX_LOSS


class Job(NamedTuple):
    """The user's data and model, checked, and where the results go."""

    config: Config
    data: UserData
    model: Model
    counts: debias_recipe.Counts
    schedule: debias_recipe.Schedule
    image: tuple[int, ...] | None  # shape of an example, if it is an image
    directory: Path
    dry_run: bool = False


def prepare(config: Config, *, results: Path = Path("results"), run: str | None = None, dry_run: bool = False) -> Job:
    """Find the training examples that make a model fail on a group, and show what happens without them.

    Trains on --train, scores every training example by how much it helps the groups of --validation that do badly (D3M
    with TRAK), drops the lowest, trains again, and compares with plain training, with dropping as many random
    examples of the same classes, and with training on the targets alone. States in plain words whether to drop them.
    The same command again resumes. With --regression labels are numbers, and errors in their unit replace accuracies.

    RESULTS/debias/RUN holds advice.txt, examples.csv (id, score, keep, rank, suspect), scores.npz, report.html,
    metrics.json and the plots; with --auto also pseudo_groups.csv (id, class, group, weaker, seeds) of the targets.

    A table:
    $ d3mjax-debias --train train.csv --validation val.csv --label income --group sex

    The same where the groups are unknown: they are searched for, and where none is reliable, nothing is removed:
    $ d3mjax-debias --train train.csv --validation val.csv --label income --auto

    A label that is a number to predict; the groups may be quarters of it, --group price:4:
    $ d3mjax-debias --train train.csv --validation val.csv --label price --regression --group district

    Groups that are crossings, the label being one of the columns, and a test set of its own:
    $ d3mjax-debias --train t.parquet --validation v.parquet --test u.parquet --label income --group income,sex --id row

    Arrays, and a model of your own, cnn(num_classes) in ./my_models.py:
    $ d3mjax-debias --train train.npz --validation val.npz --feature x --label y --group g --model my_models:cnn

    A folder of images, with classes, groups and parts in one table, as Waterbirds and WILDS publish them:
    $ d3mjax-debias --train w/metadata.csv --validation w/metadata.csv --test w/metadata.csv --images w \
        --label y --group y,place

    Data sets of TFDS:
    $ d3mjax-debias --train tfds:mnist:train --validation tfds:mnist:test --label label --group label --feature image

    Args:
        config: What determines the numbers.
        results: Where results are written.
        run: Name of the directory; if not given, a hash of data and options.
            Give another one after changing the code of your model.
        dry_run: Stop after data.json, which holds the kind of every column.
    """
    command.start(config, ("seeds", "retrains", "checkpoints", "steps"), many=True)
    return job_of(config, debias_data.read(config.files), results, run, dry_run=dry_run)


def job_of(config: Config, data: UserData, results: Path, run: str | None, *, dry_run: bool = False) -> Job:
    """The model and the steps that fit the data, and the directory of the run, all checked."""
    if not 0 <= config.max_loss <= 1:
        raise ValueError(f"--max-loss: found {config.max_loss:g}, expected a share from 0 to 1, such as 0.05")
    rate = (0.1 if data.scale else 0.05) if config.rate is None else config.rate
    if not 0 < rate < float("inf"):
        raise ValueError(f"--rate: found {rate:g}, expected a positive number, such as 0.05")
    n, shape, num_classes = len(data.train.y), data.train.x.shape[1:], data.num_classes
    if n < debias_recipe.BATCH:
        raise ValueError(f"--train: found {n} examples, expected at least {debias_recipe.BATCH}")
    num_targets = len(data.target.y)
    if config.files.auto and (size := 4 * n * num_targets) > AUTO_BYTES:
        raise ValueError(
            f"--auto: found {num_targets:,} targets and {n:,} training examples, whose attribution takes "
            f"{size / 2**30:.1f} GiB, expected at most {AUTO_BYTES / 2**30:.0f}: give fewer targets"
        )
    if config.model is None and config.files.pixels:
        model = conv.cnn(CNN, num_classes or 1, image=shape)
    elif config.model is None:
        model, data = dense.mlp((debias_recipe.hidden_of(n),), num_classes or 1), debias_data.flat(data)
    else:
        model = load_model(config.model, num_classes, data.train.x)
    splits.check_data(debias_divisions.divide(data, 0), num_classes, len(data.group_names))
    asked = {"divisions": config.seeds, "checkpoints": config.checkpoints, "retrains": config.retrains}
    counts = debias_recipe.counts_of(n, **asked, quick=config.quick)
    schedule = debias_recipe.schedule_of(n, steps=config.steps, rate=rate)
    image = shape if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)) else None
    bound = replace(config, max_loss=verdict.MAX_LOSS)
    directory = command.open_run(results, "debias", bound, debias_data.arrays(data), run)
    if hosts.leads():
        inputs.write_card(directory, data.card)
        print(inputs.show(data.card))
    return Job(config, data, model, counts, schedule, image, directory, dry_run)


def recipe_of(job: Job) -> debias_recipe.Recipe:
    """All that the seeds share, on the devices of this host."""
    options = {"schedule": job.schedule, "counts": job.counts, "auto": job.config.files.auto}
    ours = job.config.model is None and not job.config.files.pixels
    return debias_recipe.make_recipe(job.model, job.data, dense=ours, **options)


def work(job: Job) -> Path:
    """Run or resume all seeds, write everything, print the tables and the advice; returns the directory.

    Several hosts share the units of the seeds; the first one writes and prints.
    """
    if job.dry_run:
        print(f"Data card: {job.directory / 'data.json'}")
        return job.directory
    begin = time.perf_counter()
    name = command.task_name(job.config.files.train)
    units = run_units(job.directory, name, recipe_of(job))
    if hosts.leads():
        publish(job, name, units, begin)
    hosts.wait("finished")
    return job.directory


def publish(job: Job, name: str, units: Sequence[runs.Unit], begin: float) -> None:
    """Write everything that follows from the units of all seeds, and print it; ``begin``: when work began, seconds."""
    config, data, directory = job.config, job.data, job.directory
    rows = debias_report.rows_of(name, units)
    result = debias_report.decide(rows, units, data.group_names, config.max_loss)
    # Rules of fixed share and of the sign go by the first reading: the list is of the scores that the verdict names.
    reading = None if result.method in (None, debias_seed.SELECTED) else 0
    ranking = debias_report.rank(units, np.asarray(data.train.y), reading=reading)
    findings = debias_report.findings(result, rows, units, data.class_names)
    options = {"chosen": result.method, "max_loss": config.max_loss}
    section = debias_page.section(config.files, data, job.image, units, ranking, **options)
    work_done = debias_recipe.describe(job.counts, job.schedule, quick=config.quick)
    section = section._replace(text=f"{section.text}\n{work_done}")
    debias_report.write_lists(directory, data, units, ranking)
    sections = {name: section._replace(findings=findings)}
    command.finish(directory, config, rows, sections, time.perf_counter() - begin)
    print(f"Scores of the training examples: {directory / 'examples.csv'}")


def run_units(directory: Path, name: str, recipe: debias_recipe.Recipe) -> list[runs.Unit]:
    """The units of all divisions: what they share first, a unit of its own, then one after the other."""
    seeds = range(recipe.counts.divisions)
    of_shared, of_one = debias_shared.num_models(recipe), debias_seed.num_models(recipe)
    with progress.shown(of_shared + len(seeds) * of_one, name) as bar:
        bar(0, "compiling, then training and attributing checkpoints")
        measure = partial(debias_shared.measure, recipe)
        (shared,) = runs.run_units(directory, f"{name}-shared", range(1), measure, models=of_shared, shown=bar)
        measure = partial(debias_seed.measure, recipe, shared)
        return runs.run_units(directory, name, seeds, measure, models=of_one, shown=bar)


def main(
    config: Config, results: Path, *, run: str | None = None, tables: Mapping[str, pd.DataFrame] | None = None
) -> Path:
    """Check everything, then do all the work; returns the directory of the run.

    ``tables``: frames ``train``, ``validation`` and perhaps ``test`` that are taken instead of files, as in a notebook.
    """
    command.start(config, ("seeds", "retrains", "checkpoints", "steps"), many=True)
    return work(job_of(config, debias_data.read(config.files, tables=tables), results, run))


def cli() -> None:
    """The command ``d3mjax-debias``."""
    command.cli("d3mjax-debias", prepare, work)


if __name__ == "__main__":
    cli()
