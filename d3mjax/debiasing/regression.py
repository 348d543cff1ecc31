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

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d3mjax import metrics
from d3mjax.attribution import gradients, outputs, trak
from d3mjax.debiasing import selection
from d3mjax.types import AnyArray, Data


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


@lru_cache
def trak_options(options: trak.Options) -> trak.Options:
    """The options of TRAK for minus half the squared error of the targets, the residual being the train-side factor."""
    return options._replace(
        output=gradients.prediction_output,
        target_output=gradients.negative_squared_error_output,
        factor=gradients.residual_factor,
    )
