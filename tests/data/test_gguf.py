"""GGUF files written byte by byte: values worked out by hand, and damage that is named."""

import struct

import made_gguf
import numpy as np
import planted
import pytest

from d3mjax.data.gguf import read_gguf

METADATA = {
    "general.architecture": "llama",
    "size": 7,
    "base": 0.5,
    "flag": True,
    "words": ["a", "Ġb", "é"],
    "of": [1, 2],
}


def half(*numbers: float) -> bytes:
    return np.array(numbers, "<f2").tobytes()


def test_values_of_each_type_are_those_worked_out_by_hand(tmp_path):
    ramp = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    signed = np.arange(-16, 16, dtype=np.int8)  # Q8_0: scale times the number
    low, high = np.arange(16), 15 - np.arange(16)  # Q4_1: scale times 0..15, plus the least; low quarters come first
    packed = (low | high << 4).astype(np.uint8).tobytes()
    tensors = {
        "f32": ("F32", (2, 3), ramp.tobytes()),
        "f16": ("F16", (3,), half(0.5, -2.0, 1e-4)),
        "q8": ("Q8_0", (1, 32), half(0.25) + signed.tobytes()),
        "q4": ("Q4_1", (2, 32), half(0.5, -3.0) + packed + half(2.0, 1.0) + bytes(16)),
    }
    got, metadata = read_gguf(made_gguf.write(tmp_path / "made.gguf", METADATA, tensors))
    assert metadata == METADATA
    assert {a.dtype for a in got.values()} == {np.dtype("float32")}
    planted.equal(got["f32"], ramp)
    planted.equal(got["f16"], np.array([0.5, -2.0, np.float16(1e-4)], np.float32))
    planted.equal(got["q8"], [[0.25 * i for i in range(-16, 16)]])
    first = [0.5 * i - 3 for i in range(16)] + [0.5 * i - 3 for i in range(15, -1, -1)]
    planted.equal(got["q4"], [first, [1.0] * 32])


def test_other_types_are_named(tmp_path):
    path = made_gguf.write(tmp_path / "made.gguf", {}, {"blk.0.up": ("Q4_0", (1, 32), bytes(18))})
    with pytest.raises(ValueError, match=r"tensor 'blk\.0\.up' of type Q4_0, expected one of F32, F16, Q8_0, Q4_1"):
        read_gguf(path)
    data = bytearray(path.read_bytes())
    begin = data.index(b"blk.0.up") + 8 + 4 + 16
    data[begin : begin + 4] = struct.pack("<I", 99)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"'blk\.0\.up' of type number 99"):
        read_gguf(path)


@pytest.mark.parametrize(("kept", "message"), [(-30, "expected 4 of tensor 'a'"), (60, "truncated"), (3, "truncated")])
def test_truncated_files_are_named(tmp_path, kept, message):
    path = made_gguf.write(tmp_path / "made.gguf", METADATA, {"a": ("F32", (1,), bytes(4))})
    path.write_bytes(path.read_bytes()[:kept])  # -30: two of the four bytes of the tensor, and no padding
    with pytest.raises(ValueError, match=f"made.gguf: found .* bytes, .*{message}"):
        read_gguf(path)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "made.gguf"
    with pytest.raises(ValueError, match="missing, empty"):
        read_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="missing, empty"):
        read_gguf(path)
    path.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(ValueError, match=r"first bytes b'PK\\x03\\x04', expected b'GGUF'"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ValueError, match="GGUF version 1, expected one of"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + made_gguf.string("key") + struct.pack("<I", 13))
    with pytest.raises(ValueError, match="metadata of type 13"):
        read_gguf(path)
