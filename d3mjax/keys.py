"""Random keys by identity: everything about model ``j`` of a family derives from ``fold_in(fold_in(root, family), j)``.

A *family* is a set of models or draws that must be independent of all others, such as those that select and those that
report. Families have names here, one enumeration a study; their integers are part of every stored result.
"""

from enum import IntEnum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from d3mjax.types import AnyArray


class D3M(IntEnum):
    """Families of `debiasing.d3m`: no model that selects is one that reports."""

    SCORE, SELECT, REPORT, COLUMNS, DRAW, SPLIT, SHARED = range(7)


class Rules(IntEnum):
    """Families of the study of removal rules."""

    SCORE, SELECT, REPORT, DRAW = range(4)


class Descent(IntEnum):
    """Families of the study of weights by descent."""

    SCORE, REPORT, COLUMNS, FEATURES, DESCENT, DRAW = range(6)


class Auto(IntEnum):
    """Families of AUTO-D3M."""

    CHECKPOINTS, COLUMNS, DRAW, REPORT, SELECT = range(5)


class Ablation(IntEnum):
    """Families of the ablations of D3M."""

    CHECKPOINTS, COLUMNS, DRAW, REPORT, OTHER, OTHER_COLUMNS = range(300, 306)


class Bank(IntEnum):
    """Families of banks of subset models and of the retraining that tests them."""

    BANK, BASE, RETRAIN, DRAW = range(100, 104)


class LdsDatamodels(IntEnum):
    """Families of the linear datamodelling score of datamodels."""

    BANKS, INTERVALS = 201, 202


class Lds(IntEnum):
    """Families of the linear datamodelling score of TRAK and influence functions."""

    TRUTH, CHECKPOINTS, PROJECTIONS, INTERVALS = range(4)


class Trust(IntEnum):
    """Families of predicted scores, beside those of `Lds`."""

    DRAW, TRAIN, SMOOTHNESS = range(301, 304)


class Unlearning(IntEnum):
    """Families of the study of unlearning."""

    ORIGINAL, ORACLE, FLOOR, TUNE, MATCH = range(5)


class Fmd(IntEnum):
    """Families of the studies of counterfactual bias, and of what is compared with FMD."""

    TRAIN, SIGNS, SUBSETS, PAIRS_ALONE, DROPPED, PAIRS_TOO, FLIPS_TOO, RETRAINED, DRAW, COLUMNS, TWINS = range(11)


class InfluenceOnBias(IntEnum):
    """Families of the study of influence on bias."""

    CHECKPOINTS, RETRAIN, DRAW, PROJECTIONS = range(4)


def model_keys(key: Key[Array, ""], ids: Int[AnyArray, "m"]) -> Key[Array, "m"]:
    """Keys of models by identity, ``fold_in(key, id)``: all randomness of a model derives from its key.

    >>> import jax, numpy as np, d3mjax
    >>> key = jax.random.key(0)
    >>> keys = d3mjax.model_keys(key, np.array([7, 3]))
    >>> bool(keys[1] == jax.random.fold_in(key, 3))
    True
    """
    return jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.asarray(ids))


def members(root: Key[Array, ""], family: int, count: int) -> Key[Array, "m"]:
    """Keys ``[count]`` of the members of one family: ``fold_in(fold_in(root, family), j)`` for j below ``count``."""
    return model_keys(jax.random.fold_in(root, family), jnp.arange(count))
