"""Files that are whole or absent, and files that are checked when they are read."""

import hashlib
import os
import uuid
from pathlib import Path

_CHECKSUM = 32  # bytes


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


def seal(payload: bytes) -> bytes:
    """Bytes followed by their SHA-256, the layout of every file that is checked when it is read."""
    return payload + hashlib.sha256(payload).digest()


def unseal(content: bytes) -> bytes | None:
    """The payload of `seal`; None if it is damaged."""
    payload, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
    return payload if hashlib.sha256(payload).digest() == checksum else None
