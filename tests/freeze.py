"""Store the rows of all smoke runs in ``tests/frozen/rows.json.gz``, with which test_smoke.py compares.

Command:  make freeze   (twenty minutes; again whenever numbers change on purpose, and say why in the commit)
"""

import conftest  # noqa: F401, I001  # the compiler's options and the devices of the tests, before JAX starts

import gzip
import json
import tempfile
from pathlib import Path

import smoke


def main() -> None:
    """Run every study and write the file."""
    frozen = {}
    with tempfile.TemporaryDirectory() as results:
        for name in smoke.studies():
            frozen[name] = smoke.comparable(smoke.read_rows(smoke.execute(name, Path(results))))
    document = {"machine": smoke.machine(), "rows": frozen}
    smoke.FROZEN.parent.mkdir(exist_ok=True)
    smoke.FROZEN.write_bytes(gzip.compress(json.dumps(document, allow_nan=False).encode(), mtime=0))


if __name__ == "__main__":
    main()
