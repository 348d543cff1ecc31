"""The repaired table of `d3mjax-diagnose`: unchanged cells byte for byte, changed ones spelled as their column."""

import io
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from d3mjax.commands import diagnose_data, diagnose_repaired
from d3mjax.commands.diagnose_data import Files
from d3mjax.diagnosis.repair import Repaired

N = 240


def text_tables():
    """Cells that no reader of numbers would write again as they are."""
    rng = np.random.default_rng(0)
    tables = {}
    for name, n in (("train", N), ("validation", 96)):
        columns = {
            "zip": [f"{501 + i % 9:05d}" for i in range(n)],
            "price": [f"{v:.2f}".replace(".", ",") for v in rng.normal(50, 9, n)],
            "big": [f" {i % 7}e+02" for i in rng.integers(0, 99, n)],
            "day": [f"{1 + i % 28:02d}/0{1 + i % 9}/2024" for i in range(n)],
            "member": np.array(["No", "YES"])[rng.integers(0, 2, n)],
            "note": ["", 'say "x", y', "NA", "z"] * (n // 4),
            "y": np.array(["1.0", "0"])[rng.integers(0, 2, n)],
        }
        tables[name] = pd.DataFrame({k: pd.Series([v or None for v in a], dtype="str") for k, a in columns.items()})
    return tables


class Case(NamedTuple):
    column: str
    row: int
    entry: float  # of the table
    cell: object  # of the file


def repair_of(data, cases, relabelled=()):
    columns = {name: a.copy() for name, a in data.train.columns.items()}
    for case in cases:
        columns[case.column][case.row] = case.entry
    y = data.y.copy()
    y[list(relabelled)] = 1 - y[list(relabelled)]
    return Repaired(data.train._replace(columns=columns), y, np.linspace(0, 2, N).astype(np.float32))


def test_texts_stay_and_new_ones_are_spelled_alike(tmp_path):
    tables = text_tables()
    data = diagnose_data.read(Files("", "", "y"), tables=tables)
    assert set(data.train.levels) == {"zip", "note"}
    cases = (
        Case("zip", 1, 0, "00501"),
        Case("price", 2, 12.5, "12,5"),
        Case("big", 3, 250.0, "250"),
        Case("day", 4, 12.2, "13/01/2024"),
        Case("member", 5, 0.7, "yes"),
        Case("note", 6, data.train.levels["note"].index("z"), "z"),
        Case("note", 7, data.train.levels["note"].index("missing"), None),
    )
    origin = data.origins["day"]
    assert origin == pd.Timestamp(2024, 1, 1)
    repaired = repair_of(data, cases, relabelled=(8, 9))
    path = diagnose_repaired.write(tmp_path, data, repaired, "train.csv.gz", "y")
    made = pd.read_csv(io.StringIO(path.read_text()), dtype=str, keep_default_na=False, na_values=[""])
    want = tables["train"].copy()
    for case in cases:
        want.loc[case.row, case.column] = case.cell
    want.loc[[8, 9], "y"] = [{"1.0": "0", "0": "1.0"}[v] for v in want.loc[[8, 9], "y"]]
    pd.testing.assert_frame_equal(made.drop(columns="weight").fillna(""), want.fillna(""), check_dtype=False)
    np.testing.assert_array_equal(made["weight"].astype(np.float32), repaired.weights)
    assert diagnose_repaired.changes(data, repaired.table, 2) == [f"price: {tables['train'].price[2]} -> 12,5"]


def test_typed_columns_keep_their_types(tmp_path):
    rng = np.random.default_rng(0)
    tables = {}
    for name, n in (("train", N), ("validation", 96)):
        tables[name] = pd.DataFrame(
            {
                "count": rng.integers(0, 9, n),
                "size": rng.normal(size=n),
                "flag": rng.random(n) < 0.5,
                "day": pd.date_range("2024-01-01", periods=n),
                "kind": pd.Categorical(rng.choice(["a", "b"], n)),
                "weight": rng.normal(size=n),
                "y": rng.integers(0, 2, n),
            }
        )
    data = diagnose_data.read(Files("", "", "y"), tables=tables)
    cases = (
        Case("count", 1, 3.4, 3),
        Case("size", 2, 0.25, 0.25),
        Case("flag", 3, 0.8, True),
        Case("day", 4, 30.0, pd.Timestamp("2024-01-31")),
        Case("kind", 5, 1, "b"),
    )
    path = diagnose_repaired.write(tmp_path, data, repair_of(data, cases, relabelled=(6,)), "train.parquet", "y")
    made, want = pd.read_parquet(path), tables["train"].copy()
    for case in cases:
        want.loc[case.row, case.column] = case.cell
    want.loc[6, "y"] = 1 - want.loc[6, "y"]
    pd.testing.assert_frame_equal(made.drop(columns="d3mjax_weight"), want)


@pytest.mark.parametrize(("source", "suffix"), [("t.xlsx", ".csv"), ("t.feather", ".parquet"), ("t.tsv", ".csv")])
def test_formats(tmp_path, source, suffix):
    data = diagnose_data.read(Files("", "", "y"), tables=text_tables())
    assert diagnose_repaired.write(tmp_path, data, repair_of(data, ()), source, "y").suffix == suffix
