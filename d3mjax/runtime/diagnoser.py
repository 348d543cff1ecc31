"""A trained diagnoser on disk: arrays by name and a manifest of their channels and training cells, in one file.

The file is an ``.npz``, with the manifest as JSON in one of its arrays, followed by a checksum (`store.seal`).
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from d3mjax.runtime import runs, store

_MANIFEST = "__manifest__"
_FACTS = ("channels", "kinds", "sizes", "cells")


def save_diagnoser(path: str | Path, arrays: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays and their manifest as one file, whole or not at all.

    ``arrays`` are those of a diagnoser (``diagnoser._asdict()``: variables, thresholds, calibration); no ``/`` in their
    names. ``manifest`` holds at least ``channels`` (names in the order of axis k), ``kinds`` of error, ``sizes`` of the
    network and training ``cells``; the versions and revision of this process are added as ``environment``.

    Raises:
      ValueError: if the manifest lacks one of these, or thresholds are not one for each kind.
    """
    if missing := [name for name in _FACTS if name not in manifest]:
        raise ValueError(f"manifest: found {sorted(manifest)}, expected also {missing}")
    if len(arrays["thresholds"]) != len(manifest["kinds"]):
        raise ValueError(f"thresholds: found {len(arrays['thresholds'])}, expected one for each of {manifest['kinds']}")
    flat = {name: np.asarray(a) for name, a in traverse_util.flatten_dict(dict(arrays), sep="/").items()}
    text = store.json_text({**manifest, "environment": runs.environment()}).encode()
    payload = store.npz_bytes({**flat, _MANIFEST: np.frombuffer(text, np.uint8)})
    store.write_bytes(Path(path), store.seal(payload))


def load_diagnoser(path: str | Traversable, *layouts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(arrays, manifest)`` as `save_diagnoser` was given them, bit by bit; ``Diagnoser(**arrays)``.

    Raises:
      ValueError: naming the file, if it is damaged, or if its channels are none of ``layouts``, in their order.
      FileNotFoundError: if there is none.
    """
    payload = store.unseal((Path(path) if isinstance(path, str) else path).read_bytes())
    if payload is None:
        raise ValueError(f"{path} is damaged, or holds no diagnoser: its checksum does not match")
    with np.load(BytesIO(payload)) as archive:
        flat = {name: archive[name] for name in archive.files}
    manifest = json.loads(flat.pop(_MANIFEST).tobytes())
    if manifest["channels"] not in (expected := list(map(list, layouts))):
        raise ValueError(f"{path}: channels: found {manifest['channels']}, expected {' or '.join(map(str, expected))}")
    return traverse_util.unflatten_dict(flat, sep="/"), manifest
