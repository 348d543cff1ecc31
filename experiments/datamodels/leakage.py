"""Leakage: the output of a target with a near-duplicate in the training set depends on that one training example.

Claim:    most originals have the largest weight of their copy, once weights are taken relative to what an example is
          worth to all targets; and targets with a copy in the training set come out far above chance.
Command:  python -m experiments leakage
Expected: on fashion 0.850 ± 0.053 of the copies have their original as largest specific weight.
Device:   two CPU cores, 37 minutes: a bank of models a task and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from experiments.datamodels import banks, common
from experiments.study import Unit
from experiments.tasks import Task

# An example matters to its copy where it has few others like it.
SMALL_SUBSETS = banks.Recipe(models=8000, min_share=0.1, max_share=0.3)
KINDS = {
    "lead of the largest specific weight": Kind("ours"),
    "largest specific weight": Kind("ours"),
    "largest weight": Kind("rival"),  # Ilyas et al., 2022
    "share of the largest weight": Kind("rival"),
    "nearest by pixels": Kind("yardstick"),  # finds copies by construction
}


@dataclass(frozen=True)
class Config(banks.Config):
    """What determines the numbers."""

    bank: banks.Recipe = field(default_factory=lambda: SMALL_SUBSETS)
    shown: int = 9  # suspects on the page


def measure(task: Task, config: Config, fitted: Callable, _retrain, seed: int, progress: Callable) -> Unit:
    """Scores of every target, the planted ones last, and how well each finds what was planted."""
    bank = fitted(seed, progress)
    data, tau = bank.data, bank.linear.weight
    planted = np.arange(len(tau)) >= len(tau) - len(bank.source)
    specific, cosine = effects.specific(tau), banks.cosines(data.target, data.train)
    raw, leak = effects.leakage(tau), effects.leakage(specific)
    rankings = ((leak.lead, specific), (leak.weight, specific), (raw.weight, tau), (raw.share, tau))
    facts, arrays = dict(bank.facts), {"planted": planted, "id": data.target.id}
    for name, (score, similarity) in zip(KINDS, (*rankings, (cosine.max(1), cosine)), strict=True):
        similar, _ = effects.neighbours(similarity[planted], np.arange(len(data.train.y)), num=5)
        hits = np.asarray(similar.id) == bank.source[:, None]
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


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a ranking, precision against recall, and the first suspects beside their training examples."""
    rows, arrays = common.rows_of(task, [facts for facts, _ in units], KINDS), units[0][1]
    looked = np.unique(np.geomspace(1, len(arrays["planted"]), 25).astype(int))
    recall = {n: (looked, np.stack([a[f"recall/{n}"][looked - 1] for _, a in units])) for n in KINDS}
    labels = {"xlabel": "targets looked at", "ylabel": "share of the planted found"}
    figure = plots.curves(recall, **labels, ticks=(1, 10, 100, int(looked[-1])))
    figures = {"Planted near-duplicates found against the number of targets looked at.": figure}
    if "pairs" in arrays:
        titles = [t for p in arrays["of_planted"] for t in ("planted" if p else "target", "train")]
        caption = "Targets of largest lead, each beside the training example that has it (first seed)."
        figures[caption] = plots.image_grid(arrays["pairs"], titles, columns=6)
    text = (
        f"{task.about} {config.bank.duplicates} noisy copies of training examples, brightness changed by up to a "
        "tenth, were put among the targets: chance has an average precision of their share. Pixels find copies by "
        "construction; datamodels find what the model uses, and rank a copy first only where the model depends on its "
        "original. Specific weights are in units of their training example's root mean square over all targets."
    )
    return rows, Section(text, figures)


STUDY = banks.study(
    "leakage",
    measure,
    describe,
    claim="Most originals have the largest weight of their copy, relative to what an example is worth to all targets.",
    config=Config(),
    minutes=37,
    headline=("fashion", "lead of the largest specific weight", "source has the largest weight"),
)
