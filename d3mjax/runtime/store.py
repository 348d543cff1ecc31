"""Files that are whole or absent: atomic writes, strict JSON, arrays as `.npz`, and digests of trees of arrays."""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises ValueError on NaN or infinity, which JSON does not have."""
    write_bytes(path, json_text(value, indent=1).encode())


def read_json(path: Path) -> Any:
    """Read one JSON file; raises ValueError naming the file if it is damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error


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


def write_bytes(path: Path, content: bytes) -> None:
    """Write one file that appears under its name only when it is whole and on disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # same directory: a rename cannot cross disks
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two JSON objects differ in, by dotted name; empty if they are the same."""
    there, here = _flat(there), _flat(here)
    differ = [
        f"{k} is {there.get(k, 'absent')} there, {here.get(k, 'absent')} here"
        for k in sorted(there.keys() | here.keys())
        if there.get(k, "absent") != here.get(k, "absent")
    ]
    return "; ".join(differ)


def digest(tree: PyTree) -> str:
    """SHA-256 of paths, shapes, dtypes and bytes of a tree of arrays, random keys included."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        hashed.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype};".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def json_text(value: Any, *, sort_keys: bool = False, indent: int | None = None) -> str:
    """`value` as strict JSON: arrays as lists, paths as text. ValueError on NaN, TypeError on other objects."""
    return json.dumps(value, allow_nan=False, default=_plain, sort_keys=sort_keys, indent=indent)


def _plain(value):
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON: {value!r}")


def _flat(config, prefix=""):
    """Leaves of nested objects by dotted name, as JSON text."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): json.dumps(config)}
    return {k: v for name, value in config.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
