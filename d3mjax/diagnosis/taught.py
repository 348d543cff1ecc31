"""Taught diagnosers as files, and the one that ships with the package.

``d3mjax/diagnosis/shipped/diagnoser.npz`` is what ``python -m experiments demix_pretrain`` makes: trees taught on six
tables with planted errors. Its manifest holds what taught it and how well it does on tables left out.
"""

import importlib.resources
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any

from d3mjax.diagnosis import trees
from d3mjax.diagnosis.cells import FEATURES
from d3mjax.runtime import diagnoser, store

SHIPPED = importlib.resources.files("d3mjax.diagnosis") / "shipped" / "diagnoser.npz"


def save(path: Any, fitted: trees.Trees, manifest: dict[str, Any]) -> None:
    """Write trees and their manifest as one file, as `load` reads it; raises as `diagnoser.save_diagnoser`."""
    diagnoser.save_diagnoser(path, _arrays(fitted), manifest)


def load(path: Traversable) -> tuple[trees.Trees, dict[str, Any]]:
    """Trees and their manifest. Raises ValueError if they were made for other features, naming both layouts."""
    arrays, manifest = diagnoser.load_diagnoser(path, FEATURES)
    if set(arrays) != set(trees.Trees._fields):
        raise ValueError(f"{path} holds {sorted(arrays)}, expected trees: {sorted(trees.Trees._fields)}")
    forest = trees.Forest(**arrays.pop("forest"))
    return trees.Trees(forest, **arrays), manifest


@cache
def shipped() -> tuple[trees.Trees, dict[str, Any]]:
    """The diagnoser of the package and its manifest."""
    return load(SHIPPED)


def digest(fitted: trees.Trees) -> str:
    """A digest of all arrays, whatever file they are in."""
    return store.digest(_arrays(fitted))


def _arrays(fitted: trees.Trees) -> dict[str, Any]:
    return fitted._asdict() | {"forest": fitted.forest._asdict()}
