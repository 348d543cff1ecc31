"""Which rows of your own table are wrong, and how: a list of suspects, a repaired table, and how far to trust them.

Claim:    a diagnoser taught on other tables finds wrong labels and broken features in yours; how often its claims are
          right on tables that it has not seen is measured, and reported for each kind.
Command:  d3mjax-diagnose --train train.parquet --validation val.parquet --label y     (--help explains every option)
Expected: precision and recall as in the report of the diagnoser, where your errors are like the planted ones.
Device:   two CPU cores, half a minute for 4,000 rows; any JAX device works.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool

from d3mjax.attribution import outputs
from d3mjax.commands import command, diagnose_data, diagnose_repaired, diagnose_report, inputs
from d3mjax.commands.diagnose_data import Files, UserTable
from d3mjax.commands.diagnose_report import Decision
from d3mjax.data import label_scale, tables
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import diagnose, relative, repair, taught, trees
from d3mjax.diagnosis.cells import MLP2, Network, labelled, make_train, trainer_of
from d3mjax.runtime import hosts, runs, store
from d3mjax.training import objectives
from d3mjax.types import is_regression

RESERVED = 256  # validation rows besides those looked at that make a separate check
RESTORE = {"impute": repair.impute, "drop": None}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    files: Files
    # File of a diagnoser, as python -m experiments demix_tables_pretrain makes it; if not given, that which ships with
    # d3mjax.
    diagnoser: str | None = None
    # Networks that are trained on --train to describe its rows; probabilities are means over them.
    networks: int = 3
    # weigh: rows weigh by the probability that their label and columns are right. change: suspected labels and columns
    # are changed, which gains more where most of the suspects are wrong, and loses where they are not. With
    # --regression labels are never changed: rows with suspected ones get weight 0.
    repair: Literal["weigh", "change"] = "weigh"
    # With change, repair of rows with suspected features: single values that stand out are replaced by the usual ones
    # of the class, or the row gets weight 0.
    broken: Literal["impute", "drop"] = "impute"
    # Networks trained with and without the repair, to compare.
    seeds: int = 5


class Job(NamedTuple):
    """The input of `work`: everything checked, and the directory of the results."""

    config: Config
    data: UserTable
    diagnoser: trees.Trees
    manifest: dict[str, Any]
    directory: Path
    network: Network = MLP2
    dry_run: bool = False  # `work` does nothing


def prepare(config: Config, *, results: Path = Path("results"), run: str | None = None, dry_run: bool = False) -> Job:
    """Find the rows of a table that are wrong: label errors, broken features, and a minority against a shortcut.

    Trains small networks on --train, describes each of its rows by its influence on the rows of --validation, and
    applies a diagnoser taught on other tables with planted errors. Reports how far to trust each kind, proposes a
    repair, and compares training with and without it. The same command again resumes.

    RESULTS/diagnose/RUN holds data.json (what became of each column), suspects.csv (id, kind, probability, proposal),
    repaired.parquet or repaired.csv (the table with a column of weights), probabilities.npz, advice.txt, report.html,
    metrics.json and the plots.

    A table, the label being the column income, rows named by the column row:
    $ d3mjax-diagnose --train train.csv --validation val.csv --label income --id row --drop name,date

    A table whose label is a number to predict, with errors in its unit:
    $ d3mjax-diagnose --train train.csv --validation val.csv --label price --regression

    A diagnoser of your own:
    $ python -m experiments demix_pretrain --config.seeds 5 --run five
    $ d3mjax-diagnose --train t.csv --validation v.csv --label y --diagnoser results/demix_pretrain/five/diagnoser.npz

    Args:
        config: What determines the numbers.
        results: Where results are written.
        run: Name of the directory; if not given, a hash of data, diagnoser and options.
        dry_run: Stop after data.json, which holds the kind of every column.
    """
    command.start(config, ("networks", "seeds"))
    return job_of(config, diagnose_data.read(config.files), results, run)._replace(dry_run=dry_run)


def job_of(config: Config, data: UserTable, results: Path, run: str | None, *, network: Network = MLP2) -> Job:
    """The diagnoser, and the directory of the run with the data card, all checked."""
    numbers = config.files.regression
    shipped = taught.SHIPPED_NUMBERS if numbers else taught.SHIPPED
    path = shipped if config.diagnoser is None else Path(config.diagnoser)
    if not path.is_file():
        raise ValueError(
            f"--diagnoser: found no file {path}, expected one of python -m experiments demix_tables_pretrain"
        )
    try:
        diagnoser, manifest = taught.load(path, numbers=numbers)
    except ValueError as error:
        raise ValueError(f"--diagnoser: {error}") from error
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    facts = {"diagnoser": checksum, "network": [network.name, network.steps, network.batch]}
    directory = command.open_run(results, "diagnose", config, _arrays(data), run, facts=facts)
    inputs.write_card(directory, data.card)
    print(inputs.show(data.card))
    return Job(config, data, diagnoser, manifest, directory, network=network)


def look(
    job: Job,
    train: Callable,
    of_table: Callable[[], relative.Scores | None],
    seed: int,
    progress: Callable[[int], object],
) -> runs.Unit:
    """The probabilities of each kind, and of each class, by one network."""
    data, encoder, chosen = job.data, tables.fit_encoder(job.data.train), diagnose_data.looked_at(job.data)
    y, held_y = data.y, data.validation_y[chosen]
    if is_regression(y):
        y, held_y = diagnose.standardised(y, y, held_y)
    held = labelled(encoder, tables.take(data.validation, chosen), held_y)
    (cell,) = train(jax.random.key(seed), [(labelled(encoder, data.train, y), held)], [data.train])
    result = diagnose.look(job.diagnoser, cell, y, num_classes_of(data), of_table=of_table())
    progress(1)
    return {}, result._asdict()


def decide(job: Job, units: Sequence[runs.Unit]) -> Decision:
    """Suspects by the mean probability of all networks, and the proposed repair: weights alone, or changes.

    Of a regression rows with wrong labels lose their weight: the number that other rows predict, in their place, left
    larger errors (study ``demix_regression``).
    """
    data = job.data
    result = diagnose.combine([diagnose.Look(**arrays) for _, arrays in units], data.train, data.y, job.diagnoser)
    thresholds = trees.thresholds(job.diagnoser, result.probabilities)
    options: Any = {"num_classes": num_classes_of(data), "correct": result.info.correct}
    if job.config.repair == "weigh" and not is_regression(data.y):
        repaired, risk = repair.weighed(data.train, data.y, result.probabilities, **options)
        return Decision(result, np.zeros_like(result.claims), repaired, risk, thresholds, weighed=True)
    repaired, risk = repair.recommended(
        data.train,
        data.y,
        result.claims,
        result.probabilities,
        **options,
        proposed=None if is_regression(data.y) else result.info.proposed,
        restore=RESTORE[job.config.broken],
    )
    used = repair.cautious(result.claims, result.probabilities)
    used[:, repair.MINORITY] &= risk.likely
    return Decision(result, used, repaired, risk, thresholds)


def compare(
    data: UserTable, decision: Decision, fit: Callable, seed: int, progress: Callable[[int], object]
) -> runs.Unit:
    """Whether each reserved validation row is predicted right, by one network trained on each of the two tables.

    With --regression the residual of the row, in the unit of the labels.
    """
    rows = reserved(data)
    repaired, right, held_y = decision.repaired, {}, data.validation_y[rows]
    sets = {
        diagnose_report.BEFORE: (data.train, data.y, np.ones(len(data.y), np.float32)),
        diagnose_report.AFTER: (repaired.table, repaired.labels, repaired.weights),
    }
    for name, (table, y, weights) in sets.items():
        encoder = tables.fit_encoder(table)
        predict = partial(fit, jax.random.key(1000 + seed), weights=weights)
        x = tables.encode(encoder, tables.take(data.validation, rows))
        if is_regression(y):
            scale = label_scale.fit(y)
            logits = predict(train=labelled(encoder, table, label_scale.standardise(scale, y)), x=x)
            right[name] = held_y - label_scale.restore(scale, logits[:, 0])
        else:
            right[name] = np.asarray(predict(train=labelled(encoder, table, y), x=x)).argmax(1) == held_y
        progress(1)
    return {}, right


def num_classes_of(data: UserTable) -> int | None:
    """Number of classes; None where labels are numbers."""
    return None if is_regression(data.y) else len(data.class_names)


def reserved(data: UserTable) -> Bool[np.ndarray, "v"]:
    """Validation rows to check with: those that describe no training row where there are enough, else all."""
    rest = ~diagnose_data.looked_at(data)
    return rest if rest.sum() >= RESERVED else np.ones_like(rest)


def make_fit(data: UserTable, network: Network) -> Callable:
    """``(key, train, weights [n], x [v d]) -> logits [v C]``, compiled."""
    model = network.make(list(tables.slices(data.train).values()), num_classes_of(data) or 1)
    objective = objectives.squared_error() if is_regression(data.y) else objectives.cross_entropy()
    trainer = trainer_of(model, network, len(data.y), objective=objective)

    @jax.jit
    def fit(key, train, weights, x):
        state, _ = trainer.run(trainer.init(key, train.x[:1]), train, weights, network.steps)
        return outputs.logits(model, state.variables, x)

    return fit


def work(job: Job) -> Path:
    """Run or resume everything, write it, print the tables and the advice; returns the directory."""
    if job.dry_run:
        print(f"Data card: {job.directory / 'data.json'}")
        return job.directory
    begin = time.perf_counter()
    config, data, directory = job.config, job.data, job.directory
    columns, num_classes = list(tables.slices(data.train).values()), num_classes_of(data)
    train = make_train(job.network, columns, num_classes, len(data.y), mesh=hosts.local_mesh())
    of_table = cache(lambda: diagnose.scores_of(job.diagnoser, data.train, data.y, num_classes))
    units = runs.run_units(directory, "network", range(config.networks), partial(look, job, train, of_table), models=1)
    decision = decide(job, units)
    measure = partial(compare, data, decision, make_fit(data, job.network))
    checks = runs.run_units(directory, "retrained", range(config.seeds), measure, models=2)

    task, held = command.task_name(config.files.train), reserved(data)
    rows = diagnose_report.rows_of(task, decision, checks, data.validation_y[held])
    findings = diagnose_report.findings(data, decision, job.manifest, rows, separate=not held.all())
    section = diagnose_report.section(data, decision, job.manifest, rows, findings)
    diagnose_report.write_suspects(directory, data, decision)
    repaired = diagnose_repaired.write(directory, data, decision.repaired, config.files.train, config.files.label)
    arrays = {"id": data.names, "kinds": np.array(KINDS), "probabilities": decision.diagnosis.probabilities}
    store.write_arrays(directory / "probabilities.npz", arrays)
    command.finish(directory, config, rows, {task: section}, time.perf_counter() - begin)
    print(f"\nSuspects: {directory / 'suspects.csv'}\nRepaired table, with weights: {repaired}")
    return directory


def main(
    config: Config,
    results: Path,
    *,
    run: str | None = None,
    network: Network = MLP2,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Check everything, then do all the work; returns the directory of the run.

    ``tables``: frames ``train`` and ``validation`` that are taken instead of files, as in a notebook.
    """
    command.start(config, ("networks", "seeds"))
    data = diagnose_data.read(config.files, tables=tables)
    return work(job_of(config, data, results, run, network=network))


def cli() -> None:
    """The command ``d3mjax-diagnose``: bad input is one line, not a traceback."""
    command.cli("d3mjax-diagnose", prepare, work)


def _arrays(data: UserTable) -> dict[str, np.ndarray]:
    """All arrays of the user's data by name, for their digest."""
    held = {f"validation.{name}": a for name, a in data.validation.columns.items()}
    train = {f"train.{name}": a for name, a in data.train.columns.items()}
    return {**train, **held, "names": data.names, "y": data.y, "validation y": data.validation_y} | {
        "validation id": data.validation.id,
        "levels": np.array(repr(data.train.levels)),
    }


if __name__ == "__main__":
    cli()
