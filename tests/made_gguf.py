"""GGUF files of made tensors, written from the description of the format."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
ALIGNMENT = 32


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(entry: Any) -> bytes:
    """The type and the bytes of a value: bool, int (uint32), float (float32), str, or a list of one of them."""
    if isinstance(entry, list):
        parts = [value(item) for item in entry]
        return struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(p[4:] for p in parts)
    if isinstance(entry, bool):
        return struct.pack("<I?", 7, entry)
    if isinstance(entry, int):
        return struct.pack("<II", 4, entry)
    if isinstance(entry, float):
        return struct.pack("<If", 6, entry)
    return struct.pack("<I", 8) + string(entry)


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """A file of version 3; tensors are (type, shape, bytes) by name."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(string(key) + value(entry) for key, entry in metadata.items())
    data = b""
    for name, (kind, shape, payload) in tensors.items():
        sizes = struct.pack(f"<{len(shape)}Q", *shape[::-1])
        header += string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", TYPES[kind], len(data))
        data += payload + bytes(-len(payload) % ALIGNMENT)
    path.write_bytes(header + bytes(-len(header) % ALIGNMENT) + data)
    return path


def floats(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors as they are, in float32."""
    return {name: ("F32", a.shape, a.astype("<f4").tobytes()) for name, a in tensors.items()}
