"""What a file holds, by its first bytes: how it is packed, and its format. Suffixes decide only where bytes do not."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import pyarrow as pa

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
TEXT, PARQUET, ARROW, SHEET, JSON = "delimited text", "Parquet", "Arrow", "a spreadsheet", "JSON"
SUFFIXES = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), TEXT),
    ".parquet": PARQUET,
    **dict.fromkeys((".feather", ".arrow"), ARROW),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), SHEET),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), JSON),
}
_STARTS = {
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": ARROW,  # a stream
    b"PK\x03\x04": SHEET,
    b"\xd0\xcf\x11\xe0": SHEET,
}
_REFUSED = {
    b"FEA1": "Feather of version 1",
    b"\x89HDF": "HDF5",
    b"SQLite format 3": "a database of SQLite",
    b"%PDF": "PDF",
    b"\x93NUMPY": "one NumPy array",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull brings the file)",
    b"<": "HTML or XML",
}


def unpacked(path: str) -> io.BufferedIOBase:
    """The file from its beginning, decompressed where its bytes are those of .gz, .bz2, .xz, .zst or .zip."""
    with open(path, "rb") as file:
        head = file.read(10)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ"):
        return lzma.open(path)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(path), "zstd"))
    if head.startswith(b"PK\x03\x04"):
        return _unzipped(path)
    return open(path, "rb")


def suffix(path: str) -> str:
    """The suffix in lower case, without that of the packing; empty where there is none."""
    return next((s for s in map(str.lower, reversed(Path(path).suffixes)) if s not in PACKED), "")


def kind(head: bytes, path: str) -> str:
    """The format of a file, one of the values of ``SUFFIXES``, given its first bytes.

    Raises:
      ValueError: for an empty file, and for formats without tables, by name.
    """
    if not head:
        raise ValueError(f"{path}: found an empty file, expected a header line and rows")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, name in _REFUSED.items():
        if text.startswith(start):
            raise ValueError(f"{path}: found {name}, expected one of {', '.join(SUFFIXES)}")
    for start, name in _STARTS.items():
        if head.startswith(start):
            return name
    return JSON if SUFFIXES.get(suffix(path)) == JSON or text.startswith((b'{"', b'[{"')) else TEXT


def _unzipped(path: str) -> io.BufferedIOBase:
    """The one file of an archive, or the archive itself where it is a spreadsheet."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if "[Content_Types].xml" in names or "mimetype" in names:
        archive.close()
        return open(path, "rb")
    if len(names) != 1 or names[0].endswith(".npy"):
        archive.close()
        listed = ", ".join(map(os.path.basename, names[:3]))
        raise ValueError(f"{path}: found an archive of {len(names)} files ({listed}), expected one table")
    return archive.open(names[0])  # pyright: ignore[reportReturnType]
