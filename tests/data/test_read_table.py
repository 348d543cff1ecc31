"""Every kind of input becomes what the docs say, and what cannot be a table is refused in one clear line."""

from pathlib import Path

import input_kinds
import numpy as np
import pandas as pd
import pytest
from input_kinds import KINDS, TAKEN, Kind, Taken

from d3mjax.data import columns, files

DOCS = Path(__file__).parents[2] / "docs" / "inputs.md"


def _values(column: pd.Series) -> list:
    """Missing entries as None, arrays as lists."""
    return [v.tolist() if isinstance(v, np.ndarray) else None if pd.isna(v) else v for v in column.array]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_kind_of_input(tmp_path, kind: Kind):
    source = kind.make(tmp_path)
    if isinstance(kind.expected, str):
        with pytest.raises(ValueError, match=kind.expected) as error:
            files.read_table(source)
        assert error.type is ValueError
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)
        return
    table = files.read_table(source)
    assert {name: _values(column) for name, column in table.frame.items()} == kind.expected
    assert list(table.frame) == list(kind.expected)
    dtypes = [str(dtype).replace(" ", "") for dtype in table.frame.dtypes]
    assert dtypes == (kind.dtypes.split() or ["str"] * len(dtypes))
    notes = "; ".join(table.notes)
    assert notes == "" if not kind.note else pd.Series([notes]).str.contains(kind.note).all(), notes


@pytest.mark.parametrize("taken", TAKEN, ids=[taken.name for taken in TAKEN])
def test_kind_of_column(tmp_path, taken: Taken):
    frame = files.read_table(taken.make(tmp_path)).frame
    first = columns.infer({"--train": frame})[0]
    assert first.kind == taken.kind
    assert pd.Series(columns.lines([first])).str.contains(taken.note).all(), first


def test_docs_list_exactly_these_kinds():
    assert DOCS.read_text() == input_kinds.page(), "python tests/data/input_kinds.py > docs/inputs.md"
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 40
    assert len({taken.name for taken in TAKEN}) == len(TAKEN)


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path):
    for name in ("data1.csv", "data[1].csv"):
        (tmp_path / name).write_text(f"a,b\n{name},1\n")
    assert files.read_table(tmp_path / "data[1].csv").frame["a"].tolist() == ["data[1].csv"]
