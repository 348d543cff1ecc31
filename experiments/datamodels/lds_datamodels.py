"""How well datamodels predict retraining: LDS against the number of models, the subset size, and seeds a mask.

Claim:    LASSO needs a fifth of the models that ridge does; models are better spent on new masks than on new seeds.
Command:  python -m experiments.lds_datamodels      (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; 36,500 trainings a seed and task, which are kept in ``results/banks``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax import metrics
from d3mjax.attribution import datamodels, outputs
from d3mjax.linalg import lasso
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.runtime import bank, hosts
from d3mjax.runtime.hosts import models_at_once
from d3mjax.runtime.sweep import shared_sweep
from d3mjax.training import ensemble, masks, sampling
from d3mjax.types import Data
from experiments import study
from experiments.datamodels import bank_tasks, lds_trak
from experiments.tasks import LDS_TASKS, Task

TRUTH, BANKS, INTERVALS = range(200, 203)  # families of keys
METHODS = ("difference of means", "ridge", "LASSO")


class Subsets(NamedTuple):
    """How a bank draws its masks."""

    share: float  # of the training set that each keeps
    repeats: int = 1  # models trained on each


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("patch", "fashion")
    seeds: int = 3
    first_seed: int = 10
    models: tuple[int, ...] = (200, 1000, 5000, 20_000)  # on half subsets, one a mask
    swept: int = 2500  # models in each of the two comparisons below
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    repeats: tuple[int, ...] = (1, 2, 4)
    subsets: int = 200  # half subsets held out as truth
    truth_repeats: int = 20  # trainings averaged for each of them
    lambdas: int = 50  # LASSO penalties, and the most steps at each
    lasso_steps: int = 1000
    smoke: bool = False


def settings(config: Config) -> list[tuple[Subsets, int]]:
    """Masks, and the number of models; one is swept while the other stays."""
    swept = [(Subsets(0.5), m) for m in config.models]
    swept += [(Subsets(share), config.swept) for share in config.shares]
    swept += [(Subsets(0.5, repeats), config.swept) for repeats in config.repeats]
    return list(dict.fromkeys(swept))


def make_bank(task: Task, banks: Path) -> Callable[..., bank.Bank]:
    """``fill(data, seed, subsets, models, progress) -> Bank`` of soft margins; kept under ``banks``, compiled once."""
    model, run = task.network(), task.trainer(task.steps, sampling.shuffled())

    @jax.jit
    def trained(data: Data, keys, chosen):
        def one(data, key, mask):
            state, info = run.run(run.init(key, data.train.x[:1]), data.train, mask.astype(jnp.float32), task.steps)
            return outputs.soft_margins(model, state.variables, data.target), info.loss

        return ensemble.map_models(one, width=models_at_once(), mesh=hosts.local_mesh(), shared=(data,))(keys, chosen)

    def fill(data: Data, seed: int, subsets: Subsets, models: int, progress: Callable) -> bank.Bank:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), BANKS), subsets.repeats)
        n = len(data.train.y)
        keep = int(subsets.share * n)
        draw = jax.jit(lambda ids: masks.fixed_size(jax.random.fold_in(key, 0), ids, n, keep))
        recipe = {**bank_tasks.recipe_of(task), **subsets._asdict()}
        inputs = {"train": data.train, "target": data.target}
        manifest = bank.manifest(key, draw, inputs, recipe, num_targets=len(data.target.y), repeats=subsets.repeats)
        directory = bank_tasks.directory_of(banks, task, seed, manifest)
        here = hosts.place(data, hosts.local_mesh())  # once for all blocks
        train = lambda ids, chosen: trained(here, ensemble.model_keys(jax.random.fold_in(key, 1), ids), chosen)
        return bank.fill(directory, manifest, draw, train, np.arange(models), block=min(250, models), progress=progress)

    return fill


interval = jax.jit(partial(metrics.lds_interval, num_resamples=300))


@partial(jax.jit, static_argnames=("lambdas", "steps"))
def fits(x, y, heldout, *, lambdas: int, steps: int) -> dict[str, Any]:
    """Weights ``[t n]`` of every method; what is chosen is chosen on the rows ``heldout``."""
    ridge, _ = datamodels.fit_ridge_heldout(x, y, datamodels.default_lambdas(x), heldout)
    options = lasso.Options(num_lambdas=lambdas, max_steps=steps, step_dtype=jnp.bfloat16, tolerance=1e-4)
    sparse, _ = datamodels.fit_lasso(x, y, heldout, options=options)
    return dict(zip(METHODS, (datamodels.difference_of_means(x, y), ridge.weight, sparse.weight), strict=True))


def prepare(task: Task, config: Config, banks: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    truth = lds_trak.make_truth(task, config.truth_repeats, sweep=shared_sweep)
    return partial(measure, task, config, {"truth": truth, "bank": make_bank(task, banks)})


def measure(task: Task, config: Config, programs: dict, seed: int, progress: Callable) -> study.Unit:
    """LDS of every setting and method on one data seed: mean and interval."""
    data, key = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    margins = programs["truth"](data, jax.random.fold_in(key, TRUTH), config.subsets, progress)
    truth = jnp.asarray(margins.mean(1))
    held = jnp.arange(config.subsets)
    held = lds_trak.half_subsets(jax.random.fold_in(key, TRUTH), held, len(data.train.y))
    facts: dict[str, Any] = {"ceiling": lds_trak.ceiling(margins)}
    arrays = {}
    for subsets, models in settings(config):
        found = programs["bank"](data, seed, subsets, models, progress)
        heldout = np.arange(min(models // 8 // subsets.repeats, 1000) * subsets.repeats)
        limits = {"lambdas": config.lambdas, "steps": config.lasso_steps}
        weights = fits(bank.masks(found), bank.outputs(found), heldout, **limits)
        for method, weight in weights.items():
            name = named(subsets, models, method)
            predicted = metrics.subset_predictions(weight, held)
            arrays[name] = np.asarray(metrics.spearman(predicted.T, truth.T))
            low_high = interval(jax.random.fold_in(key, INTERVALS), predicted, truth)
            facts[name] = [float(np.nanmean(arrays[name])), *map(float, low_high)]
    return facts, arrays


def named(subsets: Subsets, models: int, method: str) -> str:
    """What the stored arrays call it."""
    return f"{subsets.share}/{subsets.repeats}/{models}/{method}"


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows and what the page shows of a task; bands are standard deviations over data seeds."""
    facts, rows = [facts for facts, _ in found], []
    for subsets, models in settings(config):
        for method in METHODS:
            values = [fact[named(subsets, models, method)] for fact in facts]
            setting = {**subsets._asdict(), "models": models, "intervals": [v[1:] for v in values]}
            masks = f"{models // subsets.repeats:,} masks x {subsets.repeats}" if subsets.repeats > 1 else f"{models:,}"
            name = f"{method}, {masks} models on {subsets.share:.0%} subsets"
            rows.append(row(task.name, name, {"lds": [v[0] for v in values]}, role="ours", settings=setting))
    ceiling = {"lds": [fact["ceiling"] for fact in facts]}
    rows.append(row(task.name, "ceiling set by retraining noise", ceiling, role="ceiling"))

    def lines(x, ats):
        value = lambda at, method: [fact[named(at[0], at[1], method)][0] for fact in facts]
        return {method: (x, np.array([value(at, method) for at in ats]).T) for method in METHODS}

    draw = partial(plots.curves, ylabel="LDS (mean over targets)")
    half, swept = Subsets(0.5), config.swept
    figures = {
        "LDS against the number of models, on half subsets, one model a mask.": draw(
            lines(config.models, [(half, m) for m in config.models]), xlabel="models"
        ),
        f"LDS against the share that a subset keeps, {swept:,} models.": draw(
            lines(config.shares, [(Subsets(share), swept) for share in config.shares]), xlabel="share kept"
        ),
        f"LDS against trainings on each mask, {swept:,} models in all.": draw(
            lines(config.repeats, [(Subsets(0.5, r), swept) for r in config.repeats]), xlabel="trainings a mask"
        ),
    }
    text = (
        f"{task.about} n = {2000:,} training examples; truth: {config.subsets} half subsets, {config.truth_repeats} "
        "trainings each, none of them used to fit."
    )
    return rows, Section(text, figures)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all settings, print a table a task, and write ``results/lds_datamodels/<run>``; rerun to resume."""
    if config.smoke:
        small = {"models": (48,), "swept": 48, "shares": (0.5,), "repeats": (1, 2), "lambdas": 6, "lasso_steps": 64}
        config = replace(config, seeds=2, subsets=10, truth_repeats=2, **small)
    models = config.subsets * config.truth_repeats + sum(models for _, models in settings(config))
    with_banks = partial(prepare, banks=results / "banks")
    return study.run_experiment(
        "lds_datamodels",
        config,
        LDS_TASKS,
        with_banks,
        describe,
        models=models,
        results=results,
        run=run,
        together=True,
    )


if __name__ == "__main__":
    tyro.cli(main)
