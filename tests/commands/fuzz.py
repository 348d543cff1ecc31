"""Random tables through both commands: columns of every kind, damaged headers, cells and bytes.

    python tests/commands/fuzz.py --cases 500 --works 6

Each case is made of its number alone. `prepare` of both commands must end in a job or in a ``ValueError`` of one line;
some of the jobs are then worked off. Prints a JSON document: counts, the largest memory in MiB, and faults.
"""

import argparse
import collections
import datetime
import decimal
import gzip
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Rng = np.random.Generator
WORDS = ("red", "green", "blue, dark", 'say "hi"', "Köln €", "two\nlines", "日本", "naïve", "x;y", "a|b", "😀", " pad ")
BLANKS = ("", "NA", "n/a", "?", "-", "null", "None", " ", "NaN", "#N/A", "missing")
ZERO = datetime.datetime(2021, 3, 1)


def column(rng: Rng, n: int) -> list[Any]:
    """A random column of one of many kinds."""
    x, k = rng.normal(size=n), rng.integers(0, 50, n)
    days = [ZERO + datetime.timedelta(days=int(d), seconds=int(d) ** 2) for d in k]
    kinds: list[Callable[[], Any]] = [
        lambda: x,
        lambda: k,
        lambda: k % 2,
        lambda: (k % 2).astype(bool),
        lambda: 1_600_000_000 + rng.integers(0, 10**6, n),
        lambda: 2**53 + k,
        lambda: np.where(k % 3 == 0, 1e307, 1e300) * x.clip(-9, 9),
        lambda: x * 1e-310,
        lambda: np.where(k % 7 == 0, np.inf, x),
        lambda: np.where(k % 9 == 0, np.nan, x),
        lambda: np.full(n, np.nan),
        lambda: np.full(n, 3.5),
        lambda: np.arange(n),
        lambda: [f"r{i:05}" for i in range(n)],
        lambda: [f"{v:05}" for v in k],
        lambda: [f"{v:.2f}".replace(".", ",") for v in x],
        lambda: [f"{v:,}" for v in 10**4 * k],
        lambda: [f"${v:.2f}" for v in x],
        lambda: [f"{v} %" for v in k],
        lambda: ["yes" if v % 2 else "no" for v in k],
        lambda: [WORDS[v % len(WORDS)] for v in k],
        lambda: [" ".join(rng.choice(WORDS, 6)) for _ in range(n)],
        lambda: [f"level {int(v**4 / 10**5)}" for v in k],
        lambda: [BLANKS[v % len(BLANKS)] for v in k],
        lambda: [BLANKS[3] if v % 10 == 0 else str(v) for v in k],
        lambda: [WORDS[0] if v % 2 else v for v in k],
        lambda: days,
        lambda: [d.date() for d in days],
        lambda: [d.isoformat() for d in days],
        lambda: [d.strftime("%d.%m.%Y") for d in days],
        lambda: [d.strftime("%m/%d/%y %H:%M") for d in days],
        lambda: pd.to_datetime(pd.Series(days)).dt.tz_localize("Europe/Berlin", ambiguous="NaT", nonexistent="NaT"),
        lambda: [d.time() for d in days],
        lambda: [datetime.timedelta(hours=int(v)) for v in k],
        lambda: pd.Categorical([WORDS[v % 4] for v in k]),
        lambda: pd.Categorical(k % 4),
        lambda: pd.array([None if v % 5 == 0 else int(v) for v in k], dtype="Int64"),
        lambda: pd.array([None if v % 5 == 0 else bool(v % 2) for v in k], dtype="boolean"),
        lambda: [decimal.Decimal(int(v)) / 7 for v in k],
        lambda: [[int(v)] for v in k],
        lambda: [{"a": int(v)} for v in k],
        lambda: [bytes([int(v)]) for v in k],
        lambda: [10 ** int(v) for v in k],
        lambda: ["x" * int(v) ** 2 for v in k],
    ]
    return list(kinds[rng.integers(len(kinds))]())


def label(rng: Rng, n: int) -> list[Any]:
    """A random label, most often one of two or three classes."""
    k = rng.integers(0, 120, n)
    kinds: list[Callable[[], Any]] = [
        *[lambda: [("low", "high")[v % 2] for v in k]] * 12,
        *[lambda: k % 2] * 6,
        lambda: k % 3,
        lambda: (k % 2).astype(float),
        lambda: (k % 2).astype(bool),
        lambda: [("no", "yes")[v % 2] for v in k],
        lambda: 10 * (k % 3) - 10,
        lambda: np.where(np.arange(n) == 0, 2, k % 2),
        lambda: [None if v == 0 else int(v % 2) for v in k],
        lambda: [BLANKS[v % 3] if v % 50 == 0 else WORDS[v % 2] for v in k],
        lambda: k,
        lambda: k / 7,
        lambda: np.zeros(n, int),
        lambda: [("a;b", "a", "b")[v % 3] for v in k],
        lambda: [ZERO + datetime.timedelta(days=int(v % 2)) for v in k],
        lambda: [[int(v)] for v in k],
        lambda: [None] * n,
    ]
    return list(kinds[rng.integers(len(kinds))]())


def group(rng: Rng, n: int) -> list[Any]:
    """A random column of groups."""
    k = rng.integers(0, 60, n)
    kinds: list[Callable[[], Any]] = [
        *[lambda: [("F", "M")[v % 2] for v in k]] * 10,
        *[lambda: k % 3] * 2,
        lambda: [None if v == 0 else int(v % 2) for v in k],
        lambda: k,
        lambda: rng.normal(size=n),
        lambda: [WORDS[int(v**2 / 400)] for v in k],
        lambda: np.ones(n, int),
    ]
    return list(kinds[rng.integers(len(kinds))]())


def frame(rng: Rng, n: int, kinds: int) -> pd.DataFrame:
    """A table with a label, groups and features; ``kinds``: seed of the kinds of columns."""
    names = [f"c{i}" for i in range(np.random.default_rng(kinds).integers(0, 7))]
    made = {}
    for i, name in enumerate(names):  # the kind comes from one generator, the values from another
        made[name] = _seeded(column, kinds + i, rng, n)
    made |= {"y": _seeded(label, kinds + 100, rng, n), "g": _seeded(group, kinds + 200, rng, n)}
    table = pd.DataFrame({name: pd.Series(values, dtype=None if n else object) for name, values in made.items()})
    signal = pd.factorize(table["y"].astype(str))[0] if n else np.zeros(0)
    return table.assign(a=signal + rng.normal(size=n), id=[f"{i:04}" for i in rng.permutation(n)])


def _seeded(make: Callable[[Rng, int], list[Any]], kind: int, rng: Rng, n: int) -> list[Any]:
    """The column of a kind that depends on ``kind`` alone, with values of ``rng``."""
    first = np.random.default_rng(kind)

    class Chosen:
        """A generator whose first choice of a kind is fixed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(rng, name)

        def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
            return first.integers(low) if high is None else rng.integers(low, high, size)

    return make(Chosen(), n)  # pyright: ignore[reportArgumentType]


def changed(rng: Rng, table: pd.DataFrame) -> pd.DataFrame:
    """One random change of a table: of its cells, columns, rows or names."""
    n = len(table)
    name = str(rng.choice(list(table))) if len(table.columns) else ""
    changes: list[Callable[[], Any]] = [
        lambda: table,
        lambda: table.sample(frac=1, replace=True, random_state=int(rng.integers(1 << 30))) if n else table,
        lambda: table.drop(columns=name),
        lambda: table.rename(columns={name: str(rng.choice(["", "y", " a ", "1", "Unnamed: 0", "x\ny", "é", "c1"]))}),
        lambda: table.rename(columns=dict(zip(table, map(str, range(5, 99)), strict=False))),
        lambda: table.assign(**{name: table[name].astype(object).where(rng.random(n) < 0.9, None)}),
        lambda: table.assign(**{name: table[name].astype(object).where(rng.random(n) < 0.9, str(rng.choice(BLANKS)))}),
        lambda: table.assign(**{name: table[name].astype(object).where(rng.random(n) < 0.97, "stray")}),
        lambda: table.assign(**{name: [None] * n}),
        lambda: table.assign(copy=table.get("y", 0)),
        lambda: table.head(int(rng.integers(0, 5))),
        lambda: table.reset_index(names=""),
        lambda: table[list(rng.permutation(list(table)))],
        lambda: table.astype(str),
    ]
    return changes[rng.integers(len(changes))]()


def write(rng: Rng, table: pd.DataFrame, folder: Path, name: str) -> Path:
    """The table in a random format; formats that cannot hold it fall back on text."""
    text = lambda **options: table.to_csv(index=bool(rng.random() < 0.2), **options).encode(errors="replace")
    formats: list[tuple[str, Callable[[Path], Any]]] = [
        *[("csv", lambda path: path.write_bytes(text()))] * 3,
        ("csv", lambda path: path.write_bytes(text(sep=";", decimal=","))),
        ("tsv", lambda path: path.write_bytes(text(sep="\t"))),
        ("txt", lambda path: path.write_bytes(text(sep="|", quoting=1))),
        ("csv", lambda path: path.write_bytes(text().decode().encode("utf-16"))),
        ("csv", lambda path: path.write_bytes(text().decode().encode("cp1252", errors="replace"))),
        ("csv", lambda path: path.write_bytes(b"\xef\xbb\xbf" + text(lineterminator="\r\n"))),
        ("csv", lambda path: path.write_bytes(b"sep=;\n" + text(sep=";"))),
        ("csv", lambda path: path.write_bytes(b"A title\n\n" + text())),
        ("csv", lambda path: path.write_bytes(text(header=False))),
        ("csv.gz", lambda path: path.write_bytes(gzip.compress(text()))),
        *[("parquet", lambda path: table.to_parquet(path))] * 3,
        ("feather", lambda path: table.reset_index(drop=True).to_feather(path)),
        ("xlsx", lambda path: table.head(150).to_excel(path, index=False)),
        ("jsonl", lambda path: table.to_json(path, orient="records", lines=True)),
        ("json", lambda path: table.to_json(path)),
    ]
    suffix, writer = formats[rng.integers(len(formats))]
    path = folder / f"{name}.{suffix}"
    try:
        with warnings.catch_warnings(action="ignore"):
            writer(path)
    except Exception:  # the format does not hold such a table
        path = folder / f"{name}.csv"
        path.write_bytes(text())
    return path


def damage(rng: Rng, path: Path) -> None:
    """One random damage to the bytes of a file; most often none."""
    raw = bytearray(path.read_bytes())
    lines = bytes(raw).split(b"\n")
    at, line = int(rng.integers(len(raw) + 1)), int(rng.integers(len(lines)))
    damages: list[Callable[[], bytes]] = [
        *[lambda: bytes(raw)] * 12,
        lambda: bytes(raw[:at]),
        lambda: bytes(raw[:at] + bytes([rng.integers(256)]) + raw[at + 1 :]),
        lambda: bytes(raw[:at] + rng.choice([b'"', b",", b"\n", b"\r", b"\0", b";", b"\xff"]) + raw[at:]),
        lambda: b"\n".join(lines[:line] + lines[line + 1 :]),
        lambda: b"\n".join([*lines[:line], lines[line] + b",1", *lines[line + 1 :]]),
        lambda: rng.bytes(int(rng.integers(600))),
        lambda: bytes(raw) + rng.bytes(20),
    ]
    path.write_bytes(damages[rng.integers(len(damages))]())


def options(rng: Rng, command: str) -> dict[str, Any]:
    """Random options that name columns."""
    chosen: dict[str, Any] = {"label": "y" if rng.random() < 0.97 else "yy"}
    if rng.random() < 0.2:
        chosen |= {"regression": True, "label": str(rng.choice(["a", "y"]))}
    chosen |= {"id": "id"} if rng.random() < 0.3 else {}
    chosen |= {"drop": "c0"} if rng.random() < 0.06 else {}
    chosen |= {"categorical": "c1"} if rng.random() < 0.06 else {}
    chosen |= {"text": "c2"} if rng.random() < 0.06 else {}
    if command == "debias":
        groups = [*["g"] * 9, "y", "g,y", "g:3", "a:2", "nowhere"]
        chosen |= {"auto": True} if rng.random() < 0.15 else {"group": str(rng.choice(groups))}
    return chosen


def sources(rng: Rng, folder: Path) -> tuple[str, str]:
    """Two files of one random kind, changed and damaged independently."""
    kinds = int(rng.integers(1 << 30))
    sizes = [int(rng.choice([300, 250, 200, 200, 150, 120, 60, 3])), int(rng.choice([300, 200, 200, 150, 90, 70, 2]))]
    tables = [frame(rng, n, kinds) for n in sizes]
    if rng.random() < 0.5:
        tables = [changed(rng, table) if rng.random() < 0.5 else table for table in tables]
    state = int(rng.integers(1 << 30)) if rng.random() < 0.8 else None  # both files in one format, most often
    paths = []
    for name, table in zip(("train", "val"), tables, strict=True):
        paths.append(write(np.random.default_rng(state) if state is not None else rng, table, folder, name))
    if rng.random() < 0.4:
        damage(rng, paths[int(rng.integers(2))])
    return str(paths[0]), str(paths[1])


def jobs(case: int, folder: Path, diagnoser: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    """Both commands on the files of a case: name, ``prepare``, ``work``."""
    from d3mjax.commands import debias, debias_data, diagnose, diagnose_data

    rng = np.random.default_rng([17, case])
    train, held = sources(rng, folder)
    tiny: dict[str, Any] = {"steps": 20, "seeds": 1, "retrains": 1, "checkpoints": 2}
    files = debias_data.Files(train, held, **options(rng, "debias"))
    yield "debias", lambda: debias.prepare(debias.Config(files, **tiny), results=folder / "results"), debias.work
    table = diagnose_data.Files(train, held, **options(rng, "diagnose"))
    config = diagnose.Config(table, diagnoser=str(diagnoser), networks=1, seeds=1)
    yield "diagnose", lambda: diagnose.prepare(config, results=folder / "results"), diagnose.work


def run(cases: range, works: int) -> dict[str, Any]:
    """All cases; the first ``works`` jobs of each command are worked off."""
    import jax
    from planted_diagnoser import write_diagnoser

    from d3mjax.runtime import hosts, runs

    hosts.start()  # before anything is computed
    counts, faults = collections.Counter(), {}
    with tempfile.TemporaryDirectory() as top:
        diagnoser = write_diagnoser(Path(top))
        for case in cases:
            folder = Path(top) / str(case)
            folder.mkdir()
            for name, prepare, work in jobs(case, folder, diagnoser):
                step = "prepare"
                try:
                    with warnings.catch_warnings(action="error"):
                        job = prepare()
                        counts[f"{name} accepted"] += 1
                        if counts[f"{name} worked"] < works:
                            step = "work"
                            counts[f"{name} worked"] += 1
                            work(job)
                            jax.clear_caches()  # programs of other shapes
                except Exception as error:
                    counts[f"{name} refused"] += step == "prepare"
                    if type(error) is not ValueError or "\n" in str(error) or step == "work":
                        frames = [f for f in traceback.extract_tb(error.__traceback__) if "d3mjax" in f.filename]
                        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
                        fault = f"{name}, {step}: {type(error).__name__} at {at}"
                        faults.setdefault(fault, []).append(f"{case}: {str(error)[:300]}")
    return {
        "counts": dict(counts),
        "peak_mib": round(runs.peak_memory_mib()),
        "faults": {fault: [len(cases), *cases[:3]] for fault, cases in faults.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--works", type=int, default=0)
    arguments = parser.parse_args()
    print_to, sys.stdout = sys.stdout, sys.stderr  # the commands print, too
    result = run(range(arguments.first, arguments.first + arguments.cases), arguments.works)
    print(json.dumps(result, indent=1), file=print_to)
