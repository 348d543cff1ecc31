"""Photographs: Waterbirds, CelebA-Blond and CelebA-Age with a ResNet-50 pretrained on ImageNet.

Each is two tasks: ``waterbirds`` trains the whole network, ``waterbirds-head`` the last layer on its frozen features,
which are computed once and kept. Data and weights are the user's: see `local_data` and docs/benchmarks.md. Images are
uint8 in memory and normalised on the device.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from d3mjax.data import cache, splits, weight_files
from d3mjax.data.sets import celeba, images, waterbirds
from d3mjax.debiasing import last_layer
from d3mjax.networks import adapt, resnets
from d3mjax.types import Data, Model
from experiments import local_data
from experiments.tasks import Task, fastest_convolution, first_of_groups, in_parts

FEW = 8


class Source(NamedTuple):
    """Where images and weights come from; the defaults are the published ones."""

    read: Callable[..., Data]  # (seed, size=, counts=, data_dir=) -> Data of uint8 images
    counts: splits.Counts  # of groups
    network: resnets.ResnetConfig = resnets.RESNET50
    weights: str = "resnet50"  # of `local_data.SOURCES`
    size: int = 224  # pixels
    made: Path = local_data.FILLED / "made"  # directory of decoded images, and of features


class Recipe(NamedTuple):
    """Training of a whole network, by SGD with momentum .9; the rate falls linearly to zero."""

    epochs: int
    batch: int
    rate: float
    decay: float


def pretrained(source: Source, num_classes: int | None) -> Model:
    """The network of a source from its published weights, with a new head; None: its features.

    Raises ``ValueError`` with the file to get where there are none.
    """
    tensors = weight_files.read_safetensors(local_data.find(source.weights) / "model.safetensors")
    config = source.network._replace(convolve=fastest_convolution())
    model = resnets.encoder(config) if num_classes is None else resnets.classifier(config, num_classes)
    fresh = () if num_classes is None else ("head",)
    model = adapt.starting_from(model, resnets.from_published(model, tensors, fresh=fresh))
    return in_parts(resnets.of_bytes(model, mean=images.MEAN, std=images.STD))


def whole(source: Source, seed: int, *, smoke: bool = False) -> Data:
    """The splits of a seed, pixels in uint8; in smoke runs the first `FEW` of each group of each split."""
    data = source.read(seed, size=source.size, counts=source.counts, data_dir=source.made)
    return Data(*(first_of_groups(split, FEW) for split in data)) if smoke else data


def on_features(source: Source, seed: int, *, smoke: bool = False) -> Data:
    """As `whole`, images as features of the pretrained network, standardised by those of the training set."""
    data, model = whole(source, seed, smoke=smoke), pretrained(source, None)
    variables = model.init(jax.random.key(0), data.train.x[:1])
    options = {"name": source.weights, "config": source.network}
    seen = cache.make_features(model, variables, source.made / "features", **options)

    # Seeds divide the validation images anew: in the order of their ids they have one digest.
    both = splits.concatenate(data.target, data.selection)
    order = np.argsort(both.id)
    validation = np.empty((len(order), source.network.features), np.float32)
    validation[order] = seen(both.x[order])
    train = seen(data.train.x)
    scale, count = last_layer.scale_of(train), len(data.target.y)
    parts = {"train": train, "target": validation[:count], "selection": validation[count:], "test": seen(data.test.x)}
    standard = {name: np.asarray(last_layer.standardise(x, scale)) for name, x in parts.items()}
    return Data(**{name: getattr(data, name)._replace(x=x) for name, x in standard.items()})


def tasks_of(
    name: str, about: str, source: Source, recipe: Recipe, class_names: tuple[str, ...], group_names: tuple[str, ...]
) -> dict[str, Task]:
    """The two tasks of a data set, by name."""
    n = sum(source.counts["train"])
    shown: dict[str, Any] = {"class_names": class_names, "group_names": group_names}
    of_network = Task(
        name=name,
        about=f"{about} A ResNet-50 that was pretrained on ImageNet.",
        load=partial(whole, source),
        make_model=partial(pretrained, source, len(class_names)),
        image=(source.size, source.size, 3),
        steps=recipe.epochs * n // recipe.batch,
        batch=recipe.batch,
        rate=recipe.rate,
        decay=recipe.decay,
        head="head",
        at_once=1,
        **shown,
    )
    of_head = Task(
        name=f"{name}-head",
        about=f"{about} The last layer of a ResNet-50 that was pretrained on ImageNet, on its frozen features.",
        load=partial(on_features, source),
        steps=2000,
        batch=128,
        rate=1e-3,
        decay=1e-3,
        show=partial(_pictures, source),
        **shown,
    )
    return {task.name: task for task in (of_network, of_head)}


def _pictures(source: Source, seed: int, ids: np.ndarray) -> UInt8[np.ndarray, "k h w 3"]:
    train = whole(source, seed).train
    return np.asarray(train.x)[splits.rows_of(ids, train.id)]


def _birds(seed: int, **options: Any) -> Data:
    return waterbirds.load_waterbirds(seed, source_dir=local_data.find("waterbirds"), normalise=False, **options)


def _blond(seed: int, *, data_dir: Path, **options: Any) -> Data:
    return celeba.load_celeba_blond(seed, normalise=False, **_celeba(data_dir), **options)


def _age(seed: int, *, data_dir: Path, counts: Any, **options: Any) -> Data:
    return celeba.load_celeba_age(seed, normalise=False, sex_counts=counts, **_celeba(data_dir), **options)


def _celeba(data_dir: Path) -> dict[str, Any]:
    """The published folder, or TFDS where TFDS keeps its data."""
    source = local_data.search("celeba")
    return {"source_dir": source, "data_dir": data_dir} if source else {}


# As for the base models of deep feature reweighting (Kirichenko et al., 2023).
BIRDS, FACES = Recipe(100, 32, 1e-3, 1e-3), Recipe(50, 128, 1e-3, 1e-4)
TASKS = {
    **tasks_of(
        "waterbirds",
        "Waterbirds: land or water bird? The background agrees for 95 % of the training images. The groups are label "
        "by background.",
        Source(_birds, waterbirds.COUNTS),
        BIRDS,
        ("landbird", "waterbird"),
        waterbirds.GROUP_NAMES,
    ),
    **tasks_of(
        "celeba-blond",
        "CelebA: is the person blond? Of the blond training images 6 % show men. The groups are label by sex.",
        Source(_blond, celeba.BLOND_COUNTS),
        FACES,
        ("not blond", "blond"),
        celeba.BLOND_GROUP_NAMES,
    ),
    **tasks_of(
        "celeba-age",
        "CelebA: is the person young? The groups are label by sex.",
        Source(_age, celeba.SEX_COUNTS),
        FACES,
        ("old", "young"),
        celeba.AGE_GROUP_NAMES,
    ),
}
