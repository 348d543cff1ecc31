"""Which preference pairs hold a language model back on a group of pairs, and what DPO gives without them (D3M).

Claim:    removal of the pairs of lowest alignment with the group of highest loss lifts that group above DPO on all
          pairs, and above random removal of as many.
Command:  python -m experiments language --config.model DIR --config.pairs FILE
          DIR: config.json, tokenizer.json and *.safetensors of a Llama or GPT-2, or a GGUF file
          FILE: JSON lines of (prompt, chosen, rejected), as UltraFeedback, Capybara and HH-RLHF are published
Expected: a page with the accuracy of each group before and after, and the pairs of lowest score; without arguments
          SmolLM2-135M on the pairs of `commonsense`, see docs/results/language.md.
Device:   two CPU cores; on accelerators longer texts, more pairs and checkpoints; see `Config`.

Groups are whether the preferred response is the longer or the shorter one, as language models often learn to prefer
length. DPO trains adapters of the last blocks; states below them are computed once and kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3mjax.attribution import projections
from d3mjax.data import cells
from d3mjax.data.sets import preferences
from d3mjax.data.sets.preferences import Preferences
from d3mjax.debiasing import d3m, selection, sources
from d3mjax.keys import D3M, members
from d3mjax.reports import page, plots
from d3mjax.reports.rows import WGA, Kind, Row, row
from d3mjax.types import Data
from experiments import preference_tasks
from experiments.language import made_language, pair_cells
from experiments.language.pair_cells import SMOLLM2, Learner
from experiments.preference_tasks import LENGTHS, PairTask, split_of
from experiments.study import Study, Unit

CONSTANTS = "jax_use_simplified_jaxpr_constants"
SHOWN = 24
BEFORE, ALL, RANDOM, CHOSEN = "before DPO", "DPO on all pairs", "random removal", "D3M, by selection"
KINDS = {
    BEFORE: Kind("control", controls="what the model preferred before"),
    ALL: Kind("plain"),
    RANDOM: Kind("control", controls="number"),
    CHOSEN: Kind("ours", "validation groups"),
}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("pairs",)
    seeds: int = 1  # divisions of the pairs
    first_seed: int = 10
    model: str = SMOLLM2  # or the file or folder of a Llama or GPT-2
    pairs: str = ""  # a file of JSON lines; those of `commonsense`
    train: int = 1500  # pairs at most
    target: int = 256
    selection: int = 256
    test: int = 512
    top: int = 2  # blocks with adapters
    rank: int = 8  # of adapters
    epochs: int = 3
    projection: int = 512  # dimensions of TRAK
    checkpoints: int = 1  # models that are attributed
    retrains: int = 1  # models behind every number
    shares: tuple[float, ...] = (0.1, 0.3)  # of the training pairs, removed by candidates
    smoke: bool = False


TASK = PairTask(
    "pairs",
    "Preference pairs; the preferred response is the longer one in the first group, the shorter one in the second.",
    preference_tasks.COMMONSENSE.load,
    preference_tasks.COMMONSENSE.encode,
)
PARTS = ("train", "target", "selection", "test")


def parts_of(task: PairTask, config: Config, seed: int) -> list[Preferences]:
    """Training, target, selection and test pairs of different questions, none of two responses of equal length.

    Raises:
      ValueError: a part without pairs of one of the groups.
    """
    whole = preferences.read_jsonl(config.pairs, drop_unusable=True) if config.pairs else task.load()
    pairs = preferences.take(whole, np.flatnonzero(preferences.longer(whole) >= 0))
    divided = preferences.divide(pairs, seed, preference_tasks.SHARES)
    sizes = (config.train, config.target, config.selection, config.test)
    parts = [preferences.take(p, np.arange(min(size, len(p.id)))) for p, size in zip(divided, sizes, strict=True)]
    for name, part in zip(PARTS, parts, strict=True):
        counts = np.bincount(preferences.shorter_preferred(part), minlength=2)
        if not counts.all():
            of_groups = dict(zip(LENGTHS, counts.tolist(), strict=True))
            raise ValueError(f"pairs: found {of_groups} in the {name} part, expected some of each; take more pairs")
    return parts


def measure(task: PairTask, config: Config, directory: Path, seed: int, progress: Callable[[int], object]) -> Unit:
    """Accuracies by group before DPO, after DPO on all pairs, and after DPO on those that are kept."""
    parts = parts_of(task, config, seed)
    size = len(parts[0].id)
    lm = made_language.language() if config.smoke else pair_cells.language_model(config.model)
    learner = pair_cells.dpo(lm, size, directory, top=config.top, rank=config.rank, epochs=config.epochs)
    group = preferences.shorter_preferred
    data = Data(*(split_of(part, learner.inputs(part, parts[0]), group(part)) for part in parts))
    progress(1)
    before = np.asarray(data.test.x["reference"])
    right = (before[:, 0] > before[:, 1]) == (data.test.y == 0)
    by_group = [right[data.test.group == g].mean() for g in range(2)]
    with constants_as_arguments():
        result, random = retrained(jax.random.key(seed), config, learner, data)
    progress(1)
    keep = result.weights > 0
    made = {ALL: result.before, RANDOM: random, CHOSEN: result.after}
    tests = {name: np.asarray(evaluation.test).mean(0).tolist() for name, evaluation in made.items()}
    averages = {name: float(np.mean(evaluation.average)) for name, evaluation in made.items()}
    facts: dict[str, Any] = {"test": {BEFORE: by_group, **tests}, "average": {BEFORE: right.mean(), **averages}}
    facts |= {"chosen": result.chosen.name, "removed": 1 - float(keep.mean())}
    facts["lowest"] = shown(parts[0], result.scores)
    arrays = {"id": data.train.id, "group": data.train.group, "score": result.scores, "weight": result.weights}
    return facts, {name: np.asarray(array) for name, array in arrays.items()}


def retrained(key: Any, config: Config, learner: Learner, data: Data) -> tuple[d3m.Debiased, Any]:
    """`d3mjax.debias`, and models without as many random pairs, trained from the same keys as those of ``after``."""
    size = len(data.train.y)
    model = learner.model(learner.shared)
    trainer = learner.trainer(model, size)
    trak_options = d3m.default_options(size)._replace(
        projection=projections.sjlt(config.projection), microbatch=learner.microbatch
    )
    options = d3m.Options(sources.by_trak(trak_options), retrains=config.retrains, shares=config.shares, offsets=False)
    result = d3m.debias(
        key, model, trainer, data, 2, num_steps=learner.steps, checkpoints=config.checkpoints, options=options
    )
    everyone, keep = np.zeros(size, np.int32), result.weights > 0
    drawn = members(key, D3M.DRAW, config.retrains)
    masks = np.stack([selection.drop_random_like(one, keep, everyone, 1) for one in drawn]).astype(np.float32)
    keys = members(key, D3M.REPORT, config.retrains)
    return result, d3m.retrain(keys, model, trainer, data.train, data, masks, 2, learner.steps)


@contextmanager
def constants_as_arguments() -> Iterator[None]:
    """Programs take closed-over arrays, such as the frozen blocks, as arguments.

    As constants of a program they cost minutes of compilation: XLA evaluates what depends on them alone.
    """
    if not hasattr(jax.config, CONSTANTS):  # newer versions of JAX always do so
        yield
        return
    before = getattr(jax.config, CONSTANTS)
    jax.config.update(CONSTANTS, True)
    try:
        yield
    finally:
        jax.config.update(CONSTANTS, before)


def shown(pairs: Preferences, scores: np.ndarray) -> list[dict[str, Any]]:
    """The pairs of lowest score."""
    short = partial(cells.short, length=page.LONGEST)
    shorter = preferences.shorter_preferred(pairs)
    rows = []
    for i in np.argsort(scores)[:SHOWN].tolist():
        sides = (pairs.first[i], pairs.second[i])
        preferred, other = sides if pairs.y[i] == 0 else sides[::-1]
        texts = {"prompt": short(pairs.prompt[i]), "preferred": short(preferred), "other": short(other)}
        rows.append({"line": int(pairs.id[i]) + 1, **texts, "group": LENGTHS[shorter[i]], "score": f"{scores[i]:.1e}"})
    return rows


def describe(task: PairTask, config: Config, units: Sequence[Unit]) -> tuple[list[dict[str, Any]], page.Section]:
    """One row a method, the verdict, and the pairs of lowest score of the first division."""
    facts = [facts for facts, _ in units]
    rows = []
    for name, kind in KINDS.items():
        tests = np.array([f["test"][name] for f in facts])
        values = {WGA: tests.min(1), "average_accuracy": [f["average"][name] for f in facts]}
        values |= {f"accuracy, {group}": tests[:, g] for g, group in enumerate(LENGTHS)}
        removed = [f["removed"] if name in (RANDOM, CHOSEN) else 0.0 for f in facts]
        settings = kind.settings() | ({"chosen": [f["chosen"] for f in facts]} if name == CHOSEN else {})
        of_row = {"role": kind.role, "information": kind.information, "settings": settings}
        rows.append(row(task.name, name, values | {"removed": removed}, **of_row))
    text = (
        f"{task.about} DPO of adapters (rank {config.rank}) of the last {config.top} blocks of {config.model}. Groups "
        "of the targets and the selection pairs are used, none of the training pairs. Ids (lines of the file, from 0), "
        "scores and weights of the training pairs: units/*.npz."
    )
    bars = {name: [np.array(f["test"][name]) for f in facts] for name in KINDS}
    figures = {"Accuracy on the preferred response by group.": plots.bar_groups(bars, LENGTHS)}
    caption = "Training pairs of lowest score (first division)."
    return rows, page.Section(text, figures, findings(rows), examples={caption: facts[0]["lowest"]})


def findings(rows: Sequence[Row]) -> list[str]:
    """What removal does to the worst group and the average, beside random removal of as many."""
    of = {row["method"]: row["metrics"] for row in rows}
    percent = lambda name, metric: f"{100 * of[name][metric]['mean']:.1f} %"
    both = lambda metric: f"{percent(ALL, metric)} to {percent(CHOSEN, metric)} ({percent(RANDOM, metric)}"
    return [
        f"Removal of {percent(CHOSEN, 'removed')} of the pairs changes the accuracy of the worst group from "
        f"{both(WGA)} for random removal of as many), that of all pairs from {both('average_accuracy')}).",
        f"Before DPO the model has {percent(BEFORE, WGA)} and {percent(BEFORE, 'average_accuracy')}.",
    ]


def smoke(config: Config) -> Config:
    """Few pairs."""
    sizes = {"train": 40, "target": 16, "selection": 16, "test": 20}
    return replace(config, **sizes, rank=2, epochs=1, projection=16, shares=(0.2,))


STUDY = Study(
    "language",
    claim="Without the pairs of lowest alignment DPO does better on the group of pairs with the highest loss than on "
    "all pairs, and than without as many random pairs.",
    config=Config(),
    tasks={TASK.name: TASK},
    prepare=lambda task, config, results: partial(measure, task, config, results / "states"),
    describe=describe,
    minutes=45,
    smoke=smoke,
    small=preference_tasks.small,
    models=lambda config: 2,
)
