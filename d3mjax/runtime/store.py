"""Files that are whole or absent: atomic writes, strict JSON, arrays as ``.npz``, checksums."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3mjax.data.atomic import seal as seal
from d3mjax.data.atomic import unseal as unseal
from d3mjax.data.atomic import write_bytes as write_bytes
from d3mjax.data.digests import digest as digest


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises ValueError on NaN or infinity, which JSON does not have."""
    write_bytes(path, json_text(value, indent=1).encode())


def read_json(path: Path) -> Any:
    """Read one JSON file; raises ValueError naming the file if it is damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as one `.npz`, whole or not at all; read it with `numpy.load`.

    Raises TypeError for what NumPy could only pickle or would not read back (objects, bfloat16, random keys).
    """
    write_bytes(path, npz_bytes(arrays))


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Arrays by name as the content of one `.npz`. Raises TypeError as `write_arrays` does."""
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.kind in "OV":
            raise TypeError(f"array {name!r} of dtype {value.dtype} cannot be stored: convert it first")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Fields in which two JSON objects differ, by dotted name; empty if they are equal."""
    a, b = _flat(found), _flat(expected)
    values = {name: (a.get(name, "absent"), b.get(name, "absent")) for name in sorted(a.keys() | b.keys())}
    return "; ".join(f"{name}: found {old}, expected {new}" for name, (old, new) in values.items() if old != new)


def json_text(value: Any, *, sort_keys: bool = False, indent: int | None = None) -> str:
    """`value` as strict JSON: arrays as lists, paths as text. ValueError on NaN, TypeError on other objects."""
    return json.dumps(value, allow_nan=False, default=_plain, sort_keys=sort_keys, indent=indent)


def _plain(value):
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"value: found {type(value).__name__} {value!r}, expected what JSON can hold")


def _flat(config, prefix=""):
    """Leaves of nested objects by dotted name, as JSON text."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): json.dumps(config)}
    return {k: v for name, value in config.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
