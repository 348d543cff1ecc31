"""The tasks that studies share: their data, networks and training recipes, and the sources of group columns on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from d3mjax.attribution import influence, inverses, projections, trak
from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.data import splits
from d3mjax.data.label_scale import LabelScale
from d3mjax.data.planted import corruptions, cues
from d3mjax.data.sets import adult, digits, fashion, fashion_cues
from d3mjax.debiasing import d3m, regression, selection, sources
from d3mjax.networks import conv, dense
from d3mjax.runtime import hosts
from d3mjax.training import ensemble, objectives, recipes, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Model, Sampler, Split, Trainer


def _none(seed: int, *, smoke: bool = False) -> Int[np.ndarray, " k"]:
    return np.zeros(0, np.int32)


def sgd(rate: optax.ScalarOrSchedule, decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD with momentum .9; the decay of all parameters is added to the gradient."""
    return recipes.momentum_sgd(rate, weight_decay=decay)


def adam(rate: optax.ScalarOrSchedule, decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam; the decay of all parameters is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))


def smooth_adam(rate: optax.ScalarOrSchedule, decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """`adam` with an epsilon inside the root, where a gradient of 0 has a finite derivative."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(rate, eps_root=1e-8))


PART = 64  # examples that a large network sees at once in evaluation


def in_parts(model: Model) -> Model:
    """``model``, whose evaluation sees `PART` examples at a time: memory does not grow with a split."""

    def apply(variables, x, *, train=False):
        if train:
            return model.apply(variables, x, train=True)
        return map_microbatches(lambda part: model.apply(variables, part)[0], x, microbatch=PART), variables

    return Model(model.init, apply)


def fastest_convolution() -> Callable[..., jax.Array]:
    """The fastest in training, and inside `lax.scan`, on the default device; results are equal."""
    return conv.convolve_shifted if jax.default_backend() == "cpu" else conv.convolve_lax


@dataclass(frozen=True)
class Task:
    """A subgroup problem and its training recipe: by default an MLP by SGD; the rate falls linearly to zero.

    Without ``class_names`` it is a regression: labels are standardised by those of training, the loss is the squared
    error, and ``scale`` leads back to ``unit``.
    """

    name: str
    about: str  # one sentence for the report
    load: Callable[..., Data]  # (seed, *, smoke) -> Data
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    hidden: tuple[int, ...] = ()  # widths of the MLP
    image: tuple[int, ...] | None = None  # shape of one flattened image, if x is one
    steps: int = 800
    batch: int = 50
    rate: float = 0.05
    decay: float = 1e-3
    wrong: Callable[..., Int[np.ndarray, " k"]] = _none  # (seed, *, smoke) -> ids of planted label errors
    make_model: Callable[[], Model] | None = None  # instead of the MLP; called when a network is needed
    optimizer: Callable[[optax.Schedule, float], optax.GradientTransformation] = sgd  # (rate, decay)
    beta: float = 1.0  # sharpness of D3M's group weights, per nat of group loss, in the studies d3m and main_table
    betas: tuple[float, ...] = ()  # further ones that selection may take there
    shares: tuple[float, ...] = d3m.SHARES  # of the training set, among which selection chooses how much to remove
    head: str | None = None  # name of the last layer in the parameters; None: that of the MLP
    at_once: int | None = None  # most models that a device trains side by side; None: as many as the host says
    make_trainer: Callable[[Model, int, Sampler], Trainer] | None = None  # (model, steps, sampler), another recipe
    unit: str = ""  # of the labels of a regression
    scale: Callable[..., LabelScale] | None = None  # (seed, *, smoke) -> mean and deviation of its training labels
    show: Callable[..., Any] | None = None  # (seed, ids) -> sentences or pictures [k h w c], where x holds features

    def read(self, seed: int, *, smoke: bool = False) -> Data:
        """The four splits, checked."""
        data = self.load(seed, smoke=smoke)
        splits.check_data(data, len(self.class_names) or None, len(self.group_names))
        return data

    def examples(self, seed: int, split: Split, rows: Int[np.ndarray, " k"]) -> Any:
        """What a person looks at: pictures ``[k h w *c]``, or k sentences; None where a task has neither."""
        if self.show is not None:
            return self.show(seed, np.asarray(split.id)[rows])
        return np.asarray(split.x)[rows].reshape(-1, *self.image) if self.image else None

    def network(self) -> Model:
        """``make_model()``, or the MLP; one object for equal tasks, so that its programs are compiled once."""
        return _network(self)

    def trainer(self, steps: int, sampler: Sampler, *, smoothing: float = 0.0) -> Trainer:
        """``make_trainer``, or ``optimizer`` with a rate that falls linearly to zero over ``steps``.

        One object for equal tasks, steps, samplers (`SHUFFLED`, `RESAMPLED`) and ``smoothing`` of the labels. Raises
        ``ValueError`` where a trainer of the task's own, or a regression, is to smooth labels.
        """
        return _trainer(self, steps, sampler, smoothing)


@cache
def _network(task: Task) -> Model:
    return task.make_model() if task.make_model else dense.mlp(task.hidden, len(task.class_names) or 1)


@cache
def _trainer(task: Task, steps: int, sampler: Sampler, smoothing: float) -> Trainer:
    if smoothing and (task.make_trainer is not None or not task.class_names):
        raise ValueError(f"smoothing: found {smoothing}, expected 0 for the task {task.name!r}")
    if task.make_trainer is not None:
        return task.make_trainer(task.network(), steps, sampler)
    tx = task.optimizer(optax.linear_schedule(task.rate, 0.0, steps), task.decay)
    objective = objectives.cross_entropy(smoothing=smoothing) if task.class_names else objectives.squared_error()
    return make_trainer(task.network(), objective, tx, sampler, batch_size=task.batch)


SHUFFLED, RESAMPLED = sampling.shuffled(), sampling.resampled()


def spread(task: Task | None = None) -> dict[str, Any]:
    """``width`` and ``mesh`` of this host, for functions that map models, of this task, over devices."""
    width = hosts.models_at_once()
    return {"width": min(width, task.at_once or width) if task else width, "mesh": hosts.local_mesh()}


def train_models(task: Task, keys, split: Split, weights, look: Callable, **options: Any) -> tuple[Any, Array]:
    """`ensemble.train_many` by the recipe of the task, on all devices of this host."""
    trainer = task.trainer(task.steps, SHUFFLED)
    return ensemble.train_many(trainer, keys, split, weights, task.steps, look=look, **options, **spread(task))


class Trak(NamedTuple):
    """Recipe of TRAK as the source of group columns: full trainings, and the projection of their gradients."""

    models: int = 20  # checkpoints
    size: int = 256  # projected dimension
    damping: float = 0.01  # of the mean eigenvalue
    microbatch: int = 20
    last_layer: bool = False  # attribute the last layer of the task's network alone, without projection


class Influence(NamedTuple):
    """Recipe of influence functions as the source: full trainings, and one solve with the GGN a group."""

    models: int = 5  # checkpoints
    damping: float = 0.01
    rtol: float = 1e-3
    microbatch: int = 1000


SMALL_SOURCES = {
    Influence: Influence(models=2),
    sources.Bank: sources.Bank(models=60, block=30, steps=20),
    Trak: Trak(models=2, size=32),
}
"""Recipes of smoke runs."""


@cache
def trak_options(task: Task, source: Trak, project: Callable = projections.sjlt) -> trak.Options:
    """Options of TRAK for one recipe; ``project``: makes a projection to ``source.size`` numbers."""
    if not source.last_layer:
        options = trak.Options(project(source.size), source.damping, source.microbatch)
        return options if task.class_names else regression.trak_options(options)
    last = task.head or f"Dense_{len(task.hidden)}"
    keep = lambda path: f"'{last}'" in path
    return trak.Options(projections.identity(), source.damping, source.microbatch, keep)


@cache
def influence_options(source: Influence) -> influence.Options:
    """Options of influence functions for one recipe."""
    inverse = inverses.by_cg(rtol=source.rtol)
    return influence.Options(damping=source.damping, microbatch=source.microbatch, inverse=inverse)


@cache
def _attribution(task: Task, source: Trak | Influence, others: tuple[float, ...]) -> sources.Attribution:
    if isinstance(source, Trak):
        return sources.by_trak(trak_options(task, source), dampings=others)
    return sources.by_influence(influence_options(source), rtol=source.rtol)


def columns(
    task: Task,
    source: Trak | Influence | sources.Bank,
    key: Key[Array, ""],
    data: Data,
    *,
    others: tuple[float, ...] = (),
    progress: Callable[[int], object] = lambda count: None,
) -> sources.Columns:
    """Group columns of a task's targets from any source; ``others``: dampings of TRAK at which there are more readings.

    ``progress`` counts the models trained.
    """
    model, num_groups = task.network(), len(task.group_names)
    if isinstance(source, sources.Bank):
        trainer = task.trainer(source.steps, SHUFFLED)
        return sources.from_datamodels(key, model, trainer, data, num_groups, source, **spread(task), progress=progress)
    recipe = (model, task.trainer(task.steps, SHUFFLED), data, num_groups, task.steps)
    attribution = _attribution(task, source, others)
    made = sources.from_checkpoints(key, *recipe, attribution, checkpoints=source.models, **spread(task))
    progress(source.models)
    return made


SMALL = {"train": 600, "targets": 200, "selection": 200, "test": 400}  # sizes of smoke runs


def _adult(seed: int, *, smoke: bool, **sizes: Any) -> Data:
    few: dict[str, Any] = {"num_train": 600, "num_targets": 300, "num_selection": 300} if smoke else {}
    data = adult.load_adult(seed, **sizes | few)
    return data._replace(test=splits.take(data.test, np.arange(1000))) if smoke else data


def first_of_groups(split: Split, most: int, groups: Int[np.ndarray, " k"] | None = None) -> Split:
    """The first ``most`` examples of each of these groups, None for all groups, and every example of the others."""
    group = np.asarray(split.group)
    rank = np.asarray(selection.rank_within(np.zeros(len(group), np.float32), group))
    others = False if groups is None else ~np.isin(group, groups)
    return splits.take(split, np.flatnonzero(others | (rank < most)))


def few_targets(data: Data, most: int, groups: Int[np.ndarray, " k"] | None = None) -> Data:
    """`first_of_groups` of the targets."""
    return data._replace(target=first_of_groups(data.target, most, groups))


def pixels(load: Callable[..., Data], seed: int, *, smoke: bool, **options: Any) -> Data:
    """``load(seed, **options)``, pixels less the mean of all training pixels, over their standard deviation."""
    data = load(seed, **options | (SMALL if smoke else {}))
    mean, std = np.mean(data.train.x), np.std(data.train.x)
    return Data(*(split._replace(x=((split.x - mean) / std).astype(np.float32)) for split in data))


def _pair(seed: int, **fields: Any) -> Data:
    return fashion_cues.load_fashion_spurious(fashion_cues.Task(seed=seed, **fields))


def _with_label_errors(seed: int, *, smoke: bool, share: float = 0.4) -> tuple[Data, Int[np.ndarray, " k"]]:
    """The pair with a patch that says nothing; ``share`` of the training coats with patch right become pullovers."""
    # Targets have no errors and all groups: 800 of them would be as good a training set.
    data = pixels(_pair, seed, smoke=smoke, aligned=0.5, targets=200)
    train, key = data.train, jax.random.key(seed)
    among = np.asarray(train.group) == 3
    flags = corruptions.choose(jax.random.fold_in(key, 0), train.id, round(share * among.sum()), among=among)
    y = corruptions.flip_labels(jax.random.fold_in(key, 1), train.id, train.y, flags, num_classes=2)
    return data._replace(train=train._replace(y=y, group=2 * y + train.group % 2)), np.asarray(train.id)[flags]


ADULT = Task(
    name="adult",
    about="UCI Adult: does a person earn more than 50,000 dollars a year? The groups are sex by income; few women of "
    "high income are among the training examples, and plain training misses many of them.",
    load=_adult,
    class_names=("<=50K", ">50K"),
    group_names=adult.GROUP_NAMES,
    hidden=(32,),
)

ADULT_BALANCED = replace(
    ADULT,
    name="adult-balanced",
    about=f"{ADULT.about} The targets are only 100, 25 of each group.",
    load=lambda seed, *, smoke: few_targets(_adult(seed, smoke=smoke), 25),
)

PATCH = Task(
    name="patch",
    about="Fashion-MNIST pullovers against coats at 14 x 14. A planted white patch, top left or top right, agrees with "
    "the label for 95 % of the training examples. The groups are label by patch; the test set has all four equally.",
    load=partial(pixels, _pair),
    class_names=("pullover", "coat"),
    group_names=fashion_cues.GROUP_NAMES,
    hidden=(64,),
    image=(14, 14),
)

FEW_BALANCED: dict[str, Any] = {
    "targets": (25,) * 4,
    "selection": (475, 25, 25, 475),
}  # else selection is balanced, too

PATCH_BALANCED = replace(
    PATCH,
    name="patch-balanced",
    about=f"{PATCH.about} The targets are only 100, 25 of each group.",
    load=partial(pixels, _pair, **FEW_BALANCED),
)

BACKGROUND = replace(
    PATCH,
    name="background",
    about="Fashion-MNIST pullovers against coats at 14 x 14. The colour of the background, orange or blue, agrees with "
    "the label for 95 % of the training examples. The groups are label by colour; the test set has all four equally.",
    load=partial(pixels, _pair, cue=cues.BackgroundColour()),
    group_names=("pullover, orange", "pullover, blue", "coat, orange", "coat, blue"),
    image=(14, 14, 3),
)

BACKGROUND_BALANCED = replace(
    BACKGROUND,
    name="background-balanced",
    about=f"{BACKGROUND.about} The targets are only 100, 25 of each group.",
    load=partial(pixels, _pair, cue=cues.BackgroundColour(), **FEW_BALANCED),
)

DIGITS = Task(
    name="digits",
    about="scikit-learn's digits of 8 x 8 pixels: below five, or five and more? The colour of the ink, orange or blue, "
    "agrees with the label for 95 % of the training examples. The groups are label by colour; the test set has all "
    "four equally.",
    load=partial(pixels, digits.load_coloured_digits),
    class_names=("0 to 4", "5 to 9"),
    group_names=("0 to 4, orange", "0 to 4, blue", "5 to 9, orange", "5 to 9, blue"),
    hidden=(64,),
    image=(8, 8, 3),
)

LABEL_ERRORS = replace(
    PATCH,
    name="label-errors",
    about="Fashion-MNIST pullovers against coats at 14 x 14 with a white patch, top left or top right, that says "
    "nothing. Of the training coats with the patch at the right, 40 % are labelled pullover; all other labels are "
    "right. The groups are label by patch, all four equally often but for the wrong labels.",
    load=lambda seed, *, smoke: _with_label_errors(seed, smoke=smoke)[0],
    wrong=lambda seed, *, smoke=False: _with_label_errors(seed, smoke=smoke)[1],
)

SMALL_PATCH = replace(PATCH, load=partial(pixels, _pair, train=2000), steps=400)

FASHION = Task(
    name="fashion",
    about="Fashion-MNIST at 14 x 14, ten classes, nothing planted.",
    load=partial(pixels, fashion_cues.load_fashion, train=2000, targets=800),
    class_names=fashion.NAMES,
    group_names=fashion.NAMES,
    hidden=(64,),
    image=(14, 14),
    steps=400,
)

TASKS = {
    task.name: task
    for task in (
        *(ADULT, ADULT_BALANCED, PATCH, PATCH_BALANCED, BACKGROUND, BACKGROUND_BALANCED, DIGITS),
        LABEL_ERRORS,
    )
}
LDS_TASKS = {task.name: task for task in (SMALL_PATCH, FASHION)}  # n = 2,000
