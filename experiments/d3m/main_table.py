"""The main table: D3M beside every method and control that people compare with, all tuned with one budget.

Claim:    without training groups, D3M closes the gap between plain training and the best tuned method that is given
          them (SUBG, RWG or GroupDRO), and no control that removes as many examples does.
Command:  python -m experiments.main_table            (`--config.smoke` takes seconds)
Expected: the tables in experiments/README.md; gap closed = (worst group - ERM) / (best of SUBG, RWG, GroupDRO - ERM).
Device:   two CPU cores; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import gradients, outputs, projections, trak
from d3mjax.debiasing import baselines, selection
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, summary
from d3mjax.runtime import hosts, runs
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, sampling
from d3mjax.types import Data
from experiments import study
from experiments.d3m import d3m, d3m_report, engine, head_fits
from experiments.d3m import tuned_methods as tuning
from experiments.tasks import TASKS, Task

TUNED = ("ERM, tuned without groups", "ERM, tuned with groups")
YARDSTICKS = ("SUBG", "RWG", "GroupDRO")
CONTROLS = {
    "highest loss removed": Kind("control", controls="score"),
    "lowest loss removed": Kind("control", controls="score"),
    "highest self-influence removed": Kind("control", controls="score"),
    "majority-random removal": Kind("control", "training groups", "group balance"),
}
"""Controls of this table beside those of `d3m`; all remove as many examples as D3M's rule."""


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("adult", "patch")
    seeds: int = 5
    first_seed: int = 10
    retrains: int = 5  # models behind every number of one seed, and as many others behind every choice
    budget: int = 10  # settings that each method may try, as many as D3M tries numbers of examples to remove
    source: engine.Trak = field(default_factory=engine.Trak)  # of D3M's group columns, and of self-influence
    others: tuple[float, ...] = d3m.OTHERS  # dampings that D3M may take instead
    smoke: bool = False


def measure(
    task: Task, config: Config, programs: dict[str, Any], seed: int, progress: Callable[[int], object]
) -> study.Unit:
    """One data seed: what `d3m.debias` measures, then the other controls and every tuned method beside it."""
    same = d3m.Config(retrains=config.retrains, source=config.source, others=config.others, smoke=config.smoke)
    facts, arrays = d3m.debias(task, same, programs["d3m"], seed, progress)
    data, root = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    here = hosts.place(data, hosts.local_mesh())  # once for all programs
    select, final = (
        ensemble.model_keys(jax.random.fold_in(root, family), jnp.arange(config.retrains))
        for family in (d3m.SELECT, d3m.REPORT)
    )
    draw = jax.random.fold_in(root, d3m.DRAW)
    candidates = tuning.settings(task, config.budget)

    checkpoints = ensemble.model_keys(jax.random.fold_in(root, d3m.COLUMNS), jnp.arange(config.source.models))
    quantities = jax.device_get(programs["rank"](here, checkpoints))
    keep = controls(task, data, quantities, int((~arrays["kept"]).sum()), draw, config.retrains)
    for name, rows in keep.items():
        results = programs["d3m"].fit(here.train, here, final, np.asarray(rows, np.float32))
        store(facts, arrays, name, results, float(1 - np.mean(rows)))

    facts["tuned"] = {}
    for name, method in programs["methods"].items():
        outcome = tuning.tuned(method, data, draw, select, final, candidates)
        note(facts, arrays, name, outcome, method.uses)
        progress(1)
    bases = [(keys, programs["heads"].base(data, keys, candidates[0])) for keys in (select, final)]
    for name, method in head_fits.methods(task).items():
        outcome = head_fits.tuned(programs["heads"], method, data, bases, candidates)
        note(facts, arrays, name, outcome, ("inverse_strength",))
        progress(1)
    return facts, arrays


def make_rank(task: Task, source: engine.Trak) -> Callable:
    """``rank(data, keys [c]) -> (loss [n], self-influence [n])`` of train examples, means over checkpoints."""
    model, run = task.network(), task.trainer(task.steps, sampling.shuffled())
    options = trak.Options(projections.sjlt(source.size), source.damping, source.microbatch, factor=gradients.no_factor)

    @jax.jit
    def rank(data: Data, keys):
        def one(data, key):
            state = run.init(jax.random.fold_in(key, 0), data.train.x[:1])
            state, _ = run.run(state, data.train, jnp.ones(data.train.y.shape[0]), task.steps)
            stacked = jax.tree.map(lambda a: a[None], state.variables)
            kernel, _ = trak.self_influence(key, model, stacked, data.train, options=options)
            factor = jax.nn.sigmoid(-outputs.soft_margins(model, state.variables, data.train))
            return outputs.losses(model, state.variables, data.train), kernel, factor

        losses, kernel, factor = ensemble.map_models(
            one, width=models_at_once(), mesh=hosts.local_mesh(), shared=(data,)
        )(keys)
        return losses.mean(0), kernel.mean(0) * factor.mean(0)

    return rank


def controls(task: Task, data: Data, quantities, k: int, key, runs: int) -> dict[str, Any]:
    """Keep masks ``[runs n]`` of `CONTROLS`, each removing ``k``; ``quantities``: training loss and self-influence."""
    losses, influence = quantities
    keys = ensemble.model_keys(key, jnp.arange(runs))
    group, num_groups = jnp.asarray(data.train.group), len(task.group_names)
    ranked = [selection.drop_lowest(values, k) for values in (-losses, losses, -influence)]
    drawn = jax.vmap(lambda at: baselines.drop_majority(at, group, num_groups, k))(keys)
    return {name: np.broadcast_to(m, (runs, len(group))) for name, m in zip(CONTROLS, (*ranked, drawn), strict=True)}


def store(facts: dict, arrays: dict, name: str, results: engine.Evaluation, removed: float | None) -> None:
    """Put one method's models beside those of `d3m.debias`, in its place if it has been there untuned."""
    arrays[f"test/{name}"], arrays[f"average/{name}"] = np.asarray(results.test), np.asarray(results.average)
    facts["removed"][name] = removed


def note(facts: dict, arrays: dict, name: str, outcome: tuning.Outcome, uses: tuple[str, ...]) -> None:
    """`store`, and the setting that was chosen."""
    store(facts, arrays, name, outcome.judged.evaluation, outcome.removed)
    chosen = {use: getattr(outcome.setting, use) for use in uses}
    # JSON has no NaN: no precision where there was no error.
    notes = {key: float(np.nan_to_num(np.mean(value))) for key, value in outcome.judged.notes.items()}
    facts["tuned"][name] = {**chosen, "selection_score": outcome.score, **notes}


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a method with the gap it closes, and the accuracy of every group under the main ones."""
    tuned = found[0][0]["tuned"]
    known = {name: kind_of(task, name) for name in tuned}
    names = {n: k for n, k in {**d3m_report.METHODS, **CONTROLS, **known}.items() if f"test/{n}" in found[0][1]}
    budget = (len(d3m.TRIED) + 2) * (1 + len(config.others))
    ordered = {n: k for level in runs.INFORMATION for n, k in names.items() if k.information == level}
    rows = with_gap([dict(row) for row in d3m_report.rows_of(task.name, found, methods=ordered)])
    for row in rows:
        if row["method"] in tuned:
            seeds = [facts["tuned"][row["method"]] for facts, _ in found]
            row["settings"] |= {"budget": config.budget, "chosen": seeds}
        elif row["method"] in found[0][0]["chosen"]:
            row["settings"] |= {"budget": budget, "chosen": [facts["chosen"][row["method"]] for facts, _ in found]}
    bars = {n: [a[f"test/{n}"].mean(0) for _, a in found] for n in ("ERM", "D3M, by selection", *YARDSTICKS)}
    text = (
        f"{task.about} Each tuned method tried {config.budget} settings, the same for all; without groups the worst "
        "class of the selection split decides, with groups its worst group. Gap closed is the gain in worst-group "
        "accuracy over ERM, divided by that of the best of SUBG, RWG and GroupDRO. ERM, removals and D3M use the "
        "default recipe. A star marks a method that fits a model on validation groups."
    )
    figures = {"Test accuracy of every group.": plots.bar_groups(bars, task.group_names)}
    return rows, Section(text, figures)


def kind_of(task: Task, name: str) -> Kind:
    """Role of a tuned method, and the groups that it was given."""
    if name in d3m_report.METHODS:
        return d3m_report.METHODS[name]
    networks, heads = tuning.methods(task, hosts.local_mesh()), head_fits.methods(task)
    information = (networks if name in networks else heads)[name].information
    if name in TUNED:
        return Kind("control", information, "tuning")
    return Kind("yardstick" if information == "training groups" else "rival", information)


def with_gap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to each row ``(WGA_s - ERM_s) / (best - ERM)`` of every seed s; the divisor is of means over seeds."""
    accuracy = {row["method"]: row["metrics"]["worst_group_accuracy"] for row in rows}
    erm = accuracy["ERM"]
    gap = max(accuracy[name]["mean"] for name in YARDSTICKS) - erm["mean"]
    for row in rows:
        pairs = zip(accuracy[row["method"]]["per_seed"], erm["per_seed"], strict=True)
        closed = [(own - base) / gap if gap > 0 else float("nan") for own, base in pairs]
        row["metrics"]["gap_closed"] = summary(closed)
    return rows


def prepare(task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    task, devices = replace(task, steps=50) if config.smoke else task, hosts.local_mesh()
    programs = {
        "d3m": engine.make_programs(task, devices, config.source, others=config.others),
        "rank": make_rank(task, config.source),
        "methods": tuning.methods(task, devices),
        "heads": head_fits.make_programs(task, devices),
    }
    return partial(measure, task, config, programs)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/main_table/<run>``; rerun to resume."""
    if config.smoke:
        config = replace(config, seeds=1, retrains=2, budget=2, source=engine.SMOKE[engine.Trak])
    return study.run_experiment(
        "main_table", config, TASKS, prepare, describe, models=config.source.models + 13, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
