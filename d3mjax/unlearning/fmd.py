"""`unlearn`: take the counterfactual bias out of a trained network by an edit of its last layer.

    features of train set and pairs -> last layer refitted -> steps of an edit -> the step that selection pairs choose

The parts serve studies as well: `last_layer_of` and `network_of` make what is edited, `paths` the steps.
Source: Chen et al., "Fast Model Debias with Machine Unlearning", NeurIPS 2023; Newton steps on the bias are ours.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from d3mjax.attribution import curvatures, influence
from d3mjax.attribution.inverses import by_last_layer
from d3mjax.debiasing import last_layer
from d3mjax.linalg.products import LARGEST
from d3mjax.networks import dense
from d3mjax.types import AnyArray, Linear, Model, Pairs, Split, checked_names
from d3mjax.unlearning import bias, edits, paths
from d3mjax.unlearning.bias import Bias
from d3mjax.unlearning.paths import Edit, Editable


@checked_names
class Options(NamedTuple):
    """Choices of `unlearn` that have good defaults.

    ``edit``: steps that are tried, such as ``partial(paths.in_rounds, etas=...)`` for FMD. ``damping``: of the last
    layer, its L2 penalty against the mean loss. ``tolerance``: accuracy, mean of both sides, that less bias may cost on
    the selection pairs. ``path``: of the last layer in ``params``; None for the only dense layer with C outputs.
    ``refits``: Newton steps to the minimum of its objective. ``microbatch``: memory and speed only.
    """

    edit: Edit = partial(paths.newton, eta=0.1, rounds=16)
    damping: float = 1e-3
    tolerance: float = 0.005
    path: tuple[str, ...] | None = None
    refits: int = 8
    microbatch: int | None = 1000


class Info(NamedTuple):
    """What `unlearn` chose, and how well its last layer was refitted."""

    step: Int[Array, ""]  # of the edit; -1: the network is left as it was
    tried: Bias  # after each step, on the selection pairs; leading axis k
    stationarity: Float[Array, ""]  # of the refitted last layer, as `edits.stationarity`


class Unlearned(NamedTuple):
    """What `unlearn` returns; the biases are those of the selection pairs: report other pairs."""

    variables: Any  # of the edited network
    before: Bias
    after: Bias
    info: Info


def unlearn(
    model: Model,
    variables: PyTree,
    train: Split,
    pairs: Pairs,
    selection: Pairs,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> Unlearned:
    """Variables of a network whose counterfactual bias on pairs is small, at nearly the same accuracy.

    Refits the last layer on the features of ``train`` under ``weights`` (1 each), walks along ``options.edit`` on
    ``pairs``, and takes the step of least absolute bias on the disjoint ``selection`` pairs among those that cost at
    most ``options.tolerance`` of accuracy; the network itself where no step does. Neither the layers below nor data
    with groups are needed. Pass the same ``model`` and ``options`` again and nothing is compiled again.

    >>> import jax, numpy as np, optax, d3mjax
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 500)
    >>> attribute = np.where(rng.random(500) < 0.9, y, 1 - y)
    >>> x = np.stack([y + rng.normal(size=500), attribute], 1).astype(np.float32)
    >>> train = d3mjax.Split(x[:200], y[:200], np.full(200, -1), np.arange(200))
    >>> flipped = np.stack([x[:, 0], 1 - x[:, 1]], 1)
    >>> parts = np.arange(200, 500).reshape(3, 100)
    >>> pairs, selection, report = (d3mjax.Pairs(x[i], flipped[i], y[i]) for i in parts)
    >>> model = d3mjax.mlp((8,), 2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(), optax.adam(0.05), d3mjax.shuffled(), batch_size=50
    ... )
    >>> variables, _ = d3mjax.train_many(trainer, jax.random.split(jax.random.key(0), 1), train, np.ones(200), 100)
    >>> variables = jax.tree.map(lambda a: a[0], variables)
    >>> result = d3mjax.unlearn(model, variables, train, pairs, selection)
    >>> before, after = (
    ...     d3mjax.unlearning.bias.counterfactual_bias(model, v, report) for v in (variables, result.variables)
    ... )
    >>> bool(after < before / 2)
    True

    Raises:
      ValueError: pairs that `bias.check_pairs` refuses; no dense layer of C outputs, or several; the refit did not
        reach a minimum.
    """
    num_classes = jax.eval_shape(model.apply, variables, jax.tree.map(lambda a: a[:1], train.x))[0].shape[-1]
    for some in (pairs, selection):
        bias.check_pairs(some, num_classes)
    weights = jnp.ones(len(train.y)) if weights is None else jnp.asarray(weights)
    result = _unlearned(variables, train, pairs, selection, weights, model, num_classes, options)
    edits.check_stationary(result.info.stationarity)
    return result


@partial(jax.jit, static_argnames=("model", "num_classes", "options"))
def _unlearned(variables, train, pairs, selection, weights, model, num_classes, options):
    path = options.path or last_layer.find(variables["params"], num_classes)
    see = features_of(model, variables, path, microbatch=options.microbatch)
    train, pairs, selection = (see(rows) for rows in (train, pairs, selection))
    head, settings = head_at(variables, path), {"damping": options.damping, "weights": weights}
    editable = last_layer_of(head, train, num_classes, **settings)
    before = bias.measure(editable.model, {"params": head}, selection)
    editable = editable._replace(problem=edits.refit(editable.problem, editable.inverse, steps=options.refits))
    params = options.edit(editable, pairs)
    tried = paths.measure_each(editable.model, editable.variables, params, selection)
    step = paths.least_bias(tried, before, tolerance=options.tolerance)
    take = lambda tried, start: jnp.where(step < 0, start, tried[step])
    chosen = jax.tree.map(take, params, head)["Dense_0"]
    linear, width = Linear(chosen["kernel"].T, chosen["bias"]), len(chosen["kernel"])
    edited = last_layer.with_head(variables, path, linear, last_layer.Scale(jnp.zeros(width), jnp.ones(width)))
    info = Info(step, tried, edits.stationarity(editable.problem))
    return Unlearned(edited, before, jax.tree.map(take, tried, before), info)


def features_of(
    model: Model, variables: PyTree, path: last_layer.Path, *, microbatch: int | None = LARGEST
) -> Callable[[Any], Any]:
    """A function that puts the features of the last layer in place of ``x`` and ``flipped`` of a `Split` or `Pairs`."""

    def see(rows):
        inputs = {name: getattr(rows, name) for name in ("x", "flipped") if name in rows._fields}
        features = {
            name: last_layer.features(model, variables, x, path, microbatch=microbatch) for name, x in inputs.items()
        }
        return rows._replace(**features)

    return see


def head_at(variables: PyTree, path: last_layer.Path) -> PyTree:
    """Parameters of the dense layer at ``path``, as those of `dense.linear`."""
    return {"Dense_0": reduce(operator.getitem, path, variables["params"])}


def last_layer_of(
    params: PyTree,
    features: Split,
    num_classes: int,
    *,
    damping: float,
    curvature: Callable = curvatures.ggn,
    weights: Float[AnyArray, "n"] | None = None,
) -> Editable:
    """The last layer on the training features, ``damping`` against their mean loss; solves are exact."""
    model, variables = dense.linear(num_classes), {"params": params}
    options = influence.Options(damping=damping, curvature=curvature, microbatch=2000)
    problem = influence.problem_of(model, variables, features, weights=weights, options=options)
    return Editable(model, variables, problem, by_last_layer())


def network_of(
    model: Model, variables: PyTree, train: Split, inverse: curvatures.Inverse, *, damping: float, most: int
) -> Editable:
    """All parameters of a network, the curvature that of the first ``most`` training examples times n / ``most``.

    A product with the curvature costs passes over them; steps on pairs need no other gradients. The training set is in
    random order.
    """
    rows = jax.tree.map(lambda a: a[:most], train)
    n, count = len(train.y), len(rows.y)
    weights = jnp.full(count, n / count, jnp.float32)
    options = influence.Options(damping=damping, microbatch=1000)
    problem = influence.problem_of(model, variables, rows, weights=weights, options=options)
    return Editable(model, variables, problem, inverse)
