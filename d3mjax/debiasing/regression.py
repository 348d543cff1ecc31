"""D3M for numbers as labels: what takes the place of accuracies, and how examples are attributed.

A regression has no classes, so nothing that goes by them applies: class offsets, class weights, subsets and removals
balanced by class are left out wherever labels are floats (`types.is_regression`). Groups are as ever.

    loss of a group        half its mean squared error, over the variance of the training labels
    output of a target     minus half its squared error
    a choice goes by       the largest root mean square error of a group

All but the loss is in the unit of the labels. Scores do not depend on it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from d3mjax import metrics
from d3mjax.attribution import gradients, outputs, trak
from d3mjax.debiasing import selection
from d3mjax.types import AnyArray, Data

HALVINGS = 40  # of the range of shifts: 12 digits


class Errors(NamedTuple):
    """How one trained model of a regression does; a leading model axis where there are many. Smaller is better."""

    losses: Float[Array, "*m G"]  # of each target group, without unit: 1/2 where the mean label is predicted for all
    selection: Float[Array, "*m G"]  # root mean square errors of the groups on the selection split
    test: Float[Array, "*m G"]  # the same on the test split
    average: Float[Array, "*m"]  # root mean square error on the test split
    test_absolute: Float[Array, "*m G"]  # mean absolute errors of the groups on the test split
    average_absolute: Float[Array, "*m"]
    residuals: Float[Array, "*m u"]  # label less prediction of each example of the test split


def judge(
    target: Float[AnyArray, "t 1"],
    selected: Float[AnyArray, "s 1"],
    test: Float[AnyArray, "u 1"],
    data: Data,
    num_groups: int,
) -> Errors:
    """Target losses, and selection and test errors by group; NaN for an empty group.

    From the predictions on the target, selection and test split, whose labels ``data`` holds.
    """
    pairs = zip((target, selected, test), (data.target, data.selection, data.test), strict=True)
    scoring, selecting, reported = (outputs.residual(jnp.asarray(logits), split.y) for logits, split in pairs)
    squares = metrics.group_means(scoring**2, data.target.group, num_groups)
    return Errors(
        squares / (2 * jnp.var(jnp.asarray(data.train.y))),
        metrics.group_rms_errors(selecting, data.selection.group, num_groups),
        metrics.group_rms_errors(reported, data.test.group, num_groups),
        jnp.sqrt((reported**2).mean()),
        metrics.group_absolute_errors(reported, data.test.group, num_groups),
        jnp.abs(reported).mean(),
        reported,
    )


def choose(tried: Mapping[str, Errors], group: Int[AnyArray, "t"], *, tolerance: float = 0.02) -> str:
    """The candidate of smallest average error among those whose worst group is nearly the best.

    Nearly: an error on the selection split at most ``1 + tolerance`` times the smallest one. Errors are means over the
    retrained models; the average weighs groups by their size ``group`` in the selection split.
    """
    errors = np.stack([np.asarray(each.selection).mean(0) for each in tried.values()])
    least = np.nanmax(errors, axis=1).min()
    counts = np.bincount(group, minlength=errors.shape[1])
    average = np.sqrt(np.where(counts > 0, errors, 0) ** 2 @ counts / counts.sum())
    return list(tried)[int(selection.choose(-errors / least, -average, tolerance=tolerance))]


def in_unit(errors: Errors, unit: float) -> Errors:
    """Errors of standardised labels in the label's unit, of which ``unit`` is a deviation; losses have none."""
    return Errors(errors.losses, *(unit * each for each in errors[1:]))


def shift(residuals: Float[AnyArray, "t"], group: Int[AnyArray, "t"], num_groups: int) -> Float[Array, ""]:
    """The number added to all predictions under which the largest mean squared error of a group is smallest.

    What class offsets are for classes: it needs no training. With mean residual m_g and mean square q_g the error of
    group g is ``q_g - 2 c m_g + c^2`` under the shift c. The largest of these parabolas falls towards the bottom m_g of
    the one on top, so halving the range of the bottoms ends at the minimum, to rounding. Empty groups, and examples of
    group -1, count nowhere; without examples the shift is 0.

    >>> import numpy as np
    >>> from d3mjax.debiasing import regression
    >>> residuals, group = np.array([0.0, 0.0, 4.0]), np.array([0, 0, 1])
    >>> float(regression.shift(residuals, group, 2))  # midway: both groups have an error of 2
    2.0
    """
    residuals = jnp.asarray(residuals)
    means, squares = (metrics.group_means(a, group, num_groups) for a in (residuals, residuals**2))

    def halve(_, bracket):
        middle = bracket.mean()
        top = means[jnp.nanargmax(squares - 2 * middle * means)]
        return jnp.where(top > middle, bracket.at[0].set(middle), bracket.at[1].set(middle))

    bracket = jnp.nan_to_num(jnp.stack([jnp.nanmin(means), jnp.nanmax(means)]))
    return jax.lax.fori_loop(0, HALVINGS, halve, bracket).mean()


def fits(residuals: Float[AnyArray, "n"], *, z: float = 3.0) -> Bool[Array, "n"]:
    """Whether a label is near its prediction: the residual at most ``z`` robust deviations from the median residual.

    One deviation is ``1.4826 median |r - median r|``. A label that no model comes near is a suspect of being wrong.
    """
    residuals = jnp.asarray(residuals)
    distance = jnp.abs(residuals - jnp.median(residuals))
    return distance <= z * 1.4826 * jnp.median(distance)


@lru_cache
def trak_options(options: trak.Options) -> trak.Options:
    """The options of TRAK for minus half the squared error of the targets, the residual being the train-side factor."""
    return options._replace(
        output=gradients.prediction_output,
        target_output=gradients.negative_squared_error_output,
        factor=gradients.residual_factor,
    )
