"""D3M on your own data: from files to a list of training examples to drop, with advice on whether to drop them.

Claim:    on data whose training set teaches a shortcut, training without the listed examples does better on the group
          that plain training fails; where it does not, the advice says so.
Command:  d3mjax-debias --train train.csv --target val.csv --label y --group g       (--help explains every option)
          d3mjax-debias --train train.csv --target val.csv --label y --auto          (nobody knows the groups)
Expected: on 4,000 examples of the task *patch* of README.md, what its table says of "D3M, by selection".
Device:   two CPU cores, a minute or two for 4,000 examples of 200 features; any JAX device works.
"""

import importlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen

from d3mjax.attribution import projections
from d3mjax.commands import debias_auto, debias_data, debias_report
from d3mjax.commands.debias_auto import Auto
from d3mjax.commands.debias_data import Files, Own
from d3mjax.data.sets import builders
from d3mjax.debiasing import baselines, group_weighting, selection
from d3mjax.networks import adapt
from d3mjax.reports import page
from d3mjax.runtime import hosts, runs, store
from d3mjax.training import ensemble
from d3mjax.types import Data, Model
from experiments import study
from experiments.d3m import d3m, engine
from experiments.tasks import Task

LEAST = 50  # training examples: one batch


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    files: Files
    # Your own model: module:function in the current directory. Called with the number of classes, it returns a flax
    # linen module or a d3mjax Model, which maps features [b, ...] to logits [b, C]. If not given: an MLP on flat
    # features with one hidden layer, 32 wide below 2,000 training examples, 64 below 20,000, then 128.
    model: str | None = None
    # Training steps, each on 50 examples, by SGD with momentum, the rate falling linearly to zero. If not given: ten
    # epochs, but at least 300 steps and at most 20,000.
    steps: int | None = None
    # Learning rate at the start.
    rate: float = 0.05
    # Models behind the scores of one seed.
    checkpoints: int = 20
    # Divisions of the targets; means and deviations are over these.
    seeds: int = 5
    # Models behind every number of one seed.
    retrains: int = 4


class Ready(NamedTuple):
    """What is done once everything is checked and a place for the results is found."""

    config: Config
    own: Own
    task: Task
    directory: Path


class Scored(NamedTuple):
    """The training examples scored for groups of the targets, and what is behind it."""

    scores: jax.Array  # Float[r n], one row for each damping; 0 where refused
    group: np.ndarray  # Int[t], of the targets
    group_weights: jax.Array  # Float[G]
    checkpoints: engine.Checkpoints
    refused: bool  # no groups were found: nothing is to be removed
    facts: dict[str, Any]
    arrays: dict[str, Any]


def prepare(config: Config, results: Path = Path("results"), run: str | None = None) -> Ready:
    """Find the training examples that make a classifier fail on a group, and show what happens without them.

    Trains on --train, scores every training example by how much it helps the groups of --target that do badly (D3M
    with TRAK), drops the lowest, trains again, and compares with plain training, with dropping as many random
    examples of the same classes, and with training on the targets alone. Says in plain words whether to drop them.
    The same command again resumes.

    RESULTS/debias/RUN holds advice.txt, examples.csv (id, score, keep, rank, suspect), scores.npz, report.html,
    metrics.json and the plots; with --auto also pseudo_groups.csv (id, class, group, weaker, seeds) of the targets.

    A table:
    $ d3mjax-debias --train train.csv --target val.csv --label income --group sex

    The same where nobody knows the groups: they are looked for, and where none can be relied on, nothing is removed:
    $ d3mjax-debias --train train.csv --target val.csv --label income --auto

    Groups that are crossings, the label being one of the columns, and a test set of its own:
    $ d3mjax-debias --train t.parquet --target v.parquet --test u.parquet --label income --group income,sex --id row

    Arrays, and a model of your own, cnn(num_classes) in ./my_models.py:
    $ d3mjax-debias --train train.npz --target val.npz --feature x --label y --group g --model my_models:cnn

    Data sets of TFDS:
    $ d3mjax-debias --train tfds:adult:train --target 'tfds:adult:test[:2000]' --label y --group group

    Args:
        config: What determines the numbers.
        results: Where results are written.
        run: Name of the directory; if not given, a hash of data and options.
            Give another one after changing the code of your model.
    """
    hosts.start()
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: this command runs on one host")
    for name in ("seeds", "retrains", "checkpoints", "steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: found {value}, expected at least 1")
    own = debias_data.read(config.files)
    if len(own.train.y) < LEAST:
        raise ValueError(f"--train: found {len(own.train.y)} examples, expected at least {LEAST}")
    task = task_of(config, own)
    task.read(0)
    facts = asdict(config) | {"data": builders.digest(_named(own))}  # other contents of the files are another run
    return Ready(config, own, task, runs.open_run(results, "debias", facts, run))


def task_of(config: Config, own: Own) -> Task:
    """The user's data and the training recipe."""
    n, shape, num_classes = len(own.train.y), own.train.x.shape[1:], len(own.class_names)
    model = None if config.model is None else load_model(config.model, num_classes, own.train.x)
    if model is None:
        flat = lambda split: split and split._replace(x=split.x.reshape(len(split.y), -1))
        own = own._replace(train=flat(own.train), target=flat(own.target), test=flat(own.test))
    groups = f"in {len(own.group_names)} groups ({config.files.group})."
    groups = f"without group labels. {debias_auto.ABOUT}" if config.files.auto else groups
    return Task(
        name=re.sub(r"\W+", "-", Path(config.files.train).stem).strip("-"),
        about=f"{n:,} training examples of {config.files.train}, {len(own.target.y):,} targets of "
        f"{config.files.target} {groups}",
        load=lambda seed, *, smoke: debias_data.divide(own, seed),
        class_names=own.class_names,
        group_names=own.group_names,
        hidden=(32 if n < 2000 else 64 if n < 20_000 else 128,),
        image=shape if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)) else None,
        steps=config.steps or min(max(10 * n // 50, 300), 20_000),
        rate=config.rate,
        model=model,
    )


def load_model(spec: str, num_classes: int, x: np.ndarray) -> Model:
    """The user's ``module:function``, called and tried on two examples; raises ValueError if it does not fit."""
    module, _, name = spec.partition(":")
    sys.path.append(str(Path.cwd()))  # commands do not look there by themselves
    expected = "module:function of the current directory that takes the number of classes"
    try:
        made = getattr(importlib.import_module(module), name)(num_classes)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--model: {spec!r} failed ({type(error).__name__}: {error}), expected {expected}") from error
    model = adapt.from_linen(made) if isinstance(made, linen.Module) else made
    if not isinstance(model, Model):
        raise ValueError(
            f"--model: {spec!r} returned {type(made).__name__}, expected a flax linen module or a d3mjax Model, as "
            "d3mjax.training.models.from_nnx and from_functions make"
        )
    features = f"features {list(x[:2].shape)}"
    try:
        logits = jax.eval_shape(lambda key, x: model.apply(model.init(key, x), x)[0], jax.random.key(0), x[:2])
    except Exception as error:
        raise ValueError(f"--model: {spec!r} failed on {features} ({type(error).__name__}: {error})") from error
    if logits.shape != (2, num_classes):
        raise ValueError(
            f"--model: {spec!r} makes {list(logits.shape)} of {features}, expected logits {[2, num_classes]}"
        )
    return model


def retrain(programs: engine.Programs, data: Data, keys, keep: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """Evaluations of one model a key, trained on every keep mask: ``[n]``, or ``[m n]`` with one for each model."""
    evaluations = {}
    for name, rows in keep.items():
        weights = np.broadcast_to(rows, (len(keys), len(data.train.y))).astype(np.float32)
        evaluations[name] = programs.fit(data.train, data, keys, weights)
        progress(len(keys))
    return evaluations


def score(config: Config, programs: engine.Programs, auto: Auto | None, data: Data, root, progress: Callable) -> Scored:
    """D3M's scores for the groups of the targets, or for those that ``auto`` finds; an empty group has no say."""
    facts, arrays, refused = {}, {}, False
    if auto:
        pseudo = auto.split(data, root)
        progress(config.checkpoints)
        facts, arrays = debias_auto.kept(pseudo, data.target)
        data, programs, refused = debias_auto.regrouped(data, pseudo), auto.programs, not pseudo.split.any()
    here = hosts.place(data, hosts.local_mesh())
    keys = ensemble.model_keys(jax.random.fold_in(root, d3m.SCORE), jnp.arange(config.retrains))
    plain = {"ERM": np.ones(len(data.train.y))}
    losses = retrain(programs, here, keys, plain, progress)["ERM"].losses.mean(0)
    columns, solved, checkpoints = programs.columns(here, jax.random.fold_in(root, d3m.COLUMNS), progress)
    present = np.unique(data.target.group)
    for reading in columns:
        group_weighting.check_scores(reading[:, present], losses[present])
    group_weights = group_weighting.softmax_weights(losses)
    scores = jnp.stack([group_weighting.scores(reading, group_weights) for reading in columns])
    scores = jnp.zeros_like(scores) if refused else scores
    arrays |= {"score": scores, "columns": columns, "group_losses": losses}
    return Scored(scores, np.asarray(data.target.group), group_weights, checkpoints, refused, facts | solved, arrays)


def debias(
    task: Task, config: Config, programs: engine.Programs, auto: Auto | None, seed: int, progress: Callable
) -> study.Unit:
    """D3M and what it is compared with on one division of the targets: facts for JSON, and arrays."""
    data = task.read(seed)
    here = hosts.place(data, hosts.local_mesh())  # once for all programs
    train, retrains = data.train, config.retrains
    num_groups, num_classes = len(task.group_names), len(task.class_names)
    root = jax.random.key(seed)
    keys = lambda family: ensemble.model_keys(jax.random.fold_in(root, family), jnp.arange(retrains))
    found = score(config, programs, auto, data, root, progress)
    shares = (0.0,) if found.refused else d3m.GRID

    keep: dict[str, Any] = d3m.candidates(found.scores[0], train.y, num_classes, shares=shares)
    reading = dict.fromkeys(keep, 0)
    for i, name in enumerate(d3m.names(d3m.OTHERS)[1 : len(found.scores)], 1):
        more = {} if found.refused else d3m.candidates(found.scores[i], train.y, num_classes, name=name)
        keep, reading = keep | more, reading | dict.fromkeys(more, i)
    judged = retrain(programs, here, keys(d3m.SELECT), keep, progress)
    chosen = d3m.choose(judged, data.selection.group)

    like = lambda cell, k: jax.vmap(lambda key: selection.drop_random_like(key, keep[chosen], cell, k))(keys(d3m.DRAW))
    keep["random removal"] = like(np.zeros_like(train.y), 1)
    keep["class-matched random removal"] = like(train.y, num_classes)
    tested = retrain(programs, here, keys(d3m.REPORT), keep, progress)
    weights = baselines.balanced_weights(found.group, len(found.group_weights))
    weights = np.broadcast_to(weights, (retrains, len(data.target.y)))
    tested["RWG on the targets alone"] = programs.resample(here.target, here, keys(d3m.REPORT), weights)
    progress(retrains)

    aliases = {f"D3M/{share}": "D3M/0.0" for share in d3m.GRID if share not in shares}
    aliases |= {"ERM": "D3M/0.0", "D3M, 10 % removed": "D3M/0.1", "D3M, by selection": chosen}
    for name, same in aliases.items():
        tested[name], keep[name] = tested[same], keep[same]
    suspect = selection.label_suspects(found.checkpoints.right)
    sizes = {part: np.bincount(getattr(data, part).group, minlength=num_groups) for part in debias_report.PARTS}
    facts = found.facts | {"chosen": chosen, "reading": reading[chosen], "sizes": sizes}
    facts |= d3m.scrutiny(found.checkpoints, found.group_weights, suspect, keep)
    facts |= {"removed": {name: 1 - float(np.mean(np.asarray(rows))) for name, rows in keep.items()}}
    arrays = found.arrays | {"kept": keep[chosen], "suspect": suspect}
    arrays |= {f"test/{name}": evaluation.test for name, evaluation in tested.items()}
    arrays |= {f"average/{name}": evaluation.average for name, evaluation in tested.items()}
    arrays |= {f"selection/{name}": evaluation.selection for name, evaluation in judged.items()}
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def work(ready: Ready) -> Path:
    """Run or resume all seeds, write everything, print the tables and the advice; returns the directory."""
    begin = time.perf_counter()
    config, own, task, directory = ready
    # p beyond an eighth of the examples would no longer regularise
    size = min(engine.Trak().size, projections.default_size(2 * len(own.train.y)))
    source = engine.Trak(models=config.checkpoints, size=size)
    programs = engine.make_programs(task, hosts.local_mesh(), source, others=d3m.OTHERS)
    auto = debias_auto.make(task, hosts.local_mesh(), source) if config.files.auto else None
    tried = len(d3m.GRID) + 1 + len(d3m.OTHERS) * (len(d3m.TRIED) + 1)
    trained = config.checkpoints * (2 if auto else 1) + config.retrains * (2 * tried + 4)
    measure = partial(debias, task, config, programs, auto)
    found = runs.run_units(directory, task.name, range(config.seeds), measure, models=trained)

    rows = debias_report.rows_of(task, found)
    final = debias_report.final(found, np.asarray(own.train.y), len(own.class_names))
    advice = debias_report.advice(rows, found, task.group_names)
    section = debias_report.section(task, own, found, final, advice)
    debias_report.write_lists(directory, own, found, final)
    store.write_bytes(directory / "advice.txt", "".join(f"- {sentence}\n" for sentence in advice).encode())
    seconds = time.perf_counter() - begin
    page.finish(directory, "debias", asdict(config), rows, {task.name: section}, seconds)
    print("\nAdvice\n" + "\n".join(f"- {sentence}" for sentence in advice))
    print(f"\nExamples to drop (keep = 0): {directory / 'examples.csv'}")
    return directory


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Check everything, then do all the work."""
    return work(prepare(config, results, run))


def cli() -> None:
    """The command ``d3mjax-debias``: bad input is one line, not a traceback."""
    try:
        ready = tyro.cli(prepare, prog="d3mjax-debias", config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        raise SystemExit(f"d3mjax-debias: {error}") from error
    work(ready)


def _named(own: Own) -> dict[str, np.ndarray]:
    """All arrays of the user's data by name, for its digest."""
    parts = {"train": own.train, "target": own.target, "test": own.test}
    return {f"{k}.{name}": a for k, part in parts.items() if part for name, a in part._asdict().items()}


if __name__ == "__main__":
    cli()
