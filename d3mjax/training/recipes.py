"""Training recipes of published work: trainers with their number of steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from d3mjax.training import augmentations, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Sampler, Trainer


class Recipe(NamedTuple):
    """A trainer and its number of steps: ``trainer.run(state, split, weights, num_steps)``."""

    trainer: Trainer
    num_steps: int


def triangular(peak: float, peak_step: int, num_steps: int) -> optax.Schedule:
    """Learning rate rising linearly from 0 to ``peak`` at ``peak_step``, then falling to 0 at ``num_steps``."""
    return lambda step: jnp.interp(step, jnp.array([0, peak_step, num_steps]), jnp.array([0, peak, 0]))


def momentum_sgd(
    rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: optax.ScalarOrSchedule = 5e-4
) -> optax.GradientTransformation:
    """SGD with momentum and L2 penalty: the decay of all parameters is added to the gradient before the momentum."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=momentum))


def datamodels_cifar10(
    model: Model,
    num_examples: int,
    *,
    peak: float = 0.5,
    smoothing: float = 0.1,
    epochs: int = 24,
    peak_epoch: int = 5,
    batch_size: int = 512,
    augment: Callable | None = None,
    sampler: Sampler | None = None,
) -> Recipe:
    """Recipe of the datamodels paper for CIFAR-10, with ``num_examples`` training examples of positive weight.

    For the paper ``model`` is ``resnet9(10, norm=batch_norm(), dtype=jnp.bfloat16)`` and ``augment`` is None: flip,
    translate by 2 and cutout of 4 pixels on 32 x 32 x 3. TRAK trains with ``peak=0.4, smoothing=0.0``. An epoch is
    ``num_examples // batch_size`` steps, as in the paper; the remaining examples come first in the next epoch.
    ``sampler`` is `sampling.shuffled` if None.

    Source: Ilyas, Park, Engstrom, Leclerc, Madry, "Datamodels", ICML 2022.

    Raises:
      ValueError: if ``num_examples`` is below ``batch_size``.
    """
    if num_examples < batch_size:
        raise ValueError(f"num_examples: found {num_examples}, expected at least batch_size = {batch_size}")
    steps = num_examples // batch_size
    tx = momentum_sgd(triangular(peak, peak_epoch * steps, epochs * steps))
    augment = augmentations.flip_translate_cutout((32, 32, 3)) if augment is None else augment
    objective = objectives.cross_entropy(smoothing=smoothing)
    sampler = sampling.shuffled() if sampler is None else sampler
    trainer = make_trainer(model, objective, tx, sampler, batch_size=batch_size, augment=augment)
    return Recipe(trainer, epochs * steps)
