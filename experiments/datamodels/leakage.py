"""Leakage: near-duplicates of training examples among the targets hang on one training example.

Claim:    most originals have the largest weight of their copy, once weights are taken relative to what an example is
          worth to all targets; and targets with a copy in the training set come out far above chance.
Command:  python -m experiments.leakage        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; a bank of models a task and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from experiments import study
from experiments.datamodels import bank_tasks
from experiments.tasks import LDS_TASKS, Task

# Where an example has few others like it, it is seen to matter to its copy.
SMALL_SUBSETS = bank_tasks.Recipe(models=8000, min_share=0.1, max_share=0.3)


PIXELS = "nearest by pixels"


@dataclass(frozen=True)
class Config(bank_tasks.Config):
    """What determines the numbers."""

    bank: bank_tasks.Recipe = field(default_factory=lambda: SMALL_SUBSETS)
    shown: int = 9  # suspects on the page


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    make = bank_tasks.make_datamodels(task, config.bank, banks, smoke=config.smoke)
    return partial(measure, task, config, make)


def measure(task: Task, config: Config, make: Callable, seed: int, progress: Callable) -> study.Unit:
    """Scores of every target, the planted ones last, and how well each finds what was planted."""
    found = make(seed, progress)
    data, tau = found.data, found.linear.weight
    planted = np.arange(len(tau)) >= len(tau) - len(found.source)
    specific = effects.specific(tau)
    raw, leak = effects.leakage(tau), effects.leakage(specific)
    cosine = bank_tasks.cosines(data.target, data.train)
    rankings = {
        "lead of the largest specific weight": (leak.lead, specific),
        "largest specific weight": (leak.weight, specific),
        "largest weight": (raw.weight, tau),
        "share of the largest weight": (raw.share, tau),
        PIXELS: (cosine.max(1), cosine),
    }
    facts, arrays = dict(found.facts), {"planted": planted, "id": data.target.id}
    for name, (score, similarity) in rankings.items():
        similar, _ = effects.neighbours(similarity[planted], np.arange(len(data.train.y)), num=5)
        hits = np.asarray(similar.id) == found.source[:, None]
        result = effects.retrieval(np.asarray(score), planted)
        facts[name] = {
            "average precision": float(result.average_precision),
            "precision at the number planted": float(result.precision[planted.sum() - 1]),
            "source has the largest weight": hits[:, 0].mean(),
            "source among the five largest": hits.any(1).mean(),
        }
        arrays |= {f"recall/{name}": result.recall, f"precision/{name}": result.precision}
    if task.image:
        first = np.argsort(-np.asarray(leak.lead))[: config.shown]
        pairs = np.stack([data.target.x[first], data.train.x[np.asarray(leak.example)[first]]], 1)
        arrays |= {"pairs": pairs.reshape(-1, *task.image), "of_planted": planted[first]}
    return facts, jax.device_get(arrays)


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a ranking, precision against recall, and the first suspects beside their training examples."""
    names = [name for name, value in found[0][0].items() if isinstance(value, dict)]
    rows = [
        row(
            task.name,
            name,
            {m: [facts[name][m] for facts, _ in found] for m in found[0][0][name]},
            role="rival" if name == PIXELS else "ours",
        )
        for name in names
    ]
    arrays = found[0][1]
    looked = np.unique(np.geomspace(1, len(arrays["planted"]), 25).astype(int))
    recall = {n: (looked, np.stack([a[f"recall/{n}"][looked - 1] for _, a in found])) for n in names}
    figures = {
        "Planted near-duplicates found against the number of targets looked at.": plots.curves(
            recall, xlabel="targets looked at", ylabel="share of the planted found", ticks=(1, 10, 100, looked[-1])
        )
    }
    if "pairs" in arrays:
        titles = [t for p in arrays["of_planted"] for t in ("planted" if p else "target", "train")]
        figures["Targets of largest lead, each beside the training example that has it (first seed)."] = (
            plots.image_grid(arrays["pairs"], titles, columns=6)
        )
    text = (
        f"{task.about} {config.bank.duplicates} noisy copies of training examples, brightness changed by up to a "
        "tenth, were put among the targets: chance has an average precision of their share. Pixels find copies by "
        "construction; datamodels find what the model uses, and rank a copy first only where the model depends on its "
        "original. Specific weights are in units of their training example's root mean square over all targets."
    )
    return rows, Section(text, figures)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/leakage/<run>``; rerun to resume."""
    config = replace(config, seeds=1, bank=bank_tasks.SMOKE) if config.smoke else config
    go = partial(prepare, results / "banks")
    return study.run_experiment(
        "leakage", config, LDS_TASKS, go, describe, models=config.bank.models, results=results, run=run, together=True
    )


if __name__ == "__main__":
    tyro.cli(main)
