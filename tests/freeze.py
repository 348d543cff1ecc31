"""Store the rows of smoke runs in ``tests/frozen/rows.json.gz``, with which the smoke tests compare.

Command:  make freeze                       all studies, twenty minutes
          python tests/freeze.py NAME ...   some
Again whenever numbers change on purpose; say why in the commit.
"""

import conftest  # noqa: F401, I001 -- first, for its effect: sets devices and compiler options before JAX starts

import gzip
import json
import sys
import tempfile
from pathlib import Path

import smoke


def main(names: list[str]) -> None:
    """Run these studies, or all, and write the file; every study carries the machine that made its rows."""
    frozen, machine = smoke.read_frozen() if names else {}, smoke.machine()
    with tempfile.TemporaryDirectory() as results:
        for name in names or smoke.studies():
            rows = smoke.comparable(smoke.read_rows(smoke.execute(name, Path(results))))
            frozen[name] = {"machine": machine, "rows": rows}
            smoke.FROZEN.parent.mkdir(exist_ok=True)
            smoke.FROZEN.write_bytes(gzip.compress(json.dumps(frozen, allow_nan=False).encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
