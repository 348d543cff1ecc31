"""Datamodels: linear maps from the subset a model was trained on to outputs for target examples.

    outputs[j, t]  ~  sum_n masks[j, n] weight[t, n] + bias[t]

``masks [m n]`` (booleans, or numbers 0/1) say which train examples model ``j`` saw; ``outputs [m t]`` are its outputs.
``weight`` is an attribution: axes ``[target, train]``, positive where including the train example raises the output, in
units of the output per example. Fitting means of outputs over groups, ``[m G]``, gives the group columns directly: at
one lambda ridge is linear in the outputs, so that fit *equals* the mean of the rows of ``weight`` over each group.

Where every mask selects equally many examples, adding a constant to all weights of a target only moves its bias: the
*level* of the weights is not identified, and ridge puts it at exactly 0 (see `level_is_identified`). Rankings do not
care; a rule such as "drop what is negative" does.

Sources: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022; ridge as in `d3mjax.linalg.ridge`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from d3mjax.linalg import iterative, lasso, ridge
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Linear


class RidgeInfo(NamedTuple):
    """How well each target was predicted on masks that were not fitted; NaN where it is constant over them."""

    mse: jax.Array  # Float[l t], mean squared error at every lambda
    chosen: jax.Array  # Float[t], the lambda of the smallest error
    r2: jax.Array  # Float[t], 1 - mse / (mean squared distance to the mean of the fitting rows), at that lambda
    correlation: jax.Array  # Float[t], Pearson, at that lambda
    residual: jax.Array  # Float[], largest relative residual of the solves; 0 from an eigendecomposition


class LassoInfo(NamedTuple):
    """As `RidgeInfo`, and how far the fit is from optimal; errors at penalties below a stopped search are infinite."""

    mse: jax.Array  # Float[l t]
    chosen: jax.Array  # Float[t]
    r2: jax.Array  # Float[t]
    correlation: jax.Array  # Float[t]
    support: jax.Array  # Int[t], number of weights that are not zero
    gap: jax.Array  # Float[t], see `d3mjax.linalg.lasso.Fit`


def default_lambdas(masks: Shaped[AnyArray, "m n"], *, num: int = 13) -> Float[Array, " l"]:
    """``num`` penalties, 1e-3 to 1e3 times ``v n / m``; ``v = mean of alpha (1 - alpha)`` is the variance of a column.

    Why: if weights are independent with variance ``s``, outputs vary by ``signal = s v n`` because of the masks and by
    ``noise`` because of everything else, and the best penalty is ``noise / (s m) = (v n / m) * noise / signal``. The
    grid spans that ratio, an R^2 of the true weights from .999 down to .001.
    """
    rate = jnp.mean(jnp.asarray(masks), axis=0, dtype=jnp.float32)
    num_models, num_examples = masks.shape
    return jnp.mean(rate * (1 - rate)) * num_examples / num_models * jnp.logspace(-3, 3, num)


def fit_ridge(
    masks: Shaped[AnyArray, "m n"], outputs: Float[AnyArray, "m t"], lambdas: Float[AnyArray, " l"]
) -> tuple[Linear, RidgeInfo]:
    """Ridge datamodels at every lambda, weight ``[l t n]`` and bias ``[l t]``, and their leave-one-out errors.

    Minimises ``(1/m) ||outputs - masks w - bias||^2 + lam ||w||^2``, so ``lam`` compares with the variance of a mask
    column, ``alpha (1 - alpha)``. Computed in float32, or float64 if the outputs are. The errors are those of every
    mask predicted from all others, each target at its best lambda: do not use them if masks repeat (several seeds).

    >>> import numpy as np
    >>> from d3mjax import datamodels
    >>> rng = np.random.default_rng(0)
    >>> masks = rng.random((200, 10)) < 0.5
    >>> outputs = 2.0 * masks[:, :1] - 1.0 * masks[:, 3:4] + rng.normal(size=(200, 1))  # 0 helps, 3 harms
    >>> linear, info = datamodels.fit_ridge(masks, outputs, np.array([0.01, 0.1]))
    >>> linear.weight.shape, linear.bias.shape, info.mse.shape
    ((2, 1, 10), (2, 1), (2, 1))
    """
    outputs = _at_least_float32(outputs)
    lambdas = jnp.asarray(lambdas, outputs.dtype)
    factor = ridge.factor(masks, dtype=outputs.dtype)
    compare = lambda residual: (jnp.mean(residual**2, axis=0), _correlation(outputs, outputs - residual))
    mse, correlation = ridge.leave_one_out(factor, outputs, lambdas, look=compare)
    best = jnp.argmin(mse, axis=0)
    at_best = lambda a: jnp.take_along_axis(a, best[None, :], axis=0)[0]
    # A mean without row i is off the row by m / (m - 1) times its distance to the mean of all.
    spread = jnp.var(outputs, axis=0) * (outputs.shape[0] / (outputs.shape[0] - 1)) ** 2
    info = RidgeInfo(mse, lambdas[best], 1 - at_best(mse) / spread, at_best(correlation), jnp.zeros((), mse.dtype))
    return ridge.solve(factor, outputs, lambdas), info


def fit_ridge_heldout(
    masks: Shaped[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
    lambdas: Float[AnyArray, " l"],
    heldout: Int[AnyArray, " v"],
    *,
    shared: bool = True,
) -> tuple[Linear, RidgeInfo]:
    """Ridge datamodels, weight ``[t n]`` and bias ``[t]``, at the lambda that best predicts the rows ``heldout``.

    Lambda minimises the squared error on those rows of a fit to all others, averaged over targets if ``shared``, else
    for each target by itself; the weights returned are then fitted to all rows. The total penalty ``lam m`` (``m``
    counts all rows) is the same in both fits. ``heldout`` are distinct row indices; rows with the same mask (several
    seeds) belong on one side. One eigendecomposition does all of it, and nothing larger than ``[m n]``, ``[l v t]`` or
    ``[t n]`` is formed.

    >>> import numpy as np
    >>> from d3mjax import datamodels
    >>> rng = np.random.default_rng(0)
    >>> masks = rng.random((200, 10)) < 0.5
    >>> outputs = 2.0 * masks[:, :1] - 1.0 * masks[:, 3:4] + rng.normal(size=(200, 1))  # 0 helps, 3 harms
    >>> linear, info = datamodels.fit_ridge_heldout(masks, outputs, datamodels.default_lambdas(masks), np.arange(40))
    >>> int(linear.weight[0].argmax()), int(linear.weight[0].argmin()), bool(info.r2[0] > 0.3)
    (0, 3, True)
    """
    outputs, heldout = _at_least_float32(outputs), jnp.asarray(heldout)
    lambdas = jnp.asarray(lambdas, outputs.dtype)
    factor = ridge.factor(masks, dtype=outputs.dtype)
    residuals = ridge.leave_out(factor, outputs, lambdas, heldout)
    mse = jnp.mean(residuals**2, axis=1)
    best = jnp.argmin(jnp.mean(mse, axis=1, keepdims=True) if shared else mse, axis=0)
    best = jnp.broadcast_to(best, mse.shape[1:])
    chosen = lambdas[best]

    truth = outputs[heldout]
    prediction = truth - jnp.take_along_axis(residuals, best[None, None, :], axis=0)[0]
    num_fit = outputs.shape[0] - heldout.shape[0]
    fitted_mean = (jnp.sum(outputs, axis=0) - jnp.sum(truth, axis=0)) / num_fit
    spread = jnp.mean((truth - fitted_mean[None, :]) ** 2, axis=0)
    r2 = 1 - jnp.take_along_axis(mse, best[None, :], axis=0)[0] / spread
    info = RidgeInfo(mse, chosen, r2, _correlation(truth, prediction), jnp.zeros((), mse.dtype))
    return ridge.solve_each(factor, outputs, chosen), info


def fit_ridge_few(
    masks: Shaped[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
    lambdas: Float[AnyArray, " l"],
    heldout: Int[AnyArray, " v"],
    *,
    rtol: float = 1e-4,
    max_steps: int = 200,
) -> tuple[Linear, RidgeInfo]:
    """`fit_ridge_heldout` with one shared lambda for few targets, such as group means, by conjugate gradients.

    Shifted conjugate gradients: all lambdas of a target from one Krylov space, some tens of products with the masks
    where an eigendecomposition costs about ``10 min(m, n)`` of them. Look at ``info.residual``, of ``rtol`` if all
    solves ended within ``max_steps``. Reverse-mode derivatives do not exist (`lax.while_loop`).
    """
    outputs, masks = _at_least_float32(outputs), jnp.asarray(masks)
    lambdas, num_models = jnp.asarray(lambdas, outputs.dtype), masks.shape[0]
    fitting = jnp.ones(num_models, outputs.dtype).at[jnp.asarray(heldout)].set(0)

    def regress(rows, lambdas):  # weights [t l n] of a fit to the rows of weight one, and their centres
        share = rows / jnp.sum(rows)
        mean_x, mean_y = share @ masks.astype(outputs.dtype), share @ outputs
        centred = rows[:, None] * (masks - mean_x[None])
        moments = dot(centred.T, outputs - mean_y[None])
        gram = lambda v: dot(centred.T, dot(centred, v))
        solve = lambda b: iterative.shifted_cg(gram, b, lambdas * num_models, rtol=rtol, max_steps=max_steps)
        return jax.vmap(solve)(moments.T), mean_x, mean_y

    fit, mean_x, mean_y = regress(fitting, lambdas)
    truth = outputs[jnp.asarray(heldout)]
    left = masks[jnp.asarray(heldout)].astype(outputs.dtype) - mean_x[None]
    prediction = mean_y[None, None] + jnp.einsum("vn,tln->lvt", left, fit.value, precision="highest")
    mse = jnp.mean((truth[None] - prediction) ** 2, axis=1)
    best = jnp.argmin(jnp.mean(mse, axis=1))
    spread = jnp.mean((truth - mean_y[None]) ** 2, axis=0)
    chosen = jnp.broadcast_to(lambdas[best], spread.shape)
    final, mean_x, mean_y = regress(jnp.ones(num_models, outputs.dtype), lambdas[best][None])
    weight, residual = final.value[:, 0], jnp.maximum(jnp.max(fit.residual), jnp.max(final.residual))
    info = RidgeInfo(mse, chosen, 1 - mse[best] / spread, _correlation(truth, prediction[best]), residual)
    return Linear(weight, mean_y - weight @ mean_x), info


def fit_lasso(
    masks: Shaped[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
    heldout: Int[AnyArray, " v"],
    *,
    options: lasso.Options = lasso.Options(),
    moments: Callable[..., lasso.Moments] = lasso.moments,
    map_targets: Callable[..., PyTree] = lasso.map_targets,
) -> tuple[Linear, LassoInfo]:
    """LASSO datamodels, weight ``[t n]`` and bias ``[t]``, each target at the penalty that best predicts ``heldout``.

    Minimises ``(1/2m) ||outputs - z w - bias||^2 + lam ||w||_1`` on standardised mask columns z. ``lam`` goes down in
    ``options.num_lambdas`` geometric steps from where all weights are zero to ``options.smallest`` times that, on the
    rows that are not held out. A target's search ends when its held-out error has been above its least four times in a
    row, a block's with its last target. The weights returned are fitted to all rows, on the scale of raw masks; a
    target that is constant over the rows not held out gets weight 0, and its mean as bias. ``heldout`` are distinct row
    indices; rows with the same mask (several seeds) belong on one side. Memory: the Gram ``[n n]`` and some
    ``[options.target_block n]``, beside the inputs and ``[t n]``. ``moments`` and ``map_targets`` may spread rows and
    targets over devices (`runtime.sharded.fit_lasso`).

    Source: Ilyas et al., 2022, equation 3 (their ``lam`` is twice this one).

    >>> import numpy as np
    >>> from d3mjax import datamodels
    >>> rng = np.random.default_rng(0)
    >>> masks = rng.random((200, 10)) < 0.5
    >>> outputs = 2.0 * masks[:, :1] - 1.0 * masks[:, 3:4] + rng.normal(size=(200, 1))  # 0 helps, 3 harms
    >>> from d3mjax.linalg import lasso
    >>> linear, info = datamodels.fit_lasso(masks, outputs, np.arange(40), options=lasso.Options(num_lambdas=20))
    >>> int(linear.weight[0].argmax()), int(linear.weight[0].argmin()), bool(info.gap[0] < 1e-4)
    (0, 3, True)
    """
    masks, outputs, heldout = jnp.asarray(masks), _at_least_float32(outputs), jnp.asarray(heldout)
    fitting = moments(masks, outputs, keep=jnp.ones(masks.shape[0], bool).at[heldout].set(False))
    everything = moments(masks, outputs)
    rows = (masks[heldout].astype(outputs.dtype) - fitting.mean[None]) / fitting.scale[None]

    def search(moments, truth):
        """Held-out predictions ``[t v]`` at the best penalty, the penalty, and all errors ``[t l]``."""

        def one(state, penalty):
            weight, least, best, chosen, risen = state
            going = risen < 4
            again = lambda: lasso.solve(moments, penalty, start=weight, options=options).weight
            weight = jax.lax.cond(jnp.any(going), again, lambda: weight)
            prediction = moments.target_mean[:, None] + dot(weight, rows.T)
            mse = jnp.where(going, jnp.mean((truth - prediction) ** 2, axis=1), jnp.inf)
            better = mse < least
            best, chosen = jnp.where(better[:, None], prediction, best), jnp.where(better, penalty, chosen)
            return (weight, jnp.minimum(mse, least), best, chosen, jnp.where(better, 0, risen + 1)), mse

        grid = lasso.penalties(moments, options.num_lambdas, smallest=options.smallest)
        nowhere = jnp.full_like(moments.power, jnp.inf)
        start = (jnp.zeros_like(moments.cross), nowhere, truth, grid[0], jnp.zeros(truth.shape[0], jnp.int32))
        (_, _, best, chosen, _), mse = jax.lax.scan(one, start, grid)
        return best, chosen, mse.T

    def refit(moments, penalty):
        fit = lasso.solve(moments, penalty, options=options)
        return fit.weight, fit.gap

    truth = outputs[heldout]
    best, chosen, mse = map_targets(search, fitting, truth.T, block=options.target_block)
    # A target that is constant over the fitted rows has no penalty to choose: all weights are zero.
    chosen = jnp.where(fitting.power > 0, chosen, lasso.largest_penalty(everything))
    weight, gap = map_targets(refit, everything, chosen, block=options.target_block)
    spread = jnp.mean((truth - fitting.target_mean[None]) ** 2, axis=0)
    r2 = 1 - jnp.min(mse, axis=1) / spread
    info = LassoInfo(mse.T, chosen, r2, _correlation(truth, best.T), jnp.sum(weight != 0, axis=1), gap)
    return lasso.unstandardise(everything, weight), info


def predict(linear: Linear, masks: Shaped[AnyArray, "m n"]) -> Float[Array, "*l m t"]:
    """Outputs predicted for models trained on ``masks``; a leading ``l`` axis of ``linear`` stays in front."""
    weight = jnp.swapaxes(linear.weight, -1, -2)
    masks = jnp.asarray(masks).astype(weight.dtype)
    return dot(masks, weight) + linear.bias[..., None, :]


def difference_of_means(masks: Shaped[AnyArray, "m n"], outputs: Float[AnyArray, "m t"]) -> Float[Array, "t n"]:
    """``mean(outputs | in) - mean(outputs | out)`` for each train example, the baseline; 0 for one always in or out.

    With ``c`` masks that hold the example this is ``masks' (outputs - mean) * m / (c (m - c))``: what regression would
    give if the columns were uncorrelated. Source: the memorization and influence estimators of Feldman and Zhang, 2020.
    """
    outputs = _at_least_float32(outputs)
    masks = jnp.asarray(masks).astype(outputs.dtype)
    centred = outputs - jnp.mean(outputs, axis=0, keepdims=True)
    count = jnp.sum(masks, axis=0)
    pairs = count * (masks.shape[0] - count)
    scale = jnp.where(pairs > 0, masks.shape[0] / jnp.maximum(pairs, 1), 0)
    return dot(centred.T, masks) * scale[None, :]


def level_is_identified(masks: Shaped[AnyArray, "m n"]) -> Bool[Array, ""]:
    """Whether the masks differ in size; if not, a constant added to all weights is the same as a change of bias."""
    size = jnp.sum(jnp.asarray(masks), axis=1)
    return jnp.any(size != size[0])


def check_masks(
    masks: Shaped[AnyArray, "m n"], outputs: Shaped[AnyArray, "..."], *, num_fit: int | None = None
) -> None:
    """Check masks and outputs on the host before a fit; ``num_fit`` is the number of rows that are not held out.

    Raises:
      ValueError: numbers of rows differ; masks with entries other than 0 and 1, or that select all or no examples
        (names the models); outputs that are not finite (names the models) or constant over models (names the targets);
        ``num_fit`` is not in ``2..m-1``.
    """
    masks, outputs = np.asarray(masks), np.asarray(outputs)
    if outputs.ndim != 2 or outputs.shape[0] != masks.shape[0]:
        raise ValueError(
            f"outputs: found shape {outputs.shape}, expected [m, t] with m = {masks.shape[0]} rows as in masks"
        )
    if masks.dtype != bool and not np.isin(masks, (0, 1)).all():
        raise ValueError("masks: found entries other than 0 and 1, expected booleans or 0/1")
    size = np.count_nonzero(masks, axis=1)
    _refuse(size == 0, "masks: found models {} trained on no example, expected at least one")
    _refuse(size == masks.shape[1], "masks: found models {} trained on all examples, expected a proper subset")
    _refuse(np.any(~np.isfinite(outputs), axis=1), "outputs: found non-finite values for models {}, expected finite")
    _refuse(
        np.all(outputs == outputs[:1], axis=0), "outputs: found targets {} constant over models, expected variation"
    )
    if num_fit is not None and not 2 <= num_fit < masks.shape[0]:
        raise ValueError(
            f"num_fit: found {num_fit}, expected from 2 to {masks.shape[0] - 1}, with {masks.shape[0]} masks in all"
        )


def _refuse(bad: Bool[np.ndarray, " k"], message: str, show: int = 5) -> None:
    where = np.flatnonzero(bad)
    if where.size:
        rest = f" and {where.size - show} more" if where.size > show else ""
        raise ValueError(message.format(f"{where[:show].tolist()}{rest}"))


def _at_least_float32(outputs):
    outputs = jnp.asarray(outputs)
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _correlation(a: Float[Array, "v t"], b: Float[Array, "v t"]) -> Float[Array, " t"]:
    a, b = a - jnp.mean(a, axis=0, keepdims=True), b - jnp.mean(b, axis=0, keepdims=True)
    return jnp.sum(a * b, axis=0) / jnp.sqrt(jnp.sum(a**2, axis=0) * jnp.sum(b**2, axis=0))
