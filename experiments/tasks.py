"""The tasks that experiments share: where the data comes from, what is trained on it, and what things are called."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from d3mjax.data import adult, fashion, fashion_spurious, splits
from d3mjax.types import Data


@dataclass(frozen=True)
class Task:
    """A subgroup problem and its training recipe: an MLP by SGD with momentum, the rate falling linearly to zero."""

    name: str
    about: str  # one sentence for the report
    load: Callable[..., Data]  # (seed, *, smoke) -> Data
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    hidden: tuple[int, ...]
    image: tuple[int, ...] | None = None  # shape of one flattened image, if x is one
    steps: int = 800
    batch: int = 50
    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-3

    def read(self, seed: int, *, smoke: bool = False) -> Data:
        """The four splits, checked."""
        data = self.load(seed, smoke=smoke)
        splits.check_data(data, len(self.class_names), len(self.group_names))
        return data


def _adult(seed: int, *, smoke: bool) -> Data:
    sizes: dict[str, Any] = {"num_train": 600, "num_targets": 300, "num_selection": 300} if smoke else {}
    data = adult.load_adult(seed, **sizes)
    return data._replace(test=splits.take(data.test, np.arange(1000))) if smoke else data


def _patch(seed: int, *, smoke: bool, train: int = 4000) -> Data:
    sizes: dict[str, Any] = {"train": 600, "targets": 200, "selection": 200, "test": 400} if smoke else {"train": train}
    return _standardised(fashion_spurious.load_fashion_spurious(fashion_spurious.Task(seed=seed, **sizes)))


def _fashion(seed: int, *, smoke: bool) -> Data:
    sizes: dict[str, Any] = (
        {"train": 600, "targets": 200, "selection": 200} if smoke else {"train": 2000, "targets": 800}
    )
    return _standardised(fashion_spurious.load_fashion(seed, **sizes))


def _standardised(data: Data) -> Data:
    """Pixels less the mean of all training pixels, over their standard deviation."""
    mean, std = np.mean(data.train.x), np.std(data.train.x)
    return Data(*(split._replace(x=((split.x - mean) / std).astype(np.float32)) for split in data))


ADULT = Task(
    name="adult",
    about="UCI Adult: does a person earn more than 50,000 dollars a year? The groups are sex by income; few women of "
    "high income are among the training examples, and plain training misses many of them.",
    load=_adult,
    class_names=("<=50K", ">50K"),
    group_names=adult.GROUP_NAMES,
    hidden=(32,),
)

PATCH = Task(
    name="patch",
    about="Fashion-MNIST pullovers against coats at 14 x 14. A planted white patch, top left or top right, agrees with "
    "the label for 95 % of the training examples. The groups are label by patch; the test set has all four equally.",
    load=_patch,
    class_names=("pullover", "coat"),
    group_names=fashion_spurious.GROUP_NAMES,
    hidden=(64,),
    image=(14, 14),
)

SMALL_PATCH = replace(PATCH, load=partial(_patch, train=2000), steps=400)

FASHION = Task(
    name="fashion",
    about="Fashion-MNIST at 14 x 14, ten classes, nothing planted.",
    load=_fashion,
    class_names=fashion.NAMES,
    group_names=fashion.NAMES,
    hidden=(64,),
    image=(14, 14),
    steps=400,
)

TASKS = {task.name: task for task in (ADULT, PATCH)}
LDS_TASKS = {task.name: task for task in (SMALL_PATCH, FASHION)}  # n = 2,000
