"""Tasks on CIFAR-10, whose files `local_data` finds by ``D3MJAX_DATA``."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from d3mjax.data.sets import cifar
from d3mjax.networks import conv
from d3mjax.training import recipes
from d3mjax.types import Data, Model, Sampler, Trainer
from experiments import local_data, tasks
from experiments.tasks import Task

DECODED = local_data.FILLED / "decoded"
"""Where images are kept that were decoded once."""

_SMALL, _WHOLE = (8, 8, 3), (32, 32, 3)


def _with_human_labels(seed: int, labels: str, *, smoke: bool) -> tuple[Data, Int[np.ndarray, " k"]]:
    """One of the label sets of CIFAR-10N on the training images, and the ids of wrong labels."""
    data = _cifar10(seed, smoke=smoke, size=8)
    path, counts = local_data.find("cifar10") / "cifar10n_labels.npz", None if smoke else cifar.COUNTS["train"]
    y = cifar.human_labels(path, labels, counts=counts)[data.train.id]
    wrong = np.asarray(data.train.id)[y != data.train.y]
    return data._replace(train=data.train._replace(y=y, group=y)), wrong


def _cifar10(seed: int, *, smoke: bool, **options: Any) -> Data:
    load = partial(cifar.load_cifar10, source_dir=local_data.find("cifar10"), data_dir=DECODED)
    if smoke:  # on as few images as there are
        options |= {"counts": None}
    return tasks.pixels(load, seed, smoke=smoke, **options)


def cnn(num_classes: int = len(cifar.NAMES)) -> Model:
    """Two convolutions of 16 and 32 channels on 8 x 8 pixels."""
    return conv.cnn((16, 32), num_classes, image=_SMALL, convolve=tasks.fastest_convolution())


def _resnet9() -> Model:
    convolve = tasks.fastest_convolution()
    return conv.resnet9(len(cifar.NAMES), norm=conv.batch_norm(), image=_WHOLE, convolve=convolve, dtype=jnp.bfloat16)


def _as_published(model: Model, steps: int, sampler: Sampler) -> Trainer:
    """The recipe of the datamodels paper, its 24 epochs spread over ``steps``."""
    return recipes.datamodels_cifar10(model, steps * 512 // 24, sampler=sampler).trainer


CIFAR10 = Task(
    name="cifar10",
    about="CIFAR-10 at 8 x 8 pixels, ten classes, nothing planted; a CNN of 16 and 32 channels.",
    load=partial(_cifar10, size=8),
    class_names=cifar.NAMES,
    group_names=cifar.NAMES,
    image=_SMALL,
    steps=1000,
    batch=40,
    rate=0.1,
    make_model=cnn,
)

CIFAR10_RESNET9 = replace(
    CIFAR10,
    name="cifar10-resnet9",
    about="CIFAR-10, all 50,000 training images at 32 x 32 pixels; ResNet-9 and recipe of the datamodels paper.",
    load=partial(_cifar10, size=32, train=50_000, targets=1000, test=8000),
    image=_WHOLE,
    steps=1152,  # 24 epochs of a half subset
    batch=512,
    make_model=_resnet9,
    make_trainer=_as_published,
)


def _human(name: str, labels: str, about: str) -> Task:
    return replace(
        CIFAR10,
        name=name,
        about=f"CIFAR-10 at 8 x 8 pixels with human labels of the training images (CIFAR-10N): {about}; targets, "
        "selection and test have right labels.",
        load=lambda seed, *, smoke: _with_human_labels(seed, labels, smoke=smoke)[0],
        wrong=lambda seed, *, smoke=False: _with_human_labels(seed, labels, smoke=smoke)[1],
    )


CIFAR10N = _human("cifar10n", "worse_label", "the wrong one of three people where there is one, 40 % wrong")
CIFAR10N_ONE = _human("cifar10n-one", "random_label1", "those of the first of three people, 17 % wrong")
CIFAR10N_MOST = _human("cifar10n-most", "aggre_label", "those of most of three people, 9 % wrong")
TASKS = {task.name: task for task in (CIFAR10N, CIFAR10N_ONE, CIFAR10N_MOST)}
"""Tasks of the study of label errors."""

LDS_TASKS = tasks.LDS_TASKS | {task.name: task for task in (CIFAR10, CIFAR10_RESNET9)}
"""Tasks of the studies of datamodels."""
