"""Influence on counterfactual bias: which training examples teach it, and what retraining without them shows.

Claim:    influence functions find few examples whose removal takes away most of the bias, say how many by themselves,
          and predict what retraining shows; one step on the whole network comes close to retraining. Chosen in rounds,
          on networks edited so far, they take away more than chosen at once.
Command:  python -m experiments.influence_on_bias        (`--config.smoke` takes seconds)
Expected: the tables in experiments/README.md, by `--config.tasks` of one task each; that of the coloured images is
          from before TRAK and the rounds were added.
Device:   two CPU cores, about two minutes a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import gradients, influence, outputs, projections, trak
from d3mjax.debiasing import selection
from d3mjax.reports import page as report
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, sampling
from d3mjax.types import Model, Pairs, Split
from d3mjax.unlearning import edits
from experiments import bias_tasks, study
from experiments.bias_tasks import BiasTask

CHECKPOINTS, RETRAIN, DRAW, PROJECTIONS = range(4)  # families of keys
MEASURES = (edits.counterfactual_bias, edits.signed_bias)
ADULT = bias_tasks.adult_task("sex", "Male", "Female", train=4000, steps=200)
FASHION = bias_tasks.fashion_task(0.95, train=4000, steps=1000)
TASKS = {task.name: task for task in (ADULT, FASHION)}
SIZES = {ADULT.name: (25, 50, 100, 400), FASHION.name: (100, 400, 800)}
ROUNDS = {ADULT.name: (10, 7), FASHION.name: (200, 5)}
"""How many examples a round removes, and after how many rounds, from none on, one step is looked at."""


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 5
    first_seed: int = 10
    checkpoints: int = 3
    retrains: int = 3
    damping: float = 0.01
    max_steps: int = 300  # of conjugate gradients
    size: int = 256  # TRAK's projected dimension
    smoke: bool = False


def make_programs(task: BiasTask, config: Config) -> dict[str, Callable]:
    """``train``, ``attribute`` and ``edit``, each of many models at once."""
    base, model = task.task, task.task.network()
    run = base.trainer(base.steps, sampling.shuffled())
    last = f"Dense_{len(base.hidden)}"
    options = influence.Options(
        damping=config.damping, inverse=influence.by_cg(rtol=1e-3, max_steps=config.max_steps), microbatch=1000
    )
    kinds = {"whole network": options, "last layer": options._replace(keep=lambda path: last in path)}
    mapped = lambda one: partial(ensemble.map_models, one, width=models_at_once(), mesh=hosts.local_mesh())()

    @jax.jit
    def train(split: Split, test: Split, report: Pairs, keys, weights):
        def one(key, weight):
            state, info = run.run(run.init(key, split.x[:1]), split, weight, base.steps)
            right = outputs.hard_margins(model, state.variables, test, microbatch=4096) > 0
            return state.variables, edits.measure(model, state.variables, report), right.mean(), info.loss

        return mapped(one)(keys, weights)

    @jax.jit
    def attribute(split: Split, reference: Pairs, keys, variables):
        def one(key, variables):
            found = {"TRAK": by_trak(key, model, variables, split, reference, size=config.size)}
            residual = {}
            for kind, chosen in kinds.items():
                grads = [edits.bias_gradient(model, m, variables, reference, keep=chosen.keep) for m in MEASURES]
                grads = jax.tree.map(lambda *a: jnp.stack(a), *grads)
                found[kind], info = influence.along(model, variables, split, grads, options=chosen)
                residual[kind] = info.residual.max()
            return found, residual, edits.signed_bias(model, variables, reference)

        return mapped(one)(keys, variables)

    @jax.jit
    def edit(split: Split, report: Pairs, test: Split, variables, rows):
        def one(variables):
            found = {}
            for kind, chosen in kinds.items():
                problem = influence.problem_of(model, variables, split, options=chosen)
                after = edits.merged(variables, edits.remove(problem, chosen.inverse, rows).params)
                right = outputs.hard_margins(model, after, test, microbatch=4096) > 0
                found[kind] = edits.measure(model, after, report), right.mean()
            return found

        return mapped(one)(variables)

    size, count = ROUNDS[task.name] if not config.smoke else (10, 3)

    @partial(jax.jit, static_argnames="anew")
    def in_rounds(split: Split, reference: Pairs, choosing: Pairs, variables, scores, *, anew: bool):
        """Rows removed ``[r n]`` before each round, and what one step without them leaves of both biases ``[r]``.

        The highest scores go first; ``anew``: not those given, but influence on the bias of the edited networks.
        """

        def advance(removed, _):
            def one(variables):
                problem = influence.problem_of(model, variables, split, options=options)
                after = edits.merged(variables, edits.remove(problem, options.inverse, removed).params)
                left = edits.measure(model, after, choosing)
                if not anew:
                    return scores, left
                place = (model, edits.counterfactual_bias, after, split, reference)
                return edits.influence_on(*place, weights=1.0 - removed, options=options)[0], left

            on_bias, left = mapped(one)(variables)
            _, highest = jax.lax.top_k(jnp.where(removed, -jnp.inf, on_bias.mean(0)), size)
            return removed.at[highest].set(True), (removed, left.absolute.mean(), left.signed.mean())

        return jax.lax.scan(advance, jnp.zeros(len(split.y), bool), None, length=count)[1]

    return {"train": train, "attribute": attribute, "edit": edit, "in rounds": in_rounds}


def probability_output(model: Model, variables) -> Callable:
    """The softmax probability of the true class, as TRAK takes outputs."""
    margin = gradients.margin_output(model, variables)
    return lambda params, example: jax.nn.sigmoid(margin(params, example))


def by_trak(key, model: Model, variables, train: Split, pairs: Pairs, *, size: int) -> jax.Array:
    """``d measure / d w_i`` of the absolute and the signed bias by TRAK, ``[n 2]``: differences of means over sides."""
    favoured = edits.differences(model, variables, pairs) >= 0
    count = len(pairs.y)
    # Each bias is the mean of the sides it counts up, less that of the others; the absolute one swaps some pairs.
    sides = [jnp.where(favoured, 0, 1), jnp.where(favoured, 1, 0), jnp.full(count, 2), jnp.full(count, 3)]
    x, y = jnp.concatenate([pairs.x, pairs.flipped] * 2), jnp.tile(jnp.asarray(pairs.y), 4)
    target = Split(x, y, jnp.concatenate(sides), jnp.arange(4 * count))
    options = trak.Options(projections.sjlt(size), target_output=probability_output, microbatch=40)
    kernel, factor, _ = trak.group_columns(key, model, variables, train, target, 4, options=options)
    columns = kernel * factor[:, None]
    return columns[:, ::2] - columns[:, 1::2]


def removals(task: BiasTask, split: Split, scores: dict[str, np.ndarray], few: int, sizes, key) -> dict[str, Any]:
    """Keep masks by name: highest influence by either kind, and controls; ``few`` is the self-chosen number."""
    group, everybody = np.asarray(split.group), np.zeros(len(split.y), np.int32)
    keep = {}
    for k in sizes:
        for kind, on_bias in scores.items():
            keep[f"{kind}, {k} removed"] = selection.drop_lowest(-on_bias, k)
        top = selection.drop_lowest(-scores["whole network"], k)
        keep[f"reversed, {k} removed"] = selection.drop_lowest(scores["whole network"], k)
        keep[f"random, {k} removed"] = selection.drop_random_like(key, top, everybody, 1)
        matched = selection.drop_random_like(key, top, group, len(task.task.group_names))
        keep[f"group-matched random *, {k} removed"] = matched
    keep["whole network, self-chosen"] = selection.drop_lowest(-scores["whole network"], few)
    return keep


def measure(task: BiasTask, config: Config, programs: dict, seed: int, progress: Callable) -> study.Unit:
    """Every removal on one draw: bias on the report pairs after retraining, and after one step instead."""
    loaded, root = task.load(seed, smoke=config.smoke), jax.random.key(seed)
    split, test, pairs = loaded.data.train, loaded.data.test, loaded.pairs
    n, runs = len(split.y), config.retrains
    keys = lambda family, count: ensemble.model_keys(jax.random.fold_in(root, family), jnp.arange(count))

    def train(keep: dict[str, Any]) -> dict[str, Any]:
        rows = np.concatenate([np.broadcast_to(rows, (runs, n)) for rows in keep.values()]).astype(np.float32)
        each = jnp.tile(keys(RETRAIN, runs), len(keep))
        _, bias, accuracy, losses = programs["train"](split, test, pairs.report, each, rows)
        ensemble.check_losses(jax.device_get(losses), np.arange(len(rows)))
        mean = lambda a: np.asarray(a).reshape(len(keep), runs).mean(1)
        figures = {"bias": bias.absolute, "signed_bias": bias.signed, "flip_rate": bias.flips, "accuracy": accuracy}
        figures = {name: mean(value) for name, value in figures.items()}
        return {name: {m: float(v[i]) for m, v in figures.items()} for i, name in enumerate(keep)}

    many = np.ones((config.checkpoints, n), np.float32)
    variables, *_ = programs["train"](split, test, pairs.report, keys(CHECKPOINTS, config.checkpoints), many)
    projected = keys(PROJECTIONS, config.checkpoints)
    found, residual, signed = jax.device_get(programs["attribute"](split, pairs.reference, projected, variables))
    columns = {kind: columns.mean(0) for kind, columns in found.items()}
    on_signed = columns["whole network"][:, 1]
    few = int(edits.removal_count(columns["whole network"][:, 0], on_signed, jnp.asarray(signed.mean())))
    progress(config.checkpoints)

    scores = {kind: on[:, 0] for kind, on in columns.items()}
    sizes = SIZES[task.name] if not config.smoke else (20,)
    keep = removals(task, split, scores, few, sizes, jax.random.fold_in(root, DRAW))
    told = {name: -on_signed[~np.asarray(rows)].sum() for name, rows in keep.items() if name.startswith("whole")}
    place = (split, pairs.reference, pairs.selection, variables, jnp.asarray(scores["whole network"]))
    for name, anew in (("number by one step", False), ("in rounds", True)):
        removed, left, signed_left = jax.device_get(programs["in rounds"](*place, anew=anew))
        keep[f"whole network, {name}"] = ~removed[left.argmin()]
        told[f"whole network, {name}"] = signed_left[left.argmin()] - signed_left[0]
    facts = train({"no removal": np.ones(n), **keep})
    base = facts["no removal"]
    for name, rows in keep.items():
        facts[name]["removed"] = float(np.mean(~np.asarray(rows)))
        if name in told:
            facts[name]["predicted_change"] = float(told[name])
            facts[name]["signed_change"] = facts[name]["signed_bias"] - base["signed_bias"]
    rows = ~np.asarray(keep["whole network, self-chosen"])
    for kind, (bias, accuracy) in jax.device_get(programs["edit"](split, pairs.report, test, variables, rows)).items():
        figures = {"bias": bias.absolute, "signed_bias": bias.signed, "flip_rate": bias.flips, "accuracy": accuracy}
        facts[f"self-chosen, one step on the {kind}"] = {name: float(value.mean()) for name, value in figures.items()}
    facts["residual"] = {kind: float(each.max()) for kind, each in residual.items()}
    return facts, {"id": np.asarray(split.id), **{f"on_bias/{k}": np.asarray(v) for k, v in scores.items()}}


def kind_of(config: Config, task: BiasTask, name: str) -> tuple[Kind, dict[str, str]]:
    """Role of a removal or edit, and the settings that show it."""
    sizes = SIZES[task.name] if not config.smoke else (20,)
    kinds = {"no removal": Kind("plain")}
    for k in sizes:
        kinds |= {
            f"reversed, {k} removed": Kind("control", controls="sign"),
            f"random, {k} removed": Kind("control", controls="number"),
            f"group-matched random *, {k} removed": Kind("control", "training groups", "group balance"),
        }
    kind = kinds.get(name, Kind("ours"))
    edited = name.startswith("self-chosen, one step on the ")
    return kind, kind.settings() | ({"edits": "a trained network"} if edited else {})


def describe(task: BiasTask, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], report.Section]:
    """One row a removal; predicted against actual change of the signed bias."""
    facts = [facts for facts, _ in found]
    names = [name for name in facts[0] if name != "residual"]
    rows = []
    for name in names:
        kind, settings = kind_of(config, task, name)
        values = {m: [f[name][m] for f in facts] for m in facts[0][name]}
        rows.append(row(task.name, name, values, role=kind.role, information=kind.information, settings=settings))
    told = [n for n in names if "predicted_change" in facts[0][n]]
    points = {n: ([f[n]["predicted_change"] for f in facts], [f[n]["signed_change"] for f in facts]) for n in told}
    text = (
        f"{task.task.about} Influence on the bias of {config.checkpoints} trained networks, by the GGN; the highest "
        f"are removed and {config.retrains} networks trained without them. Self-chosen: as many as bring the predicted "
        "signed bias to zero. One step: the networks themselves, edited by one Newton step and not trained again. "
        "Number by one step: as many as leave such edited networks with the least bias on the selection pairs. In "
        "rounds: the same, with influence on the bias of the networks edited so far."
    )
    figure = plots.tradeoff(points, xlabel="predicted change of the signed bias", ylabel="change after retraining")
    return rows, report.Section(text, {"Predicted against actual change.": figure})


def prepare(task: BiasTask, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    if config.smoke:
        task = replace(task, task=replace(task.task, steps=60, hidden=(16,)))
    return partial(measure, task, config, make_programs(task, config))


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all removals, print a table for each task, and write ``results/influence_on_bias/<run>``."""
    if config.smoke:
        config = replace(config, seeds=1, checkpoints=2, retrains=2, max_steps=50)
    return study.run_experiment(
        "influence_on_bias", config, TASKS, prepare, describe, models=config.checkpoints, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
