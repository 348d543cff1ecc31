"""Taught diagnosers as files, and the two that ship with the package, for classes and for numbers as labels.

``d3mjax/diagnosis/shipped/diagnoser.npz`` is what ``python -m experiments demix_tables_pretrain`` makes: trees taught
on 43 tables with planted errors. Its manifest holds what taught it and how well it does on tables left out.
"""

import importlib.resources
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any

from d3mjax.diagnosis import trees
from d3mjax.diagnosis.cells import FEATURES, NUMBER_FEATURES, WIDE
from d3mjax.runtime import diagnoser, store

_DIRECTORY = importlib.resources.files("d3mjax.diagnosis") / "shipped"
SHIPPED, SHIPPED_NUMBERS = _DIRECTORY / "diagnoser.npz", _DIRECTORY / "diagnoser_numbers.npz"


def save(path: Any, fitted: trees.Trees, manifest: dict[str, Any]) -> None:
    """Write trees and their manifest as one file, as `load` reads it; raises as `diagnoser.save_diagnoser`."""
    diagnoser.save_diagnoser(path, _arrays(fitted), manifest)


def load(path: Traversable, *, numbers: bool = False) -> tuple[trees.Trees, dict[str, Any]]:
    """Trees and their manifest, for classes, or ``numbers``, as labels.

    Those for classes read `WIDE` features, or the first of them, `FEATURES`, alone, as its manifest records. Raises
    ValueError if they were made for other features, naming all layouts.
    """
    arrays, manifest = diagnoser.load_diagnoser(path, *((NUMBER_FEATURES,) if numbers else (FEATURES, WIDE)))
    if set(arrays) != set(trees.Trees._fields):
        raise ValueError(f"{path} holds {sorted(arrays)}, expected trees: {sorted(trees.Trees._fields)}")
    forest = trees.Forest(**arrays.pop("forest"))
    return trees.Trees(forest, **arrays), manifest


@cache
def shipped(*, numbers: bool = False) -> tuple[trees.Trees, dict[str, Any]]:
    """The diagnoser of the package for classes, or ``numbers``, as labels, and its manifest."""
    return load(SHIPPED_NUMBERS if numbers else SHIPPED, numbers=numbers)


def digest(fitted: trees.Trees) -> str:
    """A digest of all arrays, whatever file they are in."""
    return store.digest(_arrays(fitted))


def _arrays(fitted: trees.Trees) -> dict[str, Any]:
    return fitted._asdict() | {"forest": fitted.forest._asdict()}
