"""Tasks whose groups differ in an attribute that no method is given, and what can be measured of an example.

Fashion-MNIST: sleeves, or brightness, as nature has them; CIFAR-10: the brightness of the border. They are measured on
the pixels and compared with the median over the training images. Sentences: the kind of text, or a negation. Groups are
label by value.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from d3mjax.data import splits
from d3mjax.data.planted import cues
from d3mjax.data.sets import fashion, fashion_cues, sentences
from d3mjax.data.sets.negation import is_negated
from d3mjax.types import AnyArray, Data
from experiments import cifar_tasks, text_tasks
from experiments.tasks import PATCH, SMALL, Task

INK = 0.1  # of the brightest pixel: darker pixels are background


class Case(NamedTuple):
    """A task whose groups no method sees, and candidates for what a direction follows."""

    task: Task
    values: tuple[str, ...]  # of the hidden attribute, by group; "" in a class that is one group
    measure: Callable[[Any], dict[str, Float[np.ndarray, "k"]]]  # of k pictures or sentences


def of_pictures(pictures: Num[AnyArray, "k h w *c"]) -> dict[str, Float[np.ndarray, "k"]]:
    """Brightness, shares of the ink, asymmetry and contrast of pictures whose darkest value is black.

    Of colours also the brightness of the border, and its red less its blue.
    """
    x = np.asarray(pictures, np.float64)
    x = (x - x.min()) / max(x.max() - x.min(), 1e-12)
    grey = x.mean(3) if x.ndim == 4 else x
    total = np.maximum(grey.sum((1, 2)), 1e-12)
    ink, side = grey > INK, max(grey.shape[2] // 5 + 1, 1)
    share = lambda part: part.sum((1, 2)) / total
    measures = {
        "brightness": (grey * ink).sum((1, 2)) / np.maximum(ink.sum((1, 2)), 1),
        "sides": share(grey[:, :, :side]) + share(grey[:, :, -side:]),
        "lower half": share(grey[:, grey.shape[1] // 2 :]),
        "asymmetry": share(np.abs(grey - grey[:, :, ::-1])),
        "contrast": grey.std((1, 2)),
    }
    if x.ndim == 3 or x.shape[3] == 1:
        return measures
    frame = np.ones(x.shape[1:3], bool)
    frame[2:-2, 2:-2] = False
    border = x[:, frame].mean(1)  # [k c]
    return measures | {"border": border.mean(1), "warm border": border[:, 0] - border[:, 2]}


def of_sentences(texts: Sequence[str]) -> dict[str, Float[np.ndarray, "k"]]:
    """Numbers of words, of marks, of words of the first person and of capitals, and whether there is a negation."""
    patterns = {"length": r"\S+", "marks": r"[!?]", "first person": r"\b(I|me|my|we|our)\b", "capitals": r"[A-Z]"}
    counts = {name: [len(re.findall(pattern, text)) for text in texts] for name, pattern in patterns.items()}
    counts["negation"] = [is_negated(text) for text in texts]
    return {name: np.array(values, np.float64) for name, values in counts.items()}


def of_pairs(pairs: Sequence[str]) -> dict[str, Float[np.ndarray, "k"]]:
    """Of ``"first / second"``: number of words, whether there is a negation, and the share of words in both."""

    def overlap(pair: str) -> float:
        first, second = (set(part.lower().split()) for part in pair.split(" / "))
        return len(first & second) / len(first | second)

    measures = of_sentences(pairs)
    kept = {name: measures[name] for name in ("length", "negation")}
    return kept | {"overlap": np.array([overlap(pair) for pair in pairs])}


def _pair(seed: int, *, smoke: bool, classes: tuple[int, int], attribute: str) -> Data:
    """Two classes of Fashion-MNIST at 14 x 14, all official test images, pixels as those of the other tasks."""
    sizes: dict[str, Any] = SMALL if smoke else {"targets": 800, "selection": 1000, "test": 2000}
    drawn = fashion_cues.Task(classes=tuple((c,) for c in classes), cue=cues.NoCue(), seed=seed, **sizes)
    data = fashion_cues.load_fashion_spurious(drawn)
    mean, std = np.mean(data.train.x), np.std(data.train.x)
    scaled = (split._replace(x=((split.x - mean) / std).astype(np.float32)) for split in data)
    return _grouped(Data(*scaled), (14, 14), attribute)


def _cifar_pair(seed: int, *, smoke: bool, classes: tuple[int, int], attribute: str) -> Data:
    """Two classes of CIFAR-10 at 8 x 8: 4,000, 500, 500 and 1,000 images."""
    data = cifar_tasks.CIFAR10.load(seed, smoke=smoke, train=20_000, targets=2_500, selection=2_500, test=5_000)
    of_two = (splits.take(split, np.flatnonzero(np.isin(split.y, classes))) for split in data)
    named = (split._replace(y=(split.y == classes[1]).astype(np.int32)) for split in of_two)
    return _grouped(Data(*named), (8, 8, 3), attribute)


def _grouped(data: Data, image: tuple[int, ...], attribute: str) -> Data:
    """Groups ``2 y + bit``; the bit tells whether the attribute is above the median over the training images."""
    of_split = [of_pictures(np.asarray(split.x).reshape(-1, *image))[attribute] for split in data]
    bits = [(values > np.median(of_split[0])).astype(np.int32) for values in of_split]
    return Data(*(split._replace(group=2 * split.y + bit) for split, bit in zip(data, bits, strict=True)))


def _case(name: str, about: str, classes: tuple[int, int], attribute: str, values: tuple[str, str]) -> Case:
    labels = tuple(fashion.NAMES[c] for c in classes)
    task = replace(
        PATCH,
        name=name,
        about=about,
        load=lambda seed, *, smoke: _pair(seed, smoke=smoke, classes=classes, attribute=attribute),
        class_names=labels,
        group_names=tuple(f"{label}, {value}" for label in labels for value in values),
    )
    return Case(task, 2 * values, of_pictures)


_OF = "Fashion-MNIST at 14 x 14, nothing planted: {}. Hidden: {}, above the median of the training images or not."
_SLEEVES = "the share of the ink in the outer columns, as sleeves make it"
_BORDER = ("dark border", "bright border")
_PLANES = replace(
    cifar_tasks.CIFAR10,
    name="plane-border",
    about="CIFAR-10 at 8 x 8, airplane or bird, nothing planted. Hidden: the brightness of the border, above the "
    "median of the training images or not.",
    load=partial(_cifar_pair, classes=(0, 2), attribute="border"),
    class_names=("airplane", "bird"),
    group_names=tuple(f"{label}, {value}" for label in ("airplane", "bird") for value in _BORDER),
    make_model=partial(cifar_tasks.cnn, 2),
)
_NEGATION = ("no negation", "negation")
_ALL = (
    _case("dress-sleeves", _OF.format("T-shirt or dress", _SLEEVES), (0, 3), "sides", ("narrow", "wide")),
    _case("shirt-sleeves", _OF.format("T-shirt or shirt", _SLEEVES), (0, 6), "sides", ("narrow", "wide")),
    _case(
        "coat-brightness",
        _OF.format("pullover or coat", "the mean brightness of the garment"),
        (2, 4),
        "brightness",
        ("dark", "bright"),
    ),
    Case(_PLANES, 2 * _BORDER, of_pictures),
    Case(text_tasks.DOMAINS, 2 * sentences.DOMAINS, of_sentences),
    Case(text_tasks.NEGATION, 2 * _NEGATION, of_sentences),
    Case(text_tasks.SICK, (*_NEGATION, "", *_NEGATION), of_pairs),
)
CASES = {case.task.name: case for case in _ALL}
