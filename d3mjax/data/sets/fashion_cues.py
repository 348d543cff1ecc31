"""Fashion-MNIST with a planted cue that agrees with the label for most of the training set.

The default is the task *patch*: pullover against coat at 14 x 14, a white 2 x 2 patch top left or top right that
agrees with the label for 95 % of the 4,000 training images. Groups are ``num_attributes * y + attribute``:
0 = pullover left, 1 = pullover right, 2 = coat left, 3 = coat right.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts, split_counts
from d3mjax.data.sets import builders, fashion
from d3mjax.types import Data, Split

GROUP_NAMES = ("pullover, patch left", "pullover, patch right", "coat, patch left", "coat, patch right")
"""Groups of the default task."""

PATCH = cues.CornerPatch()


@dataclasses.dataclass(frozen=True)
class Task:
    """What to draw. A split is given by its size, or by the exact number of images of each group.

    A size alone means, for train: ``class_shares`` (equal if None) and ``aligned``; for targets: the mix of train;
    for selection: the mix of targets; for test: the same number of each group. Test comes from the official test
    images, all else from the official train images; no image is in two splits.
    """

    classes: tuple[tuple[int, ...], ...] = ((2,), (4,))  # official labels that make up class 0, 1, ...
    cue: cues.Cue = PATCH
    aligned: float = 0.95
    class_shares: tuple[float, ...] | None = None
    train: Counts = 4000
    targets: Counts = 800
    selection: Counts = 1000
    test: Counts = 2000
    size: int = 14
    seed: int = 0


def group_counts(task: Task) -> dict[str, tuple[int, ...]]:
    """Exact images of each group in each split. Raises ``ValueError`` where the task contradicts itself."""
    members = [label for part in task.classes for label in part]
    if len(task.classes) < 2 or not all(task.classes) or len(set(members)) != len(members):
        raise ValueError(f"classes: found {task.classes}, expected two or more disjoint, non-empty sets of labels")
    if not set(members) <= set(range(10)):
        raise ValueError(f"classes: found {task.classes}, expected official labels 0..9")
    num_groups = len(task.classes) * task.cue.num_attributes
    mix = cues.group_shares(len(task.classes), task.cue.num_attributes, task.aligned, task.class_shares)
    train = split_counts("train", task.train, mix)
    targets = split_counts("targets", task.targets, train)
    selection = split_counts("selection", task.selection, targets)
    test = split_counts("test", task.test, (1.0,) * num_groups)
    return {"train": train, "target": targets, "selection": selection, "test": test}


def draw_splits(task: Task, pool: fashion.Pool) -> dict[str, dict[str, np.ndarray]]:
    """The four splits as arrays ``image`` (uint8 [n h w c], the cue painted on), ``y``, ``group``, ``id``."""
    counts = group_counts(task)
    num_attributes = task.cue.num_attributes
    official_test = pool.id >= fashion.NUM_TRAIN
    splits = {}
    for side, names in ((False, ("train", "target", "selection")), (True, ("test",))):
        part = fashion.Pool(*(a[official_test == side] for a in pool))
        drawn = cues.draw(task.seed, part.labels, task.classes, num_attributes, [counts[n] for n in names])
        for name, (index, y, attribute) in zip(names, drawn, strict=True):
            splits[name] = {
                "image": task.cue(part.images[index], attribute),
                "y": y.astype(np.int32),
                "group": (num_attributes * y + attribute).astype(np.int32),
                "id": part.id[index],
            }
    return splits


@dataclasses.dataclass(eq=False)
class FashionSpuriousConfig(tfds.core.BuilderConfig):
    """Names the cache directory after every field of the task, so another task never reads it."""

    task: Task = Task()


@functools.cache  # TFDS compares configurations by identity
def config(task: Task) -> FashionSpuriousConfig:
    """The TFDS configuration of a task. Raises if the cue's ``repr`` does not tell its value."""
    if " at 0x" in repr(task.cue):
        raise ValueError(f"cue: found {task.cue!r}, expected a frozen dataclass: its repr is the key of the cache")
    # What the cue does to a ramp belongs to the key, too: a cue whose code changed must not read its old cache.
    ramp = np.arange(task.size**2).reshape(1, task.size, task.size, 1).astype(np.uint8)
    attributes = np.arange(task.cue.num_attributes)
    painted = task.cue(np.repeat(ramp, len(attributes), axis=0), attributes)
    key = hashlib.sha256(repr(task).encode() + painted.tobytes()).hexdigest()[:16]
    name = f"{type(task.cue).__name__.lower()}_{task.size}_seed{task.seed}_{key}"
    return FashionSpuriousConfig(name=name, description=repr(task), task=task)


class FashionSpurious(tfds.core.GeneratorBasedBuilder):
    """Splits train, target, selection and test; one record an image."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [config(Task())]  # noqa: RUF012 (TFDS reads it so)

    def __init__(self, *, source_dir: str | Path | None = None, **kwargs):
        self._source_dir = source_dir
        super().__init__(**kwargs)

    @property
    def _task(self) -> Task:
        assert isinstance(self.builder_config, FashionSpuriousConfig)
        return self.builder_config.task

    def _info(self) -> tfds.core.DatasetInfo:
        task = self._task
        channels = task.cue(np.zeros((1, task.size, task.size, 1), np.uint8), np.zeros(1, int)).shape[-1]
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(task.size, task.size, channels), dtype=np.uint8),
                    "y": np.int32,
                    "group": np.int32,
                    "id": np.int32,
                }
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation="Xiao, H., Rasul, K. & Vollgraf, R. (2017). Fashion-MNIST. arXiv:1708.07747",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any):
        task = self._task
        pool = fashion.read(
            {label for part in task.classes for label in part},
            task.size,
            source_dir=self._source_dir,
            download=dl_manager.download,
        )
        splits = draw_splits(task, pool)
        builders.note_digests(self, splits)
        return {name: self._generate_examples(arrays) for name, arrays in splits.items()}

    def _generate_examples(self, arrays: builders.Arrays):
        return builders.rows(arrays)


def load_fashion_spurious(
    task: Task | None = None,
    *,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> Data:
    """The task's four splits: x float32 in 0..1, [n, h*w*c] if ``flat`` else [n, h, w, c].

    Ids are image numbers in the official files: train 0..59999, test 60000..69999. ``data_dir`` is where TFDS keeps
    its cache (None: its default), ``source_dir`` a directory with the official idx files. Raises ``ValueError`` for a
    task that contradicts itself, a source that is missing or not the official one, or a damaged cache.
    """
    task = Task() if task is None else task
    group_counts(task)  # a bad task fails here, not within TFDS
    splits = builders.load(FashionSpurious, data_dir, config=config(task), source_dir=source_dir)
    return Data(**{name: as_split(arrays, flat=flat) for name, arrays in splits.items()})


def load_fashion(
    seed: int = 0,
    *,
    size: int = 14,
    train: Counts = 5000,
    targets: Counts = 1000,
    selection: Counts = 1000,
    test: Counts = 10_000,
    data_dir: str | Path | None = None,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> Data:
    """Plain ten-class Fashion-MNIST, nothing planted: group = y, classes balanced."""
    task = Task(
        classes=tuple((label,) for label in range(10)),
        cue=cues.NoCue(),
        train=train,
        targets=targets,
        selection=selection,
        test=test,
        size=size,
        seed=seed,
    )
    return load_fashion_spurious(task, data_dir=data_dir, source_dir=source_dir, flat=flat)


def as_split(arrays: builders.Arrays, *, flat: bool) -> Split:
    """One of ``draw_splits`` with x float32 in 0..1, [n, h*w*c] if ``flat`` else [n, h, w, c]."""
    x = arrays["image"].astype(np.float32) / 255
    return Split(x.reshape(len(x), -1) if flat else x, arrays["y"], arrays["group"], arrays["id"])
