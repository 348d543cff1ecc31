"""The user's files of the UCI repository: layouts as published, made small; every bad one is refused by name."""

import gzip
import zipfile

import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import uci


def bank(path, rows=12):
    header = ";".join(f'"{name}"' for name in (*uci.BANK, "y"))
    line = '{};"{}";"{}";"tertiary";"no";{};"{}";"no";"{}";5;"may";{};1;{};0;"{}";"{}"'
    lines = [
        line.format(
            *(30 + i, "clerk", ("single", "married")[i % 2], 100 * i, ("no", "yes")[i % 3 == 0]),
            *(("cellular", "unknown")[i % 2], 60 + i, (-1, 90)[i % 4 == 0], ("failure", "unknown")[i % 2]),
            ("no", "yes")[i % 4 == 0],
        )
        for i in range(rows)
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_bank(tmp_path):
    path = bank(tmp_path / "bank-full.csv")
    table, y = uci.load_bank(path, counts=(9, 3))
    assert tuple(table.columns) == uci.BANK
    assert y.tolist() == [1, 0, 0, 0] * 3
    assert np.isnan(table.columns["pdays"]).sum() == 9
    assert table.levels["marital"] == ("married", "single")
    assert tables.encode(tables.fit_encoder(table), table).shape[0] == 12
    for rule in uci.RULES["bank"]:
        assert uci.check_rule(rule, table, y) is rule
    with pytest.raises(ValueError, match=r"found counts \[9, 3\], expected the published \[39922, 5289\]; counts=None"):
        uci.load_bank(path)
    path.write_text(path.read_text().replace('"yes"\n', '"perhaps"\n'))
    with pytest.raises(ValueError, match=r"bank-full\.csv: found labels \['perhaps'\], expected \['no', 'yes'\]"):
        uci.load_bank(path, counts=None)
    path.write_text(path.read_text().replace('"poutcome"', '"outcome"'))
    with pytest.raises(ValueError, match=r"expected \['poutcome'\] among them"):
        uci.load_bank(path, counts=None)


@pytest.mark.parametrize("delimiter", [";", ","])
def test_bank_with_indices_by_either_delimiter(tmp_path, delimiter):
    path = tmp_path / "bank-additional.csv"
    texts = {"job": "clerk", "month": "may", "day_of_week": "fri", "poutcome": "failure"}
    values = [
        [texts.get(name, "999" if name == "pdays" and i % 2 else str(i)) for name in uci.BANK_ADDITIONAL]
        for i in range(6)
    ]
    lines = [[*uci.BANK_ADDITIONAL, "y"], *([*row, ("no", "yes")[i % 3 == 0]] for i, row in enumerate(values))]
    path.write_text("\n".join(delimiter.join(f'"{field}"' for field in line) for line in lines))
    table, y = uci.load_bank_additional(path, counts=(4, 2))
    assert tuple(table.columns) == uci.BANK_ADDITIONAL
    assert set(table.levels) == set(texts)
    assert y.tolist() == [1, 0, 0] * 2
    np.testing.assert_array_equal(table.columns["pdays"], [0, np.nan, 2, np.nan, 4, np.nan])
    with pytest.raises(ValueError, match=r"expected the published \[3668, 451\]; counts=None"):
        uci.load_bank_additional(path)
    with pytest.raises(ValueError, match=r"path: .*none\.csv is missing or not text"):
        uci.load_bank_additional(tmp_path / "none.csv")


@pytest.mark.parametrize("names", ["short", "both", "kaggle", "short name"])
def test_credit_by_either_names(tmp_path, names):
    short, long = ["ID", *(f"X{i}" for i in range(1, 24)), "Y"], ["ID", *uci.CREDIT, "default.payment.next.month"]
    header = {
        "short": [short],
        "both": [["", *short[1:]], [*long[:-1], "default payment next month"]],
        "kaggle": [long],
        "short name": [[*long[:-1], "Default"]],
    }
    rng = np.random.default_rng(0)
    values = rng.integers(0, 900, (8, 25))
    values[:, 2:5] = rng.integers(1, 3, (8, 3))
    values[:, 3], values[:, 4], values[:, 5] = [1, 2] * 4, [2, 1] * 4, [60, 20] * 4
    values[:, -1] = [0, 1, 1, 0, 0, 0, 0, 0]
    path = tmp_path / "credit.csv"
    path.write_text("\n".join(",".join(map(str, line)) for line in [*header[names], *values.tolist()]))
    table, y = uci.load_credit(path, counts=(6, 2))
    assert tuple(table.columns) == tuple(f"X{i}" for i in range(1, 24))
    assert set(table.levels) == {"X2", "X3", "X4"}
    np.testing.assert_array_equal(table.columns["X12"], values[:, 12])
    assert y.tolist() == values[:, -1].tolist()
    assert [uci.check_rule(rule, table, y).name for rule in uci.RULES["credit"]]
    with pytest.raises(ValueError, match="counts=None"):
        uci.load_credit(path)
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], "8" + ",much" * 23 + ",1"]))
    with pytest.raises(ValueError, match=r"credit\.csv, column 'X1': expected numbers"):
        uci.load_credit(path, counts=None)


def test_covertype(tmp_path):
    values = np.zeros((21, 55), int)
    values[:, 0] = [2000] * 7 + [3000] * 14
    values[np.arange(21), 10 + np.arange(21) % 4] = 1
    values[np.arange(21), 14 + np.arange(21) % 40] = 1
    values[:, 54] = np.arange(21) % 7 + 1
    path = tmp_path / "covtype.data.gz"

    def write(values):
        path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in values.tolist()).encode()))

    write(values)
    table, y = uci.load_covertype(path, counts=(3,) * 7)
    assert (len(table.columns), table.levels["Wilderness_Area"]) == (12, ("1", "2", "3", "4"))
    assert tables.codes(table, "Soil_Type", "5").tolist() == [0 if i == 4 else -1 for i in range(21)]
    assert y.tolist() == (np.arange(21) % 7).tolist()
    assert [uci.check_rule(rule, table, y).name for rule in uci.RULES["covertype"]]
    values[3, 10:14] = 1
    write(values)
    with pytest.raises(ValueError, match="none or several wilderness areas"):
        uci.load_covertype(path)
    write(values[:, :54])
    with pytest.raises(ValueError, match="found 54 columns, expected 55"):
        uci.load_covertype(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match="is missing or damaged"):
        uci.load_covertype(path)


def test_bike_has_no_date_and_nothing_that_adds_up_to_its_label(tmp_path):
    names = ("instant", "dteday", *uci.BIKE, *uci.BIKE_NUMBERS, "casual", "registered", "cnt")
    lines = [
        f"{i},2011-01-0{i},{i % 4 + 1},0,{(12, 1, 2, 6)[i % 4]},{i},0,6,0,1,0.2{i},0.3,0.8,0,{i},{90 * i},{91 * i}"
        for i in range(1, 9)
    ]
    path = tmp_path / "hour.csv"
    path.write_text("\n".join([",".join(names), *lines]))
    table, y = uci.load_bike(path, counts=8)
    assert tuple(table.columns) == (*uci.BIKE, *uci.BIKE_NUMBERS)
    assert set(table.levels) == set(uci.BIKE)
    assert y.dtype == np.float64
    assert y.tolist() == [91.0 * i for i in range(1, 9)]
    assert [uci.check_rule(rule, table, y).name for rule in uci.RULES["bike"]]
    with pytest.raises(ValueError, match=r"hour\.csv: found 8 rows, expected 17379; counts=None takes any"):
        uci.load_bike(path)


def test_bikeshare_is_read_from_the_wheel(tmp_path):
    names = (*(name for name in uci.BIKE if name != "yr"), *uci.BIKE_NUMBERS, "day", "casual", "registered", "bikers")
    lines = [f'{i},"Jan","{i}",0,6,0,"clear",0.2{i},0.3,0.8,0,{i},{i},{2 * i},{3 * i}' for i in range(1, 5)]
    path = tmp_path / "islp.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(uci.BIKESHARE, "\n".join([",".join(f'"{name}"' for name in names), *lines]))
    table, y = uci.load_bikeshare(path, counts=4)
    assert set(table.columns) == {*uci.BIKE, *uci.BIKE_NUMBERS} - {"yr"}
    assert table.levels["mnth"] == ("Jan",)
    assert y.tolist() == [3.0, 6.0, 9.0, 12.0]
    with pytest.raises(ValueError, match=r"islp\.whl: found 4 rows, expected 8645"):
        uci.load_bikeshare(path)


def test_air_quality_has_decimal_commas_missing_numbers_and_a_rule_that_matches_nothing(tmp_path):
    header = "Date;Time;CO(GT);PT08.S1(CO);NMHC(GT);C6H6(GT);PT08.S2(NMHC);NOx(GT);PT08.S3(NOx);NO2(GT);PT08.S4(NO2);"
    header += "PT08.S5(O3);T;RH;AH;;"
    line = "10/03/2004;{}.00.00;2,6;1360;-200;{};1046;166;1056;113;1692;1268;{};{};0,7578;;"
    rows = [("11,9", "13,6", "48,9"), ("-200", "31,0", "47,7"), ("20,5", "35,5", "90,1"), ("3,2", "40", "-200")]
    path = tmp_path / "AirQualityUCI.csv"
    path.write_text("\n".join([header, *(line.format(i, *row) for i, row in enumerate(rows)), ";" * 16, ";" * 16]))
    table, y = uci.load_air_quality(path, counts=3)
    copy = tmp_path / "copy.csv"
    copy.write_text(path.read_text().replace(",", ".").replace(";", ","))
    np.testing.assert_array_equal(uci.load_air_quality(copy, counts=3)[1], y)
    assert tuple(table.columns) == uci.AIR_QUALITY
    assert not table.levels
    np.testing.assert_array_equal(y, [11.9, 20.5, 3.2])
    np.testing.assert_array_equal(table.id, [0, 2, 3])
    np.testing.assert_array_equal(table.columns["RH"], [48.9, 90.1, np.nan])
    assert np.isnan(table.columns["NMHC(GT)"]).all()
    hot, damp = uci.RULES["air_quality"]
    assert uci.check_rule(hot, table, y) is hot
    with pytest.raises(
        ValueError, match=r"'damp air has benzene': found 0 of 3 rows that meet its condition.*per cent"
    ):
        uci.check_rule(damp, table, y)
    assert uci.check_rule(uci.DAMP, table, y) is uci.DAMP
    with pytest.raises(ValueError, match="meet its label"):
        uci.check_rule(Rule("none", hot.condition, lambda y: y > 1e9), table, y)


@pytest.mark.parametrize(
    "load",
    [uci.load_bank, uci.load_credit, uci.load_covertype, uci.load_bike, uci.load_bikeshare, uci.load_air_quality],
)
def test_what_is_not_there_is_named(tmp_path, load):
    for content in (None, b"", b"a;b\n1;2\n", b"\xff\xfe\x00"):
        path = tmp_path / "file.data"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.data"):
            load(path, counts=None)
