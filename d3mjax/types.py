"""What everybody shares: the letters of shapes, the sign law, and the few tuples that cross rooms.

Letters in shapes: ``n`` train examples, ``t`` target examples, ``m`` models, ``c`` checkpoints, ``p`` projected
dimension, ``G`` groups, ``C`` classes, ``l`` lambdas, ``b`` batch, ``s`` steps.

The sign law. An attribution ``tau[t, n]`` has axes ``[target, train]``, and a positive entry means that *including*
the training example raises the target's output. Every score over the training set follows it: larger is more
useful, removal takes the smallest. Other conventions are converted where they enter, nowhere else.
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

AnyArray = jax.Array | np.ndarray
"""An array on host or device; functions that take one convert it once, at entry."""


_Class = TypeVar("_Class", bound=type)


def checked_names(cls: _Class) -> _Class:
    """Decorator of a NamedTuple of options: a wrong name raises TypeError with the nearest right one.

    >>> from d3mjax.attribution import trak
    >>> trak.Options(dampin=0.01)
    Traceback (most recent call last):
    TypeError: Options: found the name 'dampin', expected a field such as 'damping'
    """
    fields, make = cls._fields, cls.__new__

    @functools.wraps(make)
    def checked(cls: type, *values: Any, **named: Any) -> Any:
        for name in named.keys() - set(fields):
            (nearest,) = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
            raise TypeError(f"{cls.__name__}: found the name {name!r}, expected a field such as {nearest!r}")
        return make(cls, *values, **named)

    cls.__new__ = checked
    return cls


class Split(NamedTuple):
    """Examples in memory: ``x`` is any pytree of arrays with leading axis ``n``; ``id`` is stable across runs."""

    x: PyTree[AnyArray]  # [n, ...]
    y: AnyArray  # Int[n], classes 0..C-1; or Float[n], the numbers of a regression
    group: AnyArray  # Int[n], groups 0..G-1; -1 where unknown
    id: AnyArray  # Int[n], unique


def is_regression(y: AnyArray) -> bool:
    """Whether labels are numbers to predict, floats, rather than classes, which are integers."""
    return np.issubdtype(np.result_type(y), np.floating)


def classes_of(y: AnyArray) -> AnyArray:
    """Classes as they are, and one class for all examples of a regression: it has no classes to balance or to keep."""
    return np.zeros(y.shape, np.int32) if is_regression(y) else y


class Data(NamedTuple):
    """The four disjoint splits of a task: what is trained on, scored on, selected on (k, lambda), and reported."""

    train: Split
    target: Split
    selection: Split
    test: Split


class Pairs(NamedTuple):
    """Examples with the attribute as it is and flipped; both have the label ``y``."""

    x: PyTree[AnyArray]  # [p, ...]
    flipped: PyTree[AnyArray]  # [p, ...]
    y: AnyArray  # Int[p]


class Table(NamedTuple):
    """Rows as they were recorded, before any encoding: what errors are planted in, found in and repaired in.

    A categorical column holds positions in its ``levels``; a row that has none of them has -1, a number that is
    missing is NaN. The order of columns is that of ``columns``.
    """

    columns: dict[str, np.ndarray]  # by name, Float64[n] for numbers and Int32[n] for categories
    levels: dict[str, tuple[str, ...]]  # of the categorical columns alone
    id: np.ndarray  # Int[n], unique


class Model(NamedTuple):
    """A network as two pure functions. ``variables["params"]`` is differentiated, all other collections are state."""

    init: Callable[..., Any]  # (key, x [b, ...]) -> variables
    apply: Callable[..., Any]  # (variables, x [b, ...], *, train=False) -> (logits [b, C], variables)


class Objective(NamedTuple):
    """A training loss with optional state (GroupDRO's group weights); ``value`` sees one batch."""

    init: Callable[[], Any]  # () -> objective_state
    value: Callable[..., Any]  # (objective_state, logits [b C], batch: Split, weight [b]) -> (loss, objective_state)


class Sampler(NamedTuple):
    """Which examples each step sees, as a pure function of ``(key, weights, step)``, so any step can be recomputed."""

    prepare: Callable[..., Any]  # (weights [n]) -> plan
    draw: Callable[..., Any]  # (key, plan, steps [s], batch_size) -> (index [s, b], weight [s, b]); index -1 is padding


class TrainState(NamedTuple):
    """All that a training run carries from step to step."""

    key: jax.Array  # identity of the model
    step: jax.Array  # Int[]
    variables: Any
    opt_state: Any
    objective_state: Any


class TrainInfo(NamedTuple):
    """What a training run shows: one number a step."""

    loss: jax.Array  # Float[s]


class Trainer(NamedTuple):
    """One training run as traceable functions; resuming is calling ``run`` again on the state it returned.

    ``run`` is ``step`` on each of the batches of ``draw``.
    """

    init: Callable[..., TrainState]  # (key, x [b, ...]) -> TrainState
    run: Callable[..., tuple[TrainState, TrainInfo]]  # (state, split, weights [n], num_steps) -> (state, info)
    draw: Callable[..., Any]  # (state, weights [n], num_steps) -> (index [s b], weight [s b]); index -1 is padding
    step: Callable[..., tuple[TrainState, jax.Array]]  # (state, split, index [b], weight [b]) -> (state, loss)


class Linear(NamedTuple):
    """Datamodels: ``output[t] = mask @ weight[t] + bias[t]``; a leading ``l`` axis where several lambdas are kept."""

    weight: jax.Array  # Float[*l t n]
    bias: jax.Array  # Float[*l t]


class Solve(NamedTuple):
    """What a solver returns: the value, the relative residual it reached, and the steps it took."""

    value: jax.Array
    residual: jax.Array
    steps: jax.Array
