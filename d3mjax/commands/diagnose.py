"""Which rows of your own table are wrong, and how: a list of suspects, a repaired table, and how far to trust them.

Claim:    a diagnoser that was taught on other tables finds wrong labels and broken features in yours; how often it is
          right on tables that it has not seen is measured, and said for each kind.
Command:  d3mjax-diagnose --train train.parquet --validation val.parquet --label y     (--help explains every option)
Expected: precision and recall as the report of the diagnoser says, where your errors are like the planted ones.
Device:   two CPU cores, a minute or two for 4,000 rows; the first use teaches a diagnoser, once, in some 20 minutes.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import outputs
from d3mjax.commands import diagnose_data, diagnose_report
from d3mjax.commands.diagnose_data import Files, Own
from d3mjax.commands.diagnose_report import Diagnosis
from d3mjax.data import tables
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.data.sets import builders
from d3mjax.diagnosis import repair, trees
from d3mjax.reports import page
from d3mjax.runtime import hosts, preemption, runs, store
from experiments import study
from experiments.diagnosis import demix_pretrain
from experiments.diagnosis.demix_cells import MLP2, features, labelled, make_vectors, trainer_of

RESERVED = 256  # validation rows besides those looked at that make a check of their own
RESTORE = {"impute": repair.impute, "drop": None}
DEFAULT = demix_pretrain.Config()


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    files: Files
    # File of a diagnoser, as python -m experiments.demix_pretrain makes it. If not given, the default one, which is
    # made where RESULTS does not have it yet: that takes some 20 minutes, once.
    diagnoser: str | None = None
    # Networks that are trained on --train to look at it; probabilities are means over them.
    networks: int = 3
    # What becomes of rows whose features are suspected: single values that stand out are replaced by what is usual in
    # the class, or the row gets weight 0.
    broken: Literal["impute", "drop"] = "impute"
    # Networks trained with and without the repair, to compare.
    seeds: int = 5


class Ready(NamedTuple):
    """What is done once everything is checked and a place for the results is found."""

    config: Config
    own: Own
    fitted: trees.Trees
    manifest: dict[str, Any]
    directory: Path


def prepare(config: Config, results: Path = Path("results"), run: str | None = None) -> Ready:
    """Find the rows of a table that are wrong: label errors, broken features, and a minority against a shortcut.

    Trains small networks on --train, looks at how each of its rows acts on the rows of --validation (influence), and
    asks a diagnoser that was taught on other tables with planted errors. Says how far to trust each kind, proposes a
    repair, and shows what training on it changes. The same command again resumes.

    RESULTS/diagnose/RUN holds suspects.csv (id, kind, probability, proposal), repaired.parquet or repaired.csv (the
    table with a column of weights), probabilities.npz, advice.txt, report.html, metrics.json and the plots.

    A table, the label being the column income, rows named by the column row:
    $ d3mjax-diagnose --train train.csv --validation val.csv --label income --id row --drop name date

    A diagnoser of your own:
    $ python -m experiments.demix_pretrain --config.seeds 5 --run five
    $ d3mjax-diagnose --train t.csv --validation v.csv --label y --diagnoser results/demix_pretrain/five/diagnoser.npz

    Args:
        config: What determines the numbers.
        results: Where results are written.
        run: Name of the directory; if not given, a hash of data, diagnoser and options.
    """
    hosts.start()
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: this command runs on one host")
    for name in ("networks", "seeds"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name}: found {getattr(config, name)}, expected at least 1")
    own = diagnose_data.read(config.files)
    path = find_diagnoser(config, results)
    try:
        fitted, manifest = demix_pretrain.load(path)
    except ValueError as error:
        raise ValueError(f"--diagnoser: {error}") from error
    facts = asdict(config) | {"data": builders.digest(_named(own))}  # other contents of the files are another run
    facts |= {"diagnoser": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    return Ready(config, own, fitted, manifest, runs.open_run(results, "diagnose", facts, run))


def find_diagnoser(config: Config, results: Path) -> Path:
    """The file of the user, or the default one, which is made if it is not there."""
    if config.diagnoser is not None:
        path = Path(config.diagnoser)
        if not path.is_file():
            raise ValueError(f"--diagnoser: found no file {path}, expected one of python -m experiments.demix_pretrain")
        return path
    path = demix_pretrain.place(DEFAULT, results, None)
    if not demix_pretrain.finished(path):
        print(
            f"No --diagnoser: teaching the default one on {len(DEFAULT.tasks)} tables with planted errors "
            f"({', '.join(DEFAULT.tasks)}). That takes some 20 minutes on two cores, once: it is kept as {path}, and "
            "the same command goes on where this one is stopped."
        )
        demix_pretrain.main(DEFAULT, results)
    return path


def look(own: Own, fitted: trees.Trees, seed: int, progress: Callable[[int], object], *, make: Callable) -> study.Unit:
    """Probabilities of each kind by one network, and what networks that have not seen a row think its class is."""
    encoder, chosen = tables.fit_encoder(own.train), diagnose_data.looked_at(own)
    held = labelled(encoder, tables.take(own.validation, chosen), own.validation_y[chosen])
    (cell,) = make(jax.random.key(seed), [(labelled(encoder, own.train, own.y), held)], [own.train])
    if not np.isfinite(cell.vectors).all():
        raise FloatingPointError(f"network {seed}: influence is not finite, training diverged")
    found = features(cell, own.y, len(own.class_names))
    progress(1)
    arrays = {"probabilities": trees.predict(fitted, found), "left_out": jax.nn.softmax(cell.left_out)}
    arrays["seen"] = jax.nn.softmax(cell.logits)
    return {}, {name: np.asarray(a) for name, a in arrays.items()}


def decide(config: Config, own: Own, fitted: trees.Trees, found: list[study.Unit]) -> Diagnosis:
    """Suspects by the mean probability of all networks, and the repair that is proposed.

    The proposed class is the likeliest other one, by networks that have not seen the row.
    """
    mean = lambda name: np.mean([arrays[name] for _, arrays in found], axis=0)
    probabilities, classes = mean("probabilities"), mean("left_out")
    flags = np.asarray(trees.claim(fitted, probabilities))
    others = np.where(np.arange(classes.shape[1])[None] == own.y[:, None], -1, classes)
    proposed, num_classes = others.argmax(1).astype(own.y.dtype), len(own.class_names)
    options: dict[str, Any] = {"num_classes": num_classes, "proposed": proposed, "restore": RESTORE[config.broken]}
    right = mean("seen").argmax(1) == own.y
    repaired, risk = repair.recommended(own.train, own.y, flags, probabilities, correct=right, **options)
    used = repair.cautious(flags, probabilities)
    used[:, 2] &= risk.likely
    return Diagnosis(probabilities, flags, used, proposed, repaired, risk, np.asarray(fitted.thresholds))


def compare(
    own: Own, diagnosis: Diagnosis, seed: int, progress: Callable[[int], object], *, fit: Callable
) -> study.Unit:
    """Accuracy of each class on the validation rows that check, by one network trained on each of the two tables."""
    rows = reserved(own)
    repaired, found = diagnosis.repaired, {}
    tried = {
        diagnose_report.BEFORE: (own.train, own.y, np.ones(len(own.y), np.float32)),
        diagnose_report.AFTER: (repaired.table, repaired.labels, repaired.weights),
    }
    for name, (table, y, weights) in tried.items():
        encoder = tables.fit_encoder(table)
        held = labelled(encoder, tables.take(own.validation, rows), own.validation_y[rows])
        right = fit(jax.random.key(1000 + seed), labelled(encoder, table, y), weights, held)
        found[name] = np.asarray(right)
        progress(1)
    return {}, found


def reserved(own: Own) -> np.ndarray:
    """Validation rows to check with: those not looked at where there are enough, else all."""
    rest = ~diagnose_data.looked_at(own)
    return rest if rest.sum() >= RESERVED else np.ones_like(rest)


def make_fit(own: Own) -> Callable:
    """``(key, train, weights [n], held) -> right [v]``, compiled."""
    model = MLP2.make(list(tables.slices(own.train).values()), len(own.class_names))
    trainer = trainer_of(model, MLP2, len(own.y))

    @jax.jit
    def fit(key, train, weights, held):
        state, _ = trainer.run(trainer.init(key, train.x[:1]), train, weights, MLP2.steps)
        return jnp.argmax(outputs.logits(model, state.variables, held.x), 1) == held.y

    return fit


def work(ready: Ready) -> Path:
    """Run or resume everything, write it, print the tables and the advice; returns the directory."""
    begin = time.perf_counter()
    config, own, fitted, manifest, directory = ready
    columns, num_classes = list(tables.slices(own.train).values()), len(own.class_names)
    make = make_vectors(MLP2, columns, num_classes, len(own.y), hosts.local_mesh())
    with preemption.at_once():
        seen = partial(look, own, fitted, make=make)
        found = study.run_units(directory, "network", range(config.networks), seen, models=1)
        diagnosis = decide(config, own, fitted, found)
        tried = partial(compare, own, diagnosis, fit=make_fit(own))
        checks = study.run_units(directory, "retrained", range(config.seeds), tried, models=2)

    task = re.sub(r"\W+", "-", Path(config.files.train).stem).strip("-")
    rows = diagnose_report.rows_of(task, own, fitted, found, diagnosis, checks, own.validation_y[reserved(own)])
    advice = diagnose_report.advice(own, diagnosis, manifest, rows, separate=not reserved(own).all())
    section = diagnose_report.section(task, own, diagnosis, manifest, advice)
    diagnose_report.write_suspects(directory, own, diagnosis)
    repaired = diagnose_report.write_repaired(directory, own, diagnosis, config.files)
    store.write_arrays(
        directory / "probabilities.npz", id=own.names, kinds=KINDS, probabilities=diagnosis.probabilities
    )
    store.write_bytes(directory / "advice.txt", "".join(f"- {sentence}\n" for sentence in advice).encode())
    page.finish(directory, "diagnose", asdict(config), rows, {task: section}, time.perf_counter() - begin)
    print("\nAdvice\n" + "\n".join(f"- {sentence}" for sentence in advice))
    print(f"\nSuspects: {directory / 'suspects.csv'}\nRepaired table, with weights: {repaired}")
    return directory


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Check everything, then do all the work."""
    return work(prepare(config, results, run))


def cli() -> None:
    """The command ``d3mjax-diagnose``: bad input is one line, not a traceback."""
    try:
        ready = tyro.cli(prepare, prog="d3mjax-diagnose", config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        raise SystemExit(f"d3mjax-diagnose: {error}") from error
    work(ready)


def _named(own: Own) -> dict[str, np.ndarray]:
    """All arrays of the user's data by name, for its digest."""
    held = {f"validation.{name}": a for name, a in own.validation.columns.items()}
    return {**own.raw, **held, "validation y": own.validation_y, "features": np.array(list(own.train.columns))}


if __name__ == "__main__":
    cli()
