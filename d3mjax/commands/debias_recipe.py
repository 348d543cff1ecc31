"""How d3mjax-debias trains: what the number of examples decides, and many models behind one call."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from d3mjax.attribution import outputs, projections, trak
from d3mjax.commands.debias_data import UserData
from d3mjax.debiasing import d3m, sources
from d3mjax.runtime import hosts
from d3mjax.runtime.progress import Progress
from d3mjax.runtime.sweep import sweep
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import AnyArray, Model, Sampler, Split, Trainer

BATCH = 50  # examples of a training step, up to `SMALL` examples
SMALL = 5_000
CLIP = 1.0  # largest norm of a gradient of squared errors, labels having a deviation of 1
HALF_BYTES = 2**28  # of features in float32, beyond which they lie on devices in float16


class Counts(NamedTuple):
    """Numbers of models and of what is compared."""

    divisions: int  # of the targets
    checkpoints: int  # behind the scores
    retrains: int  # behind every number of one division
    grid: tuple[float, ...]  # shares of the training set that candidates remove


class Schedule(NamedTuple):
    """One training: steps of so many examples, and the learning rate at the start."""

    batch: int
    steps: int
    rate: float


class Recipe(NamedTuple):
    """All that is compiled, placed on devices and decided once for all divisions."""

    data: UserData
    train: Split  # on the devices of the mesh
    pool: Split  # targets, then test examples: all that is measured; on the devices of the mesh
    model: Model
    trainer: Trainer
    resampling: Trainer  # draws examples by weight, for the targets alone
    options: trak.Options
    attribution: sources.Attribution
    schedule: Schedule
    counts: Counts
    auto: bool
    num_groups: int  # with auto two for each class
    width: int
    mesh: Mesh

    @property
    def block(self) -> int:
        """Models of one call: what the devices train at once, at most 16."""
        return self.mesh.size * min(self.width, max(1, 16 // self.mesh.size))


def counts_of(
    num_examples: int,
    *,
    divisions: int | None = None,
    checkpoints: int | None = None,
    retrains: int | None = None,
    quick: bool = False,
) -> Counts:
    """What was asked for, or else 5 divisions, 20 checkpoints and 4 models a number, 2 from 20,000 examples on.

    ``quick``: 2 divisions, 8 checkpoints, one model a number, and fewer candidates.
    """
    default = (2, 8, 1) if quick else (5, 20, 4 if num_examples < 20_000 else 2)
    first, second, third = (
        b if a is None else a for a, b in zip((divisions, checkpoints, retrains), default, strict=True)
    )
    grid = d3m.SHARES if quick else (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    return Counts(first, second, third, grid)


def schedule_of(num_examples: int, *, steps: int | None = None, rate: float = 0.05) -> Schedule:
    """Ten epochs of batches of 50, at least 300 steps; beyond `SMALL` examples fewer epochs of larger batches.

    The batch grows with the square root of the number of examples, up to 400, and the rate with the batch; epochs
    fall with it to 3 at 200,000 examples, and to 1.
    """
    growth = max(num_examples / SMALL, 1.0) ** 0.5
    batch = min(int(BATCH * growth), 400)
    epochs = max(10 / growth**0.65, 1.0)
    least = 300 if growth == 1 else 0
    return Schedule(batch, steps or max(int(epochs * num_examples / batch), least), rate * batch / BATCH)


def describe(counts: Counts, schedule: Schedule, *, quick: bool) -> str:
    """What was trained, in words."""
    work = (
        f"{counts.divisions} divisions of the targets; {counts.checkpoints} checkpoints, which they share; "
        f"{counts.retrains} models behind every number of a division; {schedule.steps:,} steps of {schedule.batch} "
        "examples a model. Candidates were tried by successive halving."
    )
    return f"A quick look (--quick); run without it before you decide. {work}" if quick else work


def hidden_of(num_examples: int) -> int:
    """Width of the hidden layer of the model that is trained unless the user has another."""
    return 32 if num_examples < 2000 else 64 if num_examples < 20_000 else 128


def make_recipe(
    model: Model, data: UserData, *, schedule: Schedule, counts: Counts, auto: bool, dense: bool = False
) -> Recipe:
    """SGD with momentum and weight decay, the rate falling linearly to zero; TRAK at two dampings.

    Where labels are numbers, the loss is half the squared error. Its gradient grows with the error, so it is clipped:
    correlated or heavy-tailed features would make a training diverge that cross-entropy survives.

    ``dense``: a linen model of dense layers, whose gradients are projected by their factors, which is faster.
    """
    n, mesh = len(data.train.y), hosts.local_mesh()
    numbers = data.num_classes is None
    options = d3m.default_options(n, regression=numbers)
    attribution = d3m.default_attribution(n, regression=numbers)
    if dense:
        size = min(256, projections.default_size(2 * n))
        options = options._replace(projection=projections.sjlt(size, factored=True), microbatch=128)
        attribution = sources.by_trak(options, dampings=d3m.DAMPINGS[1:])
    parts = [data.target] if data.test is None else [data.target, data.test]
    pool = Split(*(np.concatenate([getattr(part, name) for part in parts]) for name in Split._fields))
    model, features = stored(model, data.train.x)

    def trainer(sampler: Sampler) -> Trainer:
        rate = optax.linear_schedule(schedule.rate, 0.0, schedule.steps)
        clipped = [optax.clip_by_global_norm(CLIP)] if numbers else []
        tx = optax.chain(*clipped, optax.add_decayed_weights(1e-3), optax.sgd(rate, 0.9))
        objective = objectives.squared_error() if numbers else objectives.cross_entropy()
        return make_trainer(model, objective, tx, sampler, batch_size=schedule.batch)

    return Recipe(
        data=data,
        train=hosts.place(data.train._replace(x=features), mesh),
        pool=hosts.place(pool._replace(x=pool.x.astype(features.dtype)), mesh),
        model=model,
        trainer=trainer(sampling.shuffled()),
        resampling=trainer(sampling.resampled()),
        options=options,
        attribution=attribution,
        schedule=schedule,
        counts=counts,
        auto=auto,
        num_groups=2 * len(data.class_names) if auto else len(data.group_names),
        width=hosts.models_at_once(),
        mesh=mesh,
    )


def stored(model: Model, x: Float[np.ndarray, "n *d"]) -> tuple[Model, Float[np.ndarray, "n *d"]]:
    """Features as they lie on devices, and the model that reads them: float16 where float32 takes `HALF_BYTES`.

    float16 rounds to 3 digits, far below the spread of a standardised feature. Features too large for it stay float32.
    """
    if x.dtype != np.float32 or x.nbytes <= HALF_BYTES or not np.abs(x).max() < np.finfo(np.float16).max:
        return model, x
    wide = lambda x: jnp.asarray(x, jnp.float32)
    half = Model(
        lambda key, x: model.init(key, wide(x)),
        lambda variables, x, *, train=False: model.apply(variables, wide(x), train=train),
    )
    return half, x.astype(np.float16)


def train(
    recipe: Recipe,
    model_keys: Key[Array, "m"],
    weights: Sequence[AnyArray],
    *,
    split: Split | None = None,
    progress: Progress,
) -> Float[np.ndarray, "m t C"]:
    """Logits, or predictions, on the pool of one model for each key and row of ``weights [n]``, on the training set.

    ``split``: another set of examples to train on, drawn by weight. Raises as `ensemble.check_losses`, and ValueError
    for weights that leave a class without examples.
    """
    trainer, on = (recipe.trainer, recipe.train) if split is None else (recipe.resampling, split)
    y = np.asarray(on.y)
    for row in {id(row): row for row in weights}.values():
        masks.check_weights(np.asarray(row), y)
    on, statics = hosts.place(on, recipe.mesh), {"model": recipe.model, "trainer": trainer}
    statics |= {"num_steps": recipe.schedule.steps, "width": recipe.width, "mesh": recipe.mesh}

    def run(ids):
        rows = np.stack([np.asarray(weights[i], np.float32) for i in ids])
        return _trained(on, recipe.pool.x, model_keys[ids], rows, **statics)

    return sweep(run, np.arange(len(weights)), block=recipe.block, progress=progress)


@partial(jax.jit, static_argnames=("model", "trainer", "num_steps", "width", "mesh"))
def _trained(split, x, model_keys, weights, *, model, trainer, num_steps, width, mesh):
    look = lambda variables, x: outputs.logits(model, variables, x, microbatch=4096)
    options = {"look": look, "shared": (x,), "width": width, "mesh": mesh}
    return ensemble.train_many(trainer, model_keys, split, weights, num_steps, **options)
