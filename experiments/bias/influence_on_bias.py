"""Influence on counterfactual bias: which training examples teach it, and what retraining without them shows.

Claim:    that of `STUDY`, at the end.
Command:  python -m experiments influence_on_bias        (`--smoke` takes seconds)
Expected: adult-sex: the bias without the self-chosen 30 of 4,000 examples is .59 of what it was, chosen in rounds .54.
          The rows of metagradients were added after the last full run.
Device:   two CPU cores; two minutes a task and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import influence, inverses, metagradient, outputs, projections, trak
from d3mjax.debiasing import selection
from d3mjax.keys import InfluenceOnBias, members
from d3mjax.reports import page, plots
from d3mjax.reports.rows import Kind, row
from d3mjax.training import ensemble
from d3mjax.types import Model, Pairs, Split
from d3mjax.unlearning import bias, edits
from experiments import bias_tasks, study
from experiments.bias_tasks import BiasTask
from experiments.study import Study
from experiments.tasks import SHUFFLED, smooth_adam, spread, train_models

ADULT = bias_tasks.adult_task("sex", "Male", "Female", train=4000, steps=200)
FASHION = bias_tasks.fashion_task(0.95, train=4000, steps=1000)
TASKS = {task.name: task for task in (ADULT, FASHION)}
SIZES = {ADULT.name: (25, 50, 100, 400), FASHION.name: (100, 400, 800)}
ROUNDS = {ADULT.name: (10, 7), FASHION.name: (200, 5)}
"""How many examples a round removes, and after how many rounds, from none on, one step is looked at."""
WHOLE, LAST, METAGRADIENT = "whole network", "last layer", "metagradient"
OF_SIZE = {
    "TRAK": Kind("rival"),
    LAST: Kind("rival"),
    WHOLE: Kind("ours"),
    METAGRADIENT: Kind("ours"),
    "reversed": Kind("control", controls="sign"),
    "random": Kind("control", controls="number"),
    "group-matched random *": Kind("control", "training groups", "group balance"),
}
"""Removals of a given size."""
OF_CHOSEN_SIZE = {
    f"{WHOLE}, self-chosen": Kind("ours"),
    f"{WHOLE}, number by one step": Kind("ours"),
    f"{WHOLE}, in rounds": Kind("ours"),
    f"self-chosen, one step on the {LAST}": Kind("rival"),
    f"self-chosen, one step on the {WHOLE}": Kind("ours"),
}


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


class Setup(NamedTuple):
    """What the compiled functions of one task share."""

    model: Model
    options: dict[str, influence.Options]  # by kind
    trak: trak.Options
    rounds: tuple[int, int]  # as in `ROUNDS`

    def without(self, variables, split: Split, rows, kind: str = WHOLE):
        """The variables after one Newton step that removes ``rows``."""
        problem = influence.problem_of(self.model, variables, split, options=self.options[kind])
        return edits.merged(variables, edits.remove(problem, self.options[kind].inverse, rows).params)

    def effects(self, variables, report: Pairs, test: Split) -> dict[str, jax.Array]:
        """Metrics of one model."""
        right = outputs.hard_margins(self.model, variables, test, microbatch=4096) > 0
        on_pairs = bias.measure(self.model, variables, report)
        numbers = {"bias": on_pairs.absolute, "signed_bias": on_pairs.signed, "flip_rate": on_pairs.flips}
        return {**numbers, "accuracy": right.mean()}


class Programs(NamedTuple):
    """Compiled functions of one task, each of many models."""

    train: Callable  # (split, report, test, keys [m], weights) -> ((variables, effects), losses)
    attribute: Callable  # (split, reference, keys [m], variables) -> (columns [m n 2] by kind, residuals, signed bias)
    differentiate: Callable  # (split, reference, keys [m]) -> columns [m n 2], info
    edit: Callable  # (split, report, test, variables, rows [n]) -> effects by kind
    in_rounds: Callable  # (split, reference, selection, variables, scores [n], anew=) -> (rows [r n], biases [r])


def sizes_of(task: BiasTask, config: Config) -> tuple[int, ...]:
    """How many examples are removed."""
    return (20,) if config.smoke else SIZES[task.name]


def make_programs(task: BiasTask, config: Config) -> Programs:
    """All compiled functions of a task, used for every seed."""
    base, last = task.task, f"Dense_{len(task.task.hidden)}"
    by_cg = inverses.by_cg(rtol=1e-3, max_steps=config.max_steps)
    options = influence.Options(damping=config.damping, inverse=by_cg, microbatch=1000)
    kinds = {WHOLE: options, LAST: options._replace(keep=lambda path: last in path)}
    by_trak = trak.Options(projections.sjlt(config.size), microbatch=40)
    setup = Setup(base.network(), kinds, by_trak, (10, 3) if config.smoke else ROUNDS[task.name])

    def train(split: Split, report: Pairs, test: Split, keys, weights):
        look = lambda variables, report, test: (variables, setup.effects(variables, report, test))
        return train_models(base, keys, split, weights, look, shared=(report, test))

    def attribute(split: Split, reference: Pairs, keys, variables):
        return ensemble.map_models(partial(columns, setup, split, reference), **spread())(keys, variables)

    smooth = replace(base, optimizer=smooth_adam).trainer(base.steps, SHUFFLED)

    def differentiate(split: Split, reference: Pairs, keys):
        one = lambda split, reference, key: bias.metagradients_on_biases(
            key, setup.model, smooth, split, reference, base.steps
        )
        return ensemble.map_models(one, shared=(split, reference), **{**spread(), "width": 1})(keys)

    def edit(split: Split, report: Pairs, test: Split, variables, rows):
        after = lambda variables, kind: setup.effects(setup.without(variables, split, rows, kind), report, test)
        each = lambda variables: {kind: after(variables, kind) for kind in kinds}
        return ensemble.map_models(each, **spread())(variables)

    rounds = jax.jit(partial(in_rounds, setup), static_argnames="anew")
    return Programs(jax.jit(train), jax.jit(attribute), jax.jit(differentiate), jax.jit(edit), rounds)


def columns(setup: Setup, split: Split, reference: Pairs, key, variables):
    """``d bias / d w_i [n 2]`` of one model by kind, absolute and signed; the solves' residuals; the signed bias."""
    model, measures = setup.model, (bias.counterfactual_bias, bias.signed_bias)
    by_kind = {"TRAK": bias.trak_on_biases(key, model, variables, split, reference, options=setup.trak)}
    residuals = {}
    for kind, options in setup.options.items():
        each = [bias.gradient_of(model, m, variables, reference, keep=options.keep) for m in measures]
        gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        problem = influence.problem_of(model, variables, split, options=options)
        by_kind[kind], info = influence.along(problem, options.inverse, gradients)
        residuals[kind] = info.residual.max()
    return by_kind, residuals, bias.signed_bias(model, variables, reference)


def in_rounds(setup: Setup, split: Split, reference: Pairs, selection: Pairs, variables, scores, *, anew: bool):
    """Rows removed ``[r n]`` before each round, and what one step without them leaves of both biases ``[r]``.

    The highest scores go first; ``anew``: those of the edited networks instead of ``scores``.
    """
    size, count = setup.rounds

    def advance(removed, _):
        def one(variables):
            after = setup.without(variables, split, removed)
            left = bias.measure(setup.model, after, selection)
            if not anew:
                return scores, left
            place = (setup.model, bias.counterfactual_bias, after, split, reference)
            return bias.influence_on(*place, weights=1.0 - removed, options=setup.options[WHOLE])[0], left

        on_bias, left = ensemble.map_models(one, **spread())(variables)
        _, highest = jax.lax.top_k(jnp.where(removed, -jnp.inf, on_bias.mean(0)), size)
        return removed.at[highest].set(True), (removed, left.absolute.mean(), left.signed.mean())

    return jax.lax.scan(advance, jnp.zeros(len(split.y), bool), None, length=count)[1]


def removals(task: BiasTask, split: Split, scores: dict[str, np.ndarray], sizes, key) -> dict[str, Any]:
    """Keep masks by name: highest influence on the bias by each kind, and controls."""
    group, everybody, keep = np.asarray(split.group), np.zeros(len(split.y), np.int32), {}
    for k in sizes:
        top = selection.drop_lowest(-scores[WHOLE], k)
        keep |= {f"{kind}, {k} removed": selection.drop_lowest(-on_bias, k) for kind, on_bias in scores.items()}
        keep[f"reversed, {k} removed"] = selection.drop_lowest(scores[WHOLE], k)
        keep[f"random, {k} removed"] = selection.drop_random_like(key, top, everybody, 1)
        matched = selection.drop_random_like(key, top, group, len(task.task.group_names))
        keep[f"group-matched random *, {k} removed"] = matched
    return keep


def measure(task: BiasTask, config: Config, programs: Programs, seed: int, progress: Callable) -> study.Unit:
    """Effects of every removal on one draw, after retraining and after one step instead."""
    loaded, root = task.load(seed, smoke=config.smoke), jax.random.key(seed)
    split, test, pairs, n = loaded.data.train, loaded.data.test, loaded.pairs, len(loaded.data.train.y)
    keys = partial(members, root)

    def train(model_keys, weights):
        looked, losses = programs.train(split, pairs.report, test, model_keys, jnp.asarray(weights, jnp.float32))
        ensemble.check_losses(jax.device_get(losses), np.arange(len(model_keys)))
        return looked

    variables, _ = train(keys(InfluenceOnBias.CHECKPOINTS, config.checkpoints), np.ones((config.checkpoints, n)))
    projected = keys(InfluenceOnBias.PROJECTIONS, config.checkpoints)
    by_kind, residuals, signed = jax.device_get(programs.attribute(split, pairs.reference, projected, variables))
    own = keys(InfluenceOnBias.CHECKPOINTS, config.checkpoints)
    by_kind[METAGRADIENT], info = jax.device_get(programs.differentiate(split, pairs.reference, own))
    metagradient.check(info)
    progress(config.checkpoints)
    means = {kind: each.mean(0) for kind, each in by_kind.items()}
    scores, on_signed = ({kind: mean[:, column] for kind, mean in means.items()} for column in (0, 1))
    few = int(bias.removal_count(scores[WHOLE], on_signed[WHOLE], jnp.asarray(signed.mean())))
    keep = removals(task, split, scores, sizes_of(task, config), jax.random.fold_in(root, InfluenceOnBias.DRAW))
    keep[f"{WHOLE}, self-chosen"] = chosen = selection.drop_lowest(-scores[WHOLE], few)
    sizes, predicted = [f"{k} removed" for k in sizes_of(task, config)], {}
    for kind, size in ((WHOLE, "self-chosen"), *product((WHOLE, METAGRADIENT), sizes)):
        removed = ~np.asarray(keep[f"{kind}, {size}"])
        predicted[f"{kind}, {size}"] = -on_signed[kind][removed].sum()
    rounds = partial(programs.in_rounds, split, pairs.reference, pairs.selection, variables, jnp.asarray(scores[WHOLE]))
    for name, anew in (("number by one step", False), ("in rounds", True)):
        removed, left, signed_left = jax.device_get(rounds(anew=anew))
        keep[f"{WHOLE}, {name}"] = ~removed[left.argmin()]
        predicted[f"{WHOLE}, {name}"] = signed_left[left.argmin()] - signed_left[0]

    facts = retrained(train, keys(InfluenceOnBias.RETRAIN, config.retrains), {"no removal": np.ones(n), **keep})
    for name, rows in keep.items():
        facts[name]["removed"] = float(np.mean(~np.asarray(rows)))
        if name in predicted:
            facts[name]["predicted_change"] = float(predicted[name])
            facts[name]["signed_change"] = facts[name]["signed_bias"] - facts["no removal"]["signed_bias"]
    edited = jax.device_get(programs.edit(split, pairs.report, test, variables, ~np.asarray(chosen)))
    for kind, numbers in edited.items():
        facts[f"self-chosen, one step on the {kind}"] = {name: float(each.mean()) for name, each in numbers.items()}
    facts["residual"] = {kind: float(each.max()) for kind, each in residuals.items()}
    return facts, {"id": np.asarray(split.id), **{f"on_bias/{kind}": np.asarray(v) for kind, v in scores.items()}}


def retrained(train: Callable, model_keys, keep: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean effects of models that are trained under each keep mask, from the same keys."""
    runs = len(model_keys)
    rows = np.concatenate([np.broadcast_to(mask, (runs, len(mask))) for mask in keep.values()])
    _, numbers = train(jnp.tile(model_keys, len(keep)), rows)
    means = {metric: np.asarray(a).reshape(len(keep), runs).mean(1) for metric, a in numbers.items()}
    return {name: {metric: float(a[i]) for metric, a in means.items()} for i, name in enumerate(keep)}


def describe(task: BiasTask, config: Config, units: list[study.Unit]) -> tuple[list[dict[str, Any]], page.Section]:
    """One row a removal; predicted against actual change of the signed bias."""
    facts = [facts for facts, _ in units]
    kinds = {"no removal": Kind("plain")}
    kinds |= {f"{name}, {k} removed": kind for k in sizes_of(task, config) for name, kind in OF_SIZE.items()}
    rows, points = [], {}
    for name, kind in (kinds | OF_CHOSEN_SIZE).items():
        values = {metric: [f[name][metric] for f in facts] for metric in facts[0][name]}
        settings = kind.settings() | ({"edits": "a trained network"} if "removed" not in values else {})
        rows.append(row(task.name, name, values, role=kind.role, information=kind.information, settings=settings))
        if "predicted_change" in values:
            points[name] = (values["predicted_change"], values["signed_change"])
    text = (
        f"{task.task.about} Influence on the bias of {config.checkpoints} trained networks, by the GGN; metagradient: "
        "by the derivative of their trainings, with an epsilon inside the root of Adam, where it has one. The highest "
        f"are removed and {config.retrains} networks trained without them. Self-chosen: as many as bring the predicted "
        "signed bias to zero. One step: the networks themselves, edited by one Newton step and not trained again. "
        "Number by one step: as many as leave such edited networks with the least bias on the selection pairs. In "
        "rounds: the same, with influence on the bias of the networks edited so far."
    )
    figure = plots.tradeoff(points, xlabel="predicted change of the signed bias", ylabel="change after retraining")
    return rows, page.Section(text, {"Predicted against actual change.": figure})


def prepare(task: BiasTask, config: Config, _results: Any) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    return partial(measure, task, config, make_programs(task, config))


STUDY = Study(
    "influence_on_bias",
    claim="Influence functions find few examples whose removal takes away most of the bias, choose how many by "
    "themselves, and predict the result of retraining; one step on the whole network comes close to retraining. Chosen "
    "in rounds, on networks edited so far, the examples take away more than chosen at once.",
    config=Config(),
    tasks=TASKS,
    prepare=prepare,
    describe=describe,
    minutes=20,
    headline=("adult-sex", f"{WHOLE}, in rounds", "bias"),
    smoke=partial(replace, seeds=1, checkpoints=2, retrains=2, max_steps=50),
    small=lambda task: replace(task, task=replace(task.task, steps=60, hidden=(16,))),
    models=lambda config: config.checkpoints,
)
