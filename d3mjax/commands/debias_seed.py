"""D3M and what it is compared with on one division of the targets: the unit of work of d3mjax-debias.

Checkpoints, plain training and class weights come from the unit that all divisions share (`debias_shared`). Candidates
are tried by successive halving: one model of each, then twice as many of the better half of them, up to the number of
retrained models. Models that report take no part in any choice.

Arrays: ``score [r n]``, ``columns [r n G]``, ``kept [n]`` (at the candidate that selection chose), ``suspect [n]``,
``group_losses [G]``, ``test/METHOD [m G]`` and ``average/METHOD [m]`` of the methods that were run, ``offsets/METHOD
[m C]`` of those that may have class offsets, ``influence/METHOD [t]`` of the pool (`metrics.worst_group_influence`);
of all candidates
``selection [k G]``, ``candidate_test [k G]`` and ``candidate_average [k]``, means over their models that selected;
``curve [S 1 G]``, the row of ``candidate_test`` at every share of ``facts["shares"]``. Facts: ``chosen`` and
``offsets``, the choice; ``candidates``, names in the order of the arrays, ``models``, the number behind each.
With --regression the numbers of groups are root mean square errors in the label's unit, ``absolute/METHOD [m G]`` and
``average_absolute/METHOD [m]`` absolute ones, and ``offsets/ERM, shifted [m 1]`` the shift.
With --auto also ``auto``, ``target_id [t]`` and ``pseudo_group [t]``; where it refuses, nothing is tried or removed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from d3mjax import keys, metrics
from d3mjax.commands import debias_auto, debias_divisions, debias_numbers
from d3mjax.commands.debias_numbers import MATCHED as LABEL_MATCHED
from d3mjax.commands.debias_numbers import SHIFT
from d3mjax.commands.debias_numbers import WEIGHTS as LABEL_WEIGHTS
from d3mjax.commands.debias_recipe import Recipe, train
from d3mjax.commands.debias_shared import BALANCES, PLAIN
from d3mjax.data import splits
from d3mjax.debiasing import baselines, d3m, group_weighting, selection
from d3mjax.debiasing.regression import Errors
from d3mjax.runtime import hosts, runs
from d3mjax.runtime.progress import Progress
from d3mjax.types import AnyArray, Data, classes_of

TARGETS_ALONE, OFFSETS, WEIGHTS = "RWG on the targets alone", "ERM, class offsets", "class weights, by selection"
RANDOM, MATCHED = "random removal", "class-matched random removal"
PARTS = ("target", "selection", "test")
NEGATIVE, TENTH, SELECTED = "D3M, drop negative", "D3M, 10 % removed", "D3M, by selection"
NOTHING = "D3M/0.0"  # the candidate that removes nothing, which is plain training


class Division(NamedTuple):
    """One division of the targets, and how models are trained and measured on it."""

    name: str
    root: Key[Array, ""]
    recipe: Recipe
    parts: Data
    shared: Mapping[str, np.ndarray]  # arrays of the shared unit
    judge: Callable[[AnyArray], Any]  # of logits [m t C] on the pool: `Evaluation`, or `Errors` of a regression
    progress: Progress

    def retrain(self, family: int, weights: list[AnyArray], members: list[int], **options: Any) -> Any:
        """One model for each row of ``weights [n]``, from the key of its member of the family."""
        model_keys = keys.model_keys(jax.random.fold_in(self.root, family), np.array(members))
        return self.judge(train(self.recipe, model_keys, weights, progress=self.progress, **options))


class Comparison(NamedTuple):
    """Methods that remove examples: keep masks ``[n]`` or ``[m n]`` and evaluations, and facts and arrays to store."""

    kept: dict[str, Any]
    tested: dict[str, Any]
    facts: dict[str, Any]
    arrays: dict[str, Any]


def rounds(retrains: int) -> list[int]:
    """Models of a candidate after each round of successive halving: 1, 2, 4, ... up to ``retrains``."""
    return [*(2**i for i in range(retrains.bit_length()) if 2**i < retrains), retrains]


def num_candidates(recipe: Recipe) -> int:
    """Candidates that are trained in one division: shares and the rule at zero, at every reading."""
    return len(recipe.counts.grid) + 1 + (len(recipe.attribution.readings) - 1) * (len(d3m.SHARES) + 1)


def num_models(recipe: Recipe) -> int:
    """Models that one division trains, or somewhat fewer where a choice is made twice."""
    left, count, done = num_candidates(recipe), 0, 0
    for models in rounds(recipe.counts.retrains):
        count, left, done = count + left * (models - done), -(-left // 2), models
    return count + 6 * recipe.counts.retrains


def measure(recipe: Recipe, shared: runs.Unit, seed: int, progress: Progress) -> runs.Unit:
    """Facts for JSON and arrays of one division. Where AUTO-D3M refuses, nothing that removes examples is run."""
    facts_of_all, arrays_of_all = shared
    parts = debias_divisions.divide(recipe.data, seed)
    of_auto = facts_of_all["auto"][seed] if recipe.auto else None
    facts, arrays = {}, {}
    if recipe.auto:
        facts["auto"] = of_auto
        arrays = {name: arrays_of_all[name][seed] for name in ("target_id", "pseudo_group")}
    # With --auto all that selects, chooses offsets and reports goes by the classes: true groups are unknown.
    judge = partial(evaluate, recipe, debias_auto.by_pseudo_group(parts) if recipe.auto else parts)
    name = f"division {seed + 1} of {recipe.counts.divisions}"
    division = Division(name, jax.random.key(seed), recipe, parts, arrays_of_all, judge, progress)

    columns, losses = arrays_of_all["columns"][:, :, seed], arrays_of_all["group_losses"][seed]
    scored, suspect = d3m.score(columns, losses), arrays_of_all["suspect"]
    tested, offsets = balances(division)
    if debias_auto.refused([of_auto] if of_auto else []):
        nothing = {"score": np.zeros_like(scored.scores), "kept": np.ones(len(suspect), bool)}
        compared = Comparison({}, {}, {"reading": 0}, nothing)
    else:
        compared = compare(division, scored.scores, tested)
    progress(0, f"{division.name}: the targets alone")
    scoring = hosts.place(parts.target, recipe.mesh)
    target_group = np.asarray(arrays.get("pseudo_group", parts.target.group))
    row = np.asarray(baselines.balanced_weights(target_group, recipe.num_groups))
    count = recipe.counts.retrains
    alone = division.retrain(keys.D3M.REPORT, [row] * count, list(range(count)), split=scoring)
    tested |= compared.tested | {TARGETS_ALONE: alone}

    everything = np.ones(len(suspect), bool)
    kept = dict.fromkeys((name for name in tested if name != TARGETS_ALONE), everything) | compared.kept
    num_groups = len(recipe.data.group_names)
    facts |= {name: value for name, value in facts_of_all.items() if name != "auto"} | compared.facts
    facts |= {"checkpoints": recipe.counts.checkpoints, "suspects": float(suspect.mean())}
    spreads = arrays_of_all["covariances"][:, seed], arrays_of_all["covariance_of_mean"][seed]
    facts["effective_checkpoints"] = group_weighting.effective_number(*spreads, scored.group_weights)
    facts["sizes"] = {name: splits.group_sizes(getattr(parts, name), num_groups) for name in PARTS}
    facts["removed"] = {name: 1 - float(np.mean(rows)) for name, rows in kept.items()}
    facts["suspects_removed"] = {
        name: selection.share_of_removed(suspect, rows) for name, rows in kept.items() if not np.all(rows)
    }
    arrays |= {"columns": columns, "group_losses": losses, "suspect": suspect} | compared.arrays
    arrays |= {f"test/{name}": evaluation.test for name, evaluation in tested.items()}
    arrays |= {f"average/{name}": evaluation.average for name, evaluation in tested.items()}
    reporting = splits.rows_of(parts.test.id, recipe.pool.id)
    for name, evaluation in tested.items():
        influence = np.zeros(len(recipe.pool.id), np.float32)
        influence[reporting] = influence_of(evaluation, parts.test.group, num_groups)
        arrays[f"influence/{name}"] = influence
    if recipe.data.num_classes is None:
        arrays |= {f"absolute/{name}": evaluation.test_absolute for name, evaluation in tested.items()}
        arrays |= {f"average_absolute/{name}": evaluation.average_absolute for name, evaluation in tested.items()}
    elif SELECTED in tested:
        offsets |= {SELECTED: tested[SELECTED].offsets}
    arrays |= {f"offsets/{name}": of_models for name, of_models in offsets.items()}
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def influence_of(evaluation: Any, group: AnyArray, num_groups: int) -> Float[AnyArray, " u"]:
    """Influence of the examples that report on the worst group: on its accuracy, or on its error."""
    if isinstance(evaluation, Errors):
        return metrics.worst_group_error_influence(evaluation.residuals, group, num_groups)
    return metrics.worst_group_influence(evaluation.right, group, num_groups)


def evaluate(recipe: Recipe, data: Data, logits: Float[AnyArray, "m t C"]) -> Any:
    """Evaluations of m models on a division, from their logits on the pool; `Errors` of a regression."""
    if recipe.data.num_classes is None:
        return debias_numbers.evaluate(recipe, data, logits)
    at = [splits.rows_of(part.id, recipe.pool.id) for part in data[1:]]
    parts = [part._replace(x=np.zeros((len(part.y), 0), np.float32)) for part in data[1:]]
    one = lambda logits: _judged(*(logits[i] for i in at), *parts, num_groups=recipe.num_groups)
    several = [jax.device_get(one(of_model)) for of_model in np.asarray(logits)]
    evaluation = jax.tree.map(lambda *values: np.stack(values), *several)
    return debias_auto.by_class(evaluation) if recipe.auto else evaluation


@partial(jax.jit, static_argnames=("num_groups",))
def _judged(target_logits, selection_logits, test_logits, target, selection, test, *, num_groups):
    data = Data(target, target, selection, test)
    return d3m.judge(target_logits, selection_logits, test_logits, data, num_groups)


def balances(division: Division) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Plain training, the same with class offsets, and class weights of the power that selection chose; the offsets.

    Of a regression plain training, the same with a shift, and weights by interval of the label; the shifts.
    """
    selecting = {name: division.judge(division.shared[f"selecting/{name}"]) for name in BALANCES}
    chosen = d3m.choose(selecting, division.parts.selection.group, offsets=False).name
    logits = division.shared[f"reporting/{PLAIN}"]
    plain, weighted = division.judge(logits), division.judge(division.shared[f"reporting/{chosen}"])
    scale = division.recipe.data.scale
    if scale is None:
        return {PLAIN: plain, OFFSETS: d3m.with_offsets(plain), WEIGHTS: weighted}, {OFFSETS: plain.offsets}
    added = debias_numbers.shifts(division.recipe, division.parts, logits)[:, None]
    shifted = division.judge(logits + added[..., None])
    return {PLAIN: plain, SHIFT: shifted, LABEL_WEIGHTS: weighted}, {SHIFT: scale.std * added}


def compare(division: Division, scores: Float[AnyArray, "r n"], tested: Mapping[str, Any]) -> Comparison:
    """The candidates of every reading, the one that selection takes, and random removals of as many examples."""
    recipe, y, num_classes = division.recipe, division.parts.train.y, division.recipe.data.num_classes
    strata, matched = debias_divisions.strata(recipe.data, y), LABEL_MATCHED if num_classes is None else MATCHED
    tried: dict[str, Any] = {NOTHING: np.ones(len(y), bool)}
    readings = {NOTHING: 0}
    for reading, name in enumerate(recipe.attribution.readings):
        shares = d3m.SHARES if reading else recipe.counts.grid
        more = d3m.candidates(jnp.asarray(scores[reading]), y, num_classes, name=name, shares=shares)
        tried |= {name: np.asarray(keep) for name, keep in more.items()}
        readings |= dict.fromkeys(more, reading)
    *curve, rule = list(tried)[: len(recipe.counts.grid) + 2]
    selected, chosen = choose(division, tried)

    count, kept = recipe.counts.retrains, tried[chosen.name]
    division.progress(0, f"{division.name}: models that report")
    masks = {name: [tried[name]] * count for name in dict.fromkeys((rule, curve[recipe.counts.grid.index(0.1) + 1]))}
    masks |= {chosen.name: [kept] * count}
    draws = keys.members(division.root, keys.D3M.DRAW, count)
    for name, cell in ((RANDOM, np.zeros_like(strata)), (matched, strata)):
        masks[name] = [random_like(key, kept, cell, classes_of(y)) for key in draws]
    removing = {name: rows for name, rows in masks.items() if not np.all(rows)}
    reported = dict.fromkeys(masks, tested[PLAIN])  # without any removal it is plain training
    for name, rows in removing.items():
        reported[name] = division.retrain(keys.D3M.REPORT, rows, list(range(count)))
    methods = {RANDOM: RANDOM, matched: matched, NEGATIVE: rule, TENTH: curve[recipe.counts.grid.index(0.1) + 1]}
    methods[SELECTED] = chosen.name
    evaluations: dict[str, Any] = {method: reported[name] for method, name in methods.items()}
    if chosen.offsets:
        evaluations[SELECTED] = d3m.with_offsets(evaluations[SELECTED])
    mean = lambda field: np.stack([getattr(evaluation, field).mean(0) for evaluation in selected.values()])
    return Comparison(
        {method: np.stack(masks[name]) for method, name in methods.items()},
        evaluations,
        {
            "chosen": chosen.name,
            "offsets": chosen.offsets,
            "reading": readings[chosen.name],
            "shares": (0.0, *recipe.counts.grid),
            "candidates": list(selected),
            "models": [len(evaluation.average) for evaluation in selected.values()],
        },
        {
            "score": scores,
            "kept": kept,
            "curve": np.stack([selected[name].test.mean(0, keepdims=True) for name in curve]),
            "selection": mean("selection"),
            "candidate_test": mean("test"),
            "candidate_average": mean("average"),
        },
    )


def random_like(key: Key[Array, ""], keep: AnyArray, cell: AnyArray, y: AnyArray) -> np.ndarray:
    """`selection.drop_random_like`, Bool[n]; a rare class keeps one example, at random, as it does in candidates."""
    random = selection.drop_random_like(key, keep, cell, int(cell.max()) + 1)
    noise = jax.random.uniform(key, random.shape)
    return np.asarray(selection.guard(noise, random, y, int(y.max()) + 1, max_drop=1.0)[0])


def choose(division: Division, tried: Mapping[str, AnyArray]) -> tuple[dict[str, Any], d3m.Choice]:
    """Evaluations of all candidates by successive halving, and the choice among those of the last round.

    The candidate that removes nothing is plain training: its models are shared and stay to the end.
    """
    plain = division.judge(division.shared[f"selecting/{PLAIN}"])
    evaluations: dict[str, Any] = {NOTHING: plain}
    alive, done = [name for name in tried if name != NOTHING], 0
    finalists = alive
    for models in rounds(division.recipe.counts.retrains):
        division.progress(0, f"{division.name}: trying {len(alive)} candidates, {models - done} more of each")
        pairs = [(name, member) for name in alive for member in range(done, models)]
        weights, members = [tried[name] for name, _ in pairs], [member for _, member in pairs]
        every, count = division.retrain(keys.D3M.SELECT, weights, members), models - done
        for i, name in enumerate(alive):
            parts = [evaluations[name]] if name in evaluations else []
            parts.append(jax.tree.map(itemgetter(slice(i * count, (i + 1) * count)), every))
            evaluations[name] = jax.tree.map(lambda *values: np.concatenate(values), *parts)
        done, finalists = models, alive
        alive = better_half(evaluations, alive, division.parts.selection.group)
    finals = {name: evaluations[name] for name in (NOTHING, *finalists)}
    choice = d3m.choose(finals, division.parts.selection.group)
    return {name: evaluations[name] for name in tried}, choice


def better_half(evaluations: Mapping[str, Any], names: list[str], group: AnyArray) -> list[str]:
    """The better half of some candidates on the selection split, each without or with class offsets."""
    if isinstance(evaluations[names[0]], Errors):
        return debias_numbers.better_half(evaluations, names, group)
    variants = [(evaluations[name], d3m.with_offsets(evaluations[name])) for name in names]
    accuracies = np.array([[one.selection.mean(0) for one in pair] for pair in variants])
    counts = np.bincount(group, minlength=accuracies.shape[-1])
    average = np.where(counts > 0, accuracies, 0) @ counts / counts.sum()
    left = set(selection.survivors(accuracies, average, -(-len(names) // 2)).tolist())
    return [name for i, name in enumerate(names) if i in left]
