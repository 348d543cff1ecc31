"""D3M: which training examples to remove so that the worst group improves, as one call and as its parts.

    checkpoints -> columns B[n, G] -> scores A = B @ w -> candidates -> choose on the selection split -> retrain

`debias` is the method. Studies and commands call the parts: `sources` makes the columns, `score` the alignment of each
example with the groups that do badly, `candidates` and `soft_candidate` the weights that selection tries,
`retrain_each` the evaluations, without and with class offsets, and `choose` the decision between all of them. Groups
are needed on the target and selection splits alone. Where labels are numbers, `regression.Errors` take the place of
`Evaluation`, and nothing has class offsets.
Source: Jain, Hamidieh, Georgiev, Ilyas, Ghassemi, Madry, "Improving Subgroup Robustness via Data Selection", 2024.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, Real, Shaped

from d3mjax import keys, metrics
from d3mjax.attribution import metagradient, outputs, projections, trak
from d3mjax.data import splits
from d3mjax.debiasing import group_weighting, offsets, regression, selection, sources
from d3mjax.debiasing.regression import Errors, trak_options
from d3mjax.debiasing.sources import Attribution
from d3mjax.runtime.hosts import local_mesh, place
from d3mjax.training import ensemble, masks, objectives
from d3mjax.types import AnyArray, Data, Model, Split, Trainer, checked_names, classes_of, is_regression

SHARES = (0.1, 0.2, 0.3)  # of the training set, removed by candidates
DAMPINGS = (0.01, 10.0)  # where n is small for the projected dimension, little is left of the Gram


class Evaluation(NamedTuple):
    """How one trained model does; a leading model axis where there are many."""

    losses: Float[Array, "*m G"]  # mean cross-entropy of each target group, nats
    selection: Float[Array, "*m G"]  # group accuracies on the selection split
    test: Float[Array, "*m G"]  # group accuracies on the test split
    average: Float[Array, "*m"]  # accuracy on the test split
    offsets: Float[Array, "*m C"]  # class offsets, to be added to the logits: chosen on target and selection split
    selection_with_offsets: Float[Array, "*m G"]  # the same with offsets chosen on the target split alone
    test_with_offsets: Float[Array, "*m G"]  # with ``offsets``
    average_with_offsets: Float[Array, "*m"]
    right: Bool[Array, "*m u"]  # whether the label of each example of the test split is predicted
    right_with_offsets: Bool[Array, "*m u"]


class Choice(NamedTuple):
    """A candidate, and whether its models get class offsets."""

    name: str
    offsets: bool


class Scores(NamedTuple):
    """Scores of the training examples at every reading of a source, and the group weights behind them."""

    scores: Float[Array, "r n"]  # A: larger is more useful, removal takes the smallest
    group_weights: Float[Array, "G"]


@checked_names
class Options(NamedTuple):
    """Choices of `debias` that have good defaults.

    ``attribution``: how checkpoints are attributed (`sources.by_trak`, `sources.by_influence`), or the options of
    metagradients; None for TRAK at `DAMPINGS`, projected to ``min(256, default_size(2 n))`` dimensions. ``retrains``:
    models behind every evaluation. ``beta``: sharpness of the group weights, per nat of group loss. ``shares``: of the
    training set, removed by candidates. ``tolerance``: worst-group accuracy on the selection split within which average
    accuracy decides. ``offsets``: whether candidates compete with class offsets, too.
    """

    attribution: Attribution | metagradient.Options | None = None
    retrains: int = 3
    beta: float = 1.0
    shares: tuple[float, ...] = SHARES
    tolerance: float = 0.02
    offsets: bool = True


class Debiased(NamedTuple):
    """What `debias` returns. Scores and columns follow the sign law: positive helps the target.

    Of a regression evaluations are `regression.Errors`, and ``offsets`` and ``control`` are None: numbers have no class
    offsets.
    """

    weights: Float[np.ndarray, "n"]  # to train on; 0 for what is removed
    scores: Float[np.ndarray, "n"]  # at the chosen reading
    columns: Float[np.ndarray, "n G"]  # at the chosen reading
    group_losses: Float[np.ndarray, "G"]  # of plain training on the targets, nats; as in `Errors.losses`
    offsets: Float[np.ndarray, "m C"] | None  # to be added to the logits of the models of ``after``; 0 unless chosen
    tried: dict[str, Any]  # candidates by name; only their selection accuracies may decide anything
    chosen: Choice
    before: Any  # `Evaluation` of plain training, models that took no part in any choice
    control: Evaluation | None  # the models of ``before`` with class offsets: what costs no training
    after: Any  # training on ``weights``, with ``offsets``, from the same keys as ``before``
    info: dict[str, Any]  # residuals of the solves, and `selection.GuardInfo`


def evaluate(model: Model, variables: Any, data: Data, num_groups: int) -> Any:
    """Target losses, and selection and test accuracies by group, of one set of variables; NaN for an empty group.

    An `Evaluation`; of a regression `regression.Errors`.
    """
    target = outputs.logits(model, variables, data.target.x)
    selected, test = (
        outputs.logits(model, variables, split.x, microbatch=4096) for split in (data.selection, data.test)
    )
    of_kind = regression.judge if is_regression(data.test.y) else judge
    return of_kind(target, selected, test, data, num_groups)


def judge(
    target: Float[AnyArray, "t C"],
    selected: Float[AnyArray, "s C"],
    test: Float[AnyArray, "u C"],
    data: Data,
    num_groups: int,
) -> Evaluation:
    """`evaluate` from the logits on the target, selection and test split, whose labels and groups ``data`` holds.

    Accuracies are given without and with class offsets (`offsets.choose`). No example that measures offsets has a part
    in their choice: those measured on the selection split are chosen on the target split.
    """
    targets, selecting = data.target, data.selection
    y, group = (jnp.concatenate(pair) for pair in ((targets.y, selecting.y), (targets.group, selecting.group)))
    first = offsets.choose(target, targets.y, targets.group, num_groups)
    final = offsets.choose(jnp.concatenate([target, selected]), y, group, num_groups)

    right = lambda logits, split: outputs.hard_margin(logits, split.y) > 0
    by_group = lambda right, split: metrics.group_means(right, split.group, num_groups)
    reported, moved = right(test, data.test), right(test + final[None], data.test)
    return Evaluation(
        metrics.group_means(objectives.losses(jnp.asarray(target), targets.y), targets.group, num_groups),
        by_group(right(selected, selecting), selecting),
        by_group(reported, data.test),
        metrics.average_accuracy(reported),
        final,
        by_group(right(selected + first[None], selecting), selecting),
        by_group(moved, data.test),
        metrics.average_accuracy(moved),
        reported,
        moved,
    )


def with_offsets(evaluation: Evaluation) -> Evaluation:
    """The evaluation of the same models with class offsets: accuracies with offsets in place of those without."""
    return evaluation._replace(
        selection=evaluation.selection_with_offsets,
        test=evaluation.test_with_offsets,
        average=evaluation.average_with_offsets,
        right=evaluation.right_with_offsets,
    )


def retrain(
    model_keys: Key[Array, "m"],
    model: Model,
    trainer: Trainer,
    split: Split,
    data: Data,
    weights: Float[AnyArray, "m n"],
    num_groups: int,
    num_steps: int,
    *,
    width: int = 1,
    mesh: Mesh | None = None,
) -> Any:
    """Train a model on ``split`` under each row of ``weights`` and evaluate it on ``data``; leading axis m.

    ``split`` is the training set, or another pool of examples. Compiled once for one ``model`` and ``trainer`` and
    shape; arrays that lie on the devices of ``mesh`` already are not copied again.

    Returns what `evaluate` does.

    Raises:
      ValueError: weights that are negative or not finite, or leave a class without examples.
      FloatingPointError: a training diverged; names models and steps.
    """
    masks.check_weights(np.asarray(weights), split.y)
    mesh = mesh or local_mesh()
    split, data = place((split, data), mesh)
    statics = {"num_groups": num_groups, "num_steps": num_steps, "width": width, "mesh": mesh}
    rows = jnp.asarray(weights, jnp.float32)
    evaluation, losses = jax.device_get(_retrained(split, data, model_keys, rows, model, trainer, **statics))
    ensemble.check_losses(losses, np.arange(len(losses)))
    return evaluation


@partial(jax.jit, static_argnames=("model", "trainer", "num_groups", "num_steps", "width", "mesh"))
def _retrained(split, data, model_keys, weights, model, trainer, *, num_groups, num_steps, width, mesh):
    look = lambda variables, data: evaluate(model, variables, data, num_groups)
    options = {"look": look, "shared": (data,), "width": width, "mesh": mesh}
    return ensemble.train_many(trainer, model_keys, split, weights, num_steps, **options)


def retrain_each(
    fit: Callable[..., Any],
    model_keys: Key[Array, "r"],
    weights: Mapping[str, Real[AnyArray, "*r n"] | Bool[AnyArray, "*r n"]],
) -> dict[str, Any]:
    """``fit(keys [k r], weights [k r n])`` of k weightings, in one call: r models each, from the same keys.

    A weighting ``[n]`` serves all r models; ``[r n]`` has a row for each.
    """
    runs = len(model_keys)
    rows = np.concatenate([np.broadcast_to(w, (runs, np.shape(w)[-1])) for w in weights.values()]).astype(np.float32)
    evaluation = fit(jnp.tile(model_keys, len(weights)), rows)
    part = lambda i: jax.tree.map(lambda a: a[i * runs : (i + 1) * runs], evaluation)
    return {name: part(i) for i, name in enumerate(weights)}


def score(columns: Float[AnyArray, "r n G"], group_losses: Float[AnyArray, "G"], *, beta: float = 1.0) -> Scores:
    """``A = B @ w`` at every reading, with group weights ``w = softmax(beta * group losses)``.

    A group without targets has a NaN loss and gets weight 0.

    Raises:
      FloatingPointError: a column or a loss of a group that is present is not finite.
    """
    present = ~np.isnan(np.asarray(group_losses))
    for reading in columns:
        group_weighting.check_scores(np.asarray(reading)[:, present], np.asarray(group_losses)[present])
    group_weights = group_weighting.softmax_weights(group_losses, beta=beta)
    scores = jnp.stack([group_weighting.scores(reading, group_weights) for reading in columns])
    return Scores(scores, group_weights)


def candidates(
    scores: Float[AnyArray, "n"],
    y: Shaped[AnyArray, "n"],
    num_classes: int | None,
    *,
    name: str = "D3M",
    shares: tuple[float, ...] = SHARES,
) -> dict[str, Bool[Array, "n"]]:
    """Keep masks that selection chooses among, by name: without the lowest ``shares``, and without what is negative.

    Every class keeps its best example, and the rule at zero removes at most half of the examples. A regression, of
    ``num_classes`` None, is one class.
    """
    y, num_classes = classes_of(y), 1 if num_classes is None else num_classes
    few = lambda keep: selection.guard(scores, keep, y, num_classes, max_drop=1.0)[0]
    lowest = {f"{name}/{share}": few(selection.drop_lowest(scores, int(share * len(y)))) for share in shares}
    rule, _ = selection.guard(scores, selection.drop_negative(scores), y, num_classes)
    return lowest | {f"{name}, drop negative": rule}


def soft_candidate(scores: Float[AnyArray, "n"]) -> Float[Array, "n"]:
    """Weights: 0 for the lowest tenth of the scores, and the sigmoid of the scaled score for the rest."""
    return selection.drop_lowest(scores, len(scores) // 10) * selection.soft_weights(scores, 0.1)


def choose(
    tried: Mapping[str, Any], group: Int[AnyArray, "t"], *, tolerance: float = 0.02, offsets: bool = True
) -> Choice:
    """The candidate that `selection.choose` takes, with or without class offsets; ``group``: of the selection split.

    ``tried``: evaluations by name, or the errors of a regression, among which `regression.choose` chooses.

    Accuracies are means over the retrained models; the average weighs groups by their size in the selection split.
    Without ``offsets`` no candidate gets any.
    """
    if any(isinstance(each, Errors) for each in tried.values()):
        return Choice(regression.choose(tried, group, tolerance=tolerance), False)
    choices = {Choice(name, False): evaluation for name, evaluation in tried.items()}
    if offsets:
        choices |= {Choice(name, True): with_offsets(evaluation) for name, evaluation in tried.items()}
    accuracies = np.stack([evaluation.selection.mean(0) for evaluation in choices.values()])
    counts = np.bincount(group, minlength=accuracies.shape[1])
    average = np.where(counts > 0, accuracies, 0) @ counts / counts.sum()
    return list(choices)[int(selection.choose(accuracies, average, tolerance=tolerance))]


def debias(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_groups: int,
    *,
    num_steps: int = 800,
    checkpoints: int = 20,
    options: Options = Options(),
    width: int = 1,
    mesh: Mesh | None = None,
) -> Debiased:
    """Find the training weights under which the worst group does best, by D3M with selection.

    Trains ``checkpoints`` models on everything, attributes the mean margin of every target group to the training
    examples, scores them by alignment with the groups of high loss, retrains on each candidate set, and takes the one
    of best average accuracy among those whose worst group on the selection split is within ``options.tolerance`` of
    the best, each without and with class offsets. ``before``, its ``control`` with class offsets and ``after`` are
    retrained from keys of their own and evaluated on ``data.test``.

    ``data``: four disjoint splits; groups of ``data.train`` are not used. Labels that are floats make it a regression:
    give a model of one output, `objectives.squared_error`, and labels standardised by those of training. ``num_steps``:
    of one training. ``width`` models are trained side by side on each device of ``mesh`` (None: all local devices);
    results do not depend on them. Pass the same ``model`` and ``trainer`` again, say for another key, and nothing is
    compiled again.

    >>> import jax, numpy as np, optax, d3mjax
    >>> data = d3mjax.planted_shortcut(seed=0, train=400, target=200, selection=200, test=400)
    >>> model = d3mjax.mlp((16,), 2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(), optax.adam(0.01), d3mjax.shuffled(), batch_size=50
    ... )
    >>> result = d3mjax.debias(jax.random.key(0), model, trainer, data, 4, num_steps=100, checkpoints=3)
    >>> bool(result.after.test.min(1).mean() > result.before.test.min(1).mean() + 0.05)
    True

    Raises:
      ValueError: splits that overlap or do not fit, named by `data.splits.check_data`.
      FloatingPointError: a training diverged, or an attribution is not finite; names models, steps and examples.
    """
    num_classes = None if is_regression(data.train.y) else int(np.max(data.train.y)) + 1
    splits.check_data(data, num_classes, num_groups)
    mesh = mesh or local_mesh()
    data_on_device, runs = place(data, mesh), options.retrains
    attribution = options.attribution or default_attribution(len(data.train.y), regression=num_classes is None)

    def fit(model_keys, weights):
        arguments = (model, trainer, data_on_device.train, data_on_device, weights, num_groups, num_steps)
        return retrain(model_keys, *arguments, width=width, mesh=mesh)

    everything = np.ones(len(data.train.y), np.float32)
    plain = retrain_each(fit, keys.members(key, keys.D3M.SCORE, runs), {"ERM": everything})
    group_losses = plain["ERM"].losses.mean(0)
    problem = (jax.random.fold_in(key, keys.D3M.COLUMNS), model, trainer, data_on_device, num_groups, num_steps)
    if isinstance(attribution, metagradient.Options):
        names = ("D3M",)
        source = sources.from_metagradients(*problem, checkpoints=checkpoints, mesh=mesh, options=attribution)
    else:
        names = attribution.readings
        source = sources.from_checkpoints(*problem, attribution, checkpoints=checkpoints, width=width, mesh=mesh)
    scored = score(source.columns, group_losses, beta=options.beta)
    weights, readings = {}, {}
    for reading, (name, scores) in enumerate(zip(names, scored.scores, strict=True)):
        more = candidates(scores, data.train.y, num_classes, name=name, shares=options.shares)
        more |= {f"{name}, soft": soft_candidate(scores)}
        weights, readings = weights | more, readings | dict.fromkeys(more, reading)
    tried = retrain_each(fit, keys.members(key, keys.D3M.SELECT, runs), weights)
    chosen = choose(tried, data.selection.group, tolerance=options.tolerance, offsets=options.offsets)
    final = {"before": everything, "after": weights[chosen.name]}
    before, after = retrain_each(fit, keys.members(key, keys.D3M.REPORT, runs), final).values()
    kept, at = np.asarray(weights[chosen.name], np.float32), readings[chosen.name]
    arrays = (kept, np.asarray(scored.scores[at]), source.columns[at], np.asarray(group_losses))
    if num_classes is None:
        return Debiased(*arrays, None, tried, chosen, before, None, after, source.facts)
    added = np.asarray(after.offsets) * chosen.offsets
    after = with_offsets(after) if chosen.offsets else after
    return Debiased(*arrays, added, tried, chosen, before, with_offsets(before), after, source.facts)


@lru_cache
def default_options(num_examples: int, *, regression: bool = False) -> trak.Options:
    """TRAK projected to 256 dimensions, or fewer: p beyond an eighth of the examples would no longer regularise."""
    size = min(256, projections.default_size(2 * num_examples))
    options = trak.Options(projection=projections.sjlt(size), damping=DAMPINGS[0], microbatch=20)
    return trak_options(options) if regression else options


@lru_cache
def default_attribution(num_examples: int, *, regression: bool = False) -> Attribution:
    """`default_options` at every one of `DAMPINGS`."""
    return sources.by_trak(default_options(num_examples, regression=regression), dampings=DAMPINGS[1:])
