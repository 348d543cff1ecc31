"""SMOTE through imbalanced-learn (Chawla et al., 2002): new examples on segments between neighbours of one cell."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from imblearn.over_sampling import SMOTE, SMOTENC
from jaxtyping import Float, Int

from d3mjax.types import AnyArray


def oversample(
    x: Float[AnyArray, "n p"],
    cell: Int[AnyArray, " n"],
    seed: int,
    *,
    categorical: Sequence[slice] = (),
    neighbours: int = 5,
) -> tuple[Float[np.ndarray, "k p"], Int[np.ndarray, " k"]]:
    """Examples and their cells, every cell as large as the largest; the given examples come first, unchanged.

    ``categorical``: the one-hot columns, a slice for each variable; a new example takes the commonest value among its
    neighbours (SMOTE-NC). For images, pass features of a network, not pixels. A cell of fewer than ``neighbours + 1``
    examples uses fewer neighbours.

    Raises:
      ValueError: a cell has fewer than two examples.
    """
    x, cell = np.asarray(x, np.float32), np.asarray(cell)
    smallest = np.unique(cell, return_counts=True)[1].min()
    if smallest < 2:
        raise ValueError(f"cell: found one of {smallest} example, expected at least 2 to draw a segment between")
    options: dict[str, Any] = {"random_state": seed, "k_neighbors": int(min(neighbours, smallest - 1))}
    if not categorical:
        new, new_cell = SMOTE(**options).fit_resample(x, cell)[:2]
        return np.asarray(new, np.float32), np.asarray(new_cell)
    numeric = np.setdiff1d(np.arange(x.shape[1]), np.concatenate([np.r_[s] for s in categorical]))
    codes = np.stack([x[:, s].argmax(1) for s in categorical], axis=1)
    model = SMOTENC(list(range(len(numeric), len(numeric) + len(categorical))), **options)
    drawn, new_cell = model.fit_resample(np.concatenate([x[:, numeric], codes], axis=1), cell)[:2]
    new = np.zeros((len(drawn), x.shape[1]), np.float32)
    new[:, numeric] = drawn[:, : len(numeric)]
    for i, s in enumerate(categorical):
        new[np.arange(len(drawn)), s.start + drawn[:, len(numeric) + i].astype(int)] = 1
    return new, np.asarray(new_cell)
