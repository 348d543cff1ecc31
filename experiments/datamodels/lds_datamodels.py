"""How well datamodels predict retraining: LDS against the number of models, the subset size, and seeds a mask.

Claim:    LASSO needs a fifth of the models that ridge does; models are better spent on new masks than on new seeds.
Command:  python -m experiments lds_datamodels
Expected: on patch 0.911 ± 0.004 for LASSO and 0.827 ± 0.013 for ridge on 5,000 models, 0.934 and 0.920 on 20,000.
Device:   two CPU cores, 52 minutes; 36,500 trainings a seed and task, which are kept in ``results/banks``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3mjax import keys
from d3mjax.attribution import datamodels
from d3mjax.linalg import lasso
from d3mjax.reports.page import Section
from d3mjax.runtime import bank
from experiments.cifar_tasks import LDS_TASKS
from experiments.datamodels import banks, common, lds
from experiments.datamodels.banks import Subsets
from experiments.study import Unit
from experiments.tasks import Task

ROLES = {"difference of means": "rival", "ridge": "ours", "LASSO": "ours"}  # of every method


@dataclass(frozen=True)
class Config(common.Config):
    """What determines the numbers."""

    models: tuple[int, ...] = (200, 1000, 5000, 20_000)  # on half subsets, one a mask
    swept: int = 2500  # models in each of the two comparisons below
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    repeats: tuple[int, ...] = (1, 2, 4)
    subsets: int = 200  # half subsets held out as truth
    truth_repeats: int = 20  # trainings averaged for each of them
    lambdas: int = 50  # LASSO penalties, and the most steps at each
    lasso_steps: int = 1000


def settings(config: Config) -> list[tuple[Subsets, int]]:
    """Masks, and the number of models; one is swept while the other stays."""
    swept = [(Subsets(0.5), m) for m in config.models]
    swept += [(Subsets(share), config.swept) for share in config.shares]
    swept += [(Subsets(0.5, repeats), config.swept) for repeats in config.repeats]
    return list(dict.fromkeys(swept))


def named(subsets: Subsets, models: int, method: str) -> str:
    """Its name among stored arrays."""
    return f"{subsets.share}/{subsets.repeats}/{models}/{method}"


def ridge(x, y, heldout, options: lasso.Options):
    """Weights ``[t n]`` by ridge, the penalty chosen on the rows ``heldout``."""
    del options
    return datamodels.fit_ridge_heldout(x, y, datamodels.default_lambdas(x), heldout)[0].weight


def sparse(x, y, heldout, options: lasso.Options):
    """Weights ``[t n]`` by LASSO, the penalty chosen on the rows ``heldout``."""
    return datamodels.fit_lasso(x, y, heldout, options=options)[0].weight


METHODS = {
    "difference of means": lambda x, y, *_: datamodels.difference_of_means(x, y),
    "ridge": ridge,
    "LASSO": sparse,
}


@partial(jax.jit, static_argnames="options")
def fits(x, y, heldout, *, options: lasso.Options) -> dict[str, Any]:
    """Weights ``[t n]`` of every method."""
    return {name: fit(x, y, heldout, options) for name, fit in METHODS.items()}


def options(config: Config) -> lasso.Options:
    """Of the LASSO."""
    steps = {"max_steps": config.lasso_steps, "step_dtype": common.step_dtype(), "tolerance": 1e-4}
    return lasso.Options(num_lambdas=config.lambdas, **steps)


def heldout(models: int, repeats: int = 1) -> np.ndarray:
    """Rows that choose penalties, whole sets of the trainings of a mask."""
    return np.arange(min(models // 8 // repeats, 1000) * repeats)


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    truth = lds.make_truth(task, config.truth_repeats, results)
    return partial(measure, task, config, truth, banks.make_bank(task, results / "banks", banks.both_margins))


def measure(task: Task, config: Config, truth: Callable, fill: Callable, seed: int, progress: Callable) -> Unit:
    """LDS of every setting and method on one data seed: mean and interval."""
    data, root = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    halves = truth(data, seed, config.subsets, progress)
    facts: dict[str, Any] = {"ceiling": lds.ceiling(halves.margins)}
    arrays = {}
    for subsets, models in settings(config):
        filled, _ = fill(data, seed, subsets.key(root), subsets.design(len(data.train.y)), models, progress)
        x, (_, y) = bank.masks(filled), banks.hard_and_soft(bank.outputs(filled))
        rows = heldout(models, subsets.repeats)
        datamodels.check_masks(x, y, num_fit=models - len(rows))
        for method, weight in fits(x, y, rows, options=options(config)).items():
            name, interval_key = named(subsets, models, method), jax.random.fold_in(root, keys.LdsDatamodels.INTERVALS)
            facts[name], arrays[name] = lds.score(interval_key, weight, halves)
    return facts, arrays


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a setting and method, one for the ceiling, and LDS curves."""
    facts, rows = [facts for facts, _ in units], []
    for subsets, models in settings(config):
        count = f"{models // subsets.repeats:,} masks x {subsets.repeats}" if subsets.repeats > 1 else f"{models:,}"
        for method, role in ROLES.items():
            scores = [fact[named(subsets, models, method)] for fact in facts]
            name = f"{method}, {count} models on {subsets.share:.0%} subsets"
            rows.append(lds.row(task.name, name, scores, role, {**subsets._asdict(), "models": models}))
    rows.append(lds.ceiling_row(task.name, {"lds": [fact["ceiling"] for fact in facts]}))

    def curve(x, ats: list[tuple[Subsets, int]], xlabel: str):
        curves = {method: [named(*at, method) for at in ats] for method in ROLES}
        return lds.curve(x, curves, facts, xlabel)

    half, swept = Subsets(0.5), config.swept
    by_share = [(Subsets(share), swept) for share in config.shares]
    by_repeats = [(Subsets(0.5, repeats), swept) for repeats in config.repeats]
    figures = {
        "LDS against the number of models, on half subsets, one model a mask.": curve(
            config.models, [(half, models) for models in config.models], "models"
        ),
        f"LDS against the share that a subset keeps, {swept:,} models.": curve(config.shares, by_share, "share kept"),
        f"LDS against trainings on each mask, {swept:,} models in all.": curve(
            config.repeats, by_repeats, "trainings a mask"
        ),
    }
    return rows, Section(lds.text(task, config, config.truth_repeats), figures)


STUDY = common.study(
    "lds_datamodels",
    claim="LASSO needs a fifth of the models that ridge does; models are better spent on new masks than on new seeds.",
    config=Config(),
    tasks=LDS_TASKS,
    prepare=prepare,
    describe=describe,
    minutes=52,
    headline=("patch", "LASSO, 20,000 models on 50% subsets", "lds"),
    few={"seeds": 2, "models": (48,), "swept": 48, "shares": (0.5,), "repeats": (1, 2)}
    | {"subsets": 10, "truth_repeats": 2, "lambdas": 6, "lasso_steps": 64},
    models=lambda config: config.subsets * config.truth_repeats + sum(models for _, models in settings(config)),
    together=True,
)
