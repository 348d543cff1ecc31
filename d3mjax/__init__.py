"""d3mjax: which training examples make a classifier fail on a subgroup, and what happens without them.

The face: `debias` is the method, `train_many` trains many models; `trak`, `influence`, `metagradient` and `datamodels`
attribute.
Each room is an attribute: ``d3mjax.attribution``, ``d3mjax.debiasing``, ``d3mjax.training`` and so on.
"""

from d3mjax import (
    attribution,
    data,
    debiasing,
    diagnosis,
    keys,
    linalg,
    metrics,
    networks,
    runtime,
    training,
    unlearning,
)
from d3mjax.attribution import datamodels, effects, influence, metagradient, outputs, projections, trak, trust
from d3mjax.data.planted.shortcut import planted_shortcut
from d3mjax.debiasing import baselines, offsets, reweighting, selection
from d3mjax.debiasing.d3m import debias
from d3mjax.diagnosis.diagnose import diagnose
from d3mjax.networks.adapt import from_functions, from_linen, from_nnx
from d3mjax.networks.dense import linear, mlp
from d3mjax.runtime.encoders import encode_images, encode_texts
from d3mjax.training import masks
from d3mjax.training.ensemble import check_losses, map_models, model_keys, train_many
from d3mjax.training.objectives import cross_entropy, group_dro, huber, squared_error
from d3mjax.training.sampling import resampled, shuffled
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Linear, Model, Objective, Pairs, Sampler, Split, Table, Trainer
from d3mjax.unlearning.fmd import unlearn

__version__ = "0.2.0"

__all__ = [
    "Data",
    "Linear",
    "Model",
    "Objective",
    "Pairs",
    "Sampler",
    "Split",
    "Table",
    "Trainer",
    "attribution",
    "baselines",
    "check_losses",
    "cross_entropy",
    "data",
    "datamodels",
    "debias",
    "debiasing",
    "diagnose",
    "diagnosis",
    "effects",
    "encode_images",
    "encode_texts",
    "from_functions",
    "from_linen",
    "from_nnx",
    "group_dro",
    "huber",
    "influence",
    "keys",
    "linalg",
    "linear",
    "make_trainer",
    "map_models",
    "masks",
    "metagradient",
    "metrics",
    "mlp",
    "model_keys",
    "networks",
    "offsets",
    "outputs",
    "planted_shortcut",
    "projections",
    "resampled",
    "reweighting",
    "runtime",
    "selection",
    "shuffled",
    "squared_error",
    "train_many",
    "training",
    "trak",
    "trust",
    "unlearn",
    "unlearning",
]
