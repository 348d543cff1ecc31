"""Datamodels fitted to published masks and margins, such as those of `MadryLab/datamodels-data`.

Claim:    a fit to the first rows of published matrices predicts later rows, whose models no fit has seen.
Command:  python -m experiments.datamodels.published train_masks_50pct.npy test_margins_50pct.npy --models 10000
Expected: a table with the rank correlation on held-out rows, and weights in `datamodels.npz`; not run on the published
          files, which have 50,000 columns and up to 1,500,000 rows.
Device:   memory for (models + heldout) x (examples + 2 targets) bytes and the solver's float32 copy of the masks.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax import metrics
from d3mjax.attribution import datamodels
from d3mjax.linalg import lasso
from d3mjax.runtime import bank, store
from d3mjax.types import Linear

METHODS = ("ridge", "LASSO")


def fit(
    masks: Path,
    margins: Path,
    *,
    completed: Path | None = None,
    models: int = 10_000,
    heldout: int = 1000,
    targets: int = 100,
    lambdas: int = 30,
) -> dict[str, tuple[Linear, dict[str, Any]]]:
    """Datamodels of the first targets by each method, and facts on the ``heldout`` rows after the first ``models``.

    An eighth of the fitted rows chooses the penalties. ``lds``: mean over targets, and a 95 % interval over rows and
    targets; each row is one training, so its noise lowers the correlation. Raises ``ValueError`` where files are not
    such matrices, or have too few rows.
    """
    published = bank.read_published(masks, margins, completed=completed)
    if models < 16 or heldout < 8 or models + heldout > len(published.ids):
        raise ValueError(
            f"models, heldout: found {models} and {heldout}, expected at least 16 and 8, at most {len(published.ids)} "
            "in all"
        )
    part = bank.take(published, published.ids[: models + heldout])
    x, y = bank.masks(part), bank.outputs(part)[:, :targets].astype(np.float32)
    (x, unseen), (y, truth) = np.split(x, [models]), np.split(y, [models])
    chooses = np.arange(models // 8)
    datamodels.check_masks(x, y, num_fit=models - len(chooses))
    options = lasso.Options(num_lambdas=lambdas, smallest=0.01, tolerance=1e-3, max_steps=200)
    ridge = lambda x, y: datamodels.fit_ridge_heldout(x, y, datamodels.default_lambdas(x), chooses)
    fits = (jax.jit(ridge), jax.jit(partial(datamodels.fit_lasso, heldout=chooses, options=options)))
    results = {}
    for method, run in zip(METHODS, fits, strict=True):
        linear, info = run(x, y)
        predictions = metrics.subset_predictions(linear.weight, jnp.asarray(unseen))
        lds = np.nanmean(metrics.spearman(predictions.T, jnp.asarray(truth.T)))
        interval = metrics.lds_interval(jax.random.key(0), predictions, jnp.asarray(truth), num_resamples=300)
        results[method] = linear, {"lds": [float(lds), *map(float, interval)], "r2": float(np.nanmean(info.r2))}
    return results


def main(
    masks: tyro.conf.Positional[Path],
    margins: tyro.conf.Positional[Path],
    completed: Path | None = None,
    models: int = 10_000,
    heldout: int = 1000,
    targets: int = 100,
    lambdas: int = 30,
    out: Path = Path("datamodels.npz"),
) -> None:
    """Fit, print the scores on held-out rows, and store weights [t n] and biases [t] of each method in ``out``."""
    options = {"models": models, "heldout": heldout, "targets": targets, "lambdas": lambdas}
    results = fit(masks, margins, completed=completed, **options)
    for method, (_, facts) in results.items():
        mean, low, high = facts["lds"]
        print(f"{method}: LDS {mean:.3f} ({low:.3f} to {high:.3f}), R2 on choosing rows {facts['r2']:.3f}")
    arrays = {f"{method}/{name}": a for method, (linear, _) in results.items() for name, a in linear._asdict().items()}
    store.write_arrays(out, arrays)
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
