"""Weights and metadata of GGUF files, as llama.cpp writes them; quantised weights become float32.

A file is a header of named metadata (sizes of the network, its vocabulary, a chat template), then tensors, each of one
type. Quantised types have blocks of 32 numbers with a scale, which is half a number of float16 a weight.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # by the code of a type of metadata
_BLOCK = 32  # numbers of a quantised block
_NAMES = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K"),
    *("Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16"),
    *("I32", "I64", "F64", "IQ1_M", "BF16"),
)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].view(np.int8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    scale, least = np.split(blocks[:, :4].copy().view(np.float16).astype(np.float32), 2, axis=1)
    quarters = blocks[:, 4:]
    return scale * np.concatenate([quarters & 15, quarters >> 4], axis=1) + least


class _Type(NamedTuple):
    """How ``numbers`` of a tensor lie in ``bytes``."""

    numbers: int
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]  # UInt8[blocks bytes] -> [blocks numbers]


_TYPES = {
    "F32": _Type(1, 4, lambda blocks: blocks.view("<f4")),
    "F16": _Type(1, 2, lambda blocks: blocks.view("<f2")),
    "Q8_0": _Type(_BLOCK, 34, _q8_0),
    "Q4_1": _Type(_BLOCK, 20, _q4_1),
}


def read_gguf(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of a GGUF file by name, in float32 with the slowest axis first, and its metadata by key.

    Types of tensors: F32, F16, Q8_0 and Q4_1.

    Raises:
      ValueError: a file that is missing, truncated, no GGUF file or of another version; a tensor of another type, by
        name.
    """
    try:
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: missing, empty, or not a file ({error})") from error
    header = _Header(data.data, path)
    if (magic := bytes(header.bytes(4))) != _MAGIC:
        raise ValueError(f"{path}: found the first bytes {magic!r}, expected {_MAGIC!r}")
    if (version := header.number("I")) not in _VERSIONS:
        raise ValueError(f"{path}: found GGUF version {version}, expected one of {_VERSIONS}")
    num_tensors, num_entries = header.number("Q"), header.number("Q")
    metadata = {header.string(): header.value(header.number("I")) for _ in range(num_entries)}
    infos = [_read_info(header) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    first = -(-header.offset // alignment) * alignment
    return {info.name: _tensor(data, first, info, path) for info in infos}, metadata


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """Reader of the numbers and strings of a header, one after the other."""

    def __init__(self, data: memoryview, path: str | Path):
        self.data, self.path, self.offset = data, path, 0

    def bytes(self, count: int) -> memoryview:
        if self.offset + count > len(self.data):
            raise ValueError(f"{self.path}: found {len(self.data):,} bytes, expected more: the header is truncated")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        return bytes(self.bytes(self.number("Q"))).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"{self.path}: found metadata of type {kind}, expected 0 to 12: the header is damaged")
        return self.number(_NUMBERS[kind])


def _read_info(header: _Header) -> _Info:
    name, axes = header.string(), header.number("I")
    shape = tuple(header.number("Q") for _ in range(axes))[::-1]  # the fastest axis is first in the file
    return _Info(name, shape, header.number("I"), header.number("Q"))


def _tensor(data: np.ndarray, first: int, info: _Info, path: str | Path) -> np.ndarray:
    name = _NAMES[info.kind] if info.kind < len(_NAMES) else f"number {info.kind}"
    if name not in _TYPES:
        raise ValueError(f"{path}: found tensor {info.name!r} of type {name}, expected one of {', '.join(_TYPES)}")
    kind, count = _TYPES[name], math.prod(info.shape)
    begin, size = first + info.offset, count // kind.numbers * kind.bytes
    if count % kind.numbers or begin + size > len(data):
        raise ValueError(
            f"{path}: found {len(data):,} bytes, expected {size:,} of tensor {info.name!r} from {begin:,} on"
        )
    blocks = np.asarray(data[begin : begin + size]).reshape(-1, kind.bytes)
    return kind.values(blocks).astype(np.float32).reshape(info.shape)
