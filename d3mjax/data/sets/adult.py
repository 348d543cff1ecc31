"""UCI Adult: does a person earn more than 50K? Groups are sex by income.

All 48,842 rows ship with the package, byte for byte the official files. Features are the 107 columns of the usual
one-hot encoding: '?' is a level of its own, the eight categorical features give 102 columns, and the five numeric
ones (``fnlwgt`` is left out: it is a survey weight) are standardised with the mean and standard deviation of the
official train split, so that no row of the test split moves a feature.
"""

import csv
import hashlib
import itertools
import lzma
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from d3mjax.data import tables
from d3mjax.data.pairs import flip_attribute
from d3mjax.data.splits import divide
from d3mjax.types import Data, Pairs, Split, Table

# Raw columns in the order of the files; None marks a number. Levels in the order of the official description.
_COUNTRIES = """United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) India Japan
Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France
Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua Scotland Thailand Yugoslavia
El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands ?"""
LEVELS: dict[str, tuple[str, ...] | None] = {
    name: None if levels is None else tuple(levels.split())
    for name, levels in {
        "age": None,
        "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay Never-worked ?",
        "fnlwgt": None,
        "education": "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th Masters "
        "1st-4th 10th Doctorate 5th-6th Preschool",
        "education-num": None,
        "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
        "Married-AF-spouse",
        "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
        "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv "
        "Protective-serv Armed-Forces ?",
        "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
        "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
        "sex": "Female Male",
        "capital-gain": None,
        "capital-loss": None,
        "hours-per-week": None,
        "native-country": _COUNTRIES,
    }.items()
}
USED = tuple(name for name in LEVELS if name != "fnlwgt")
FEATURE_NAMES: tuple[str, ...] = tuple(
    column for name in USED for column in ([f"{name}={v}" for v in LEVELS[name] or ()] or [name])
)
_WIDTHS = [len(LEVELS[name] or "1") for name in USED]
COLUMNS: dict[str, slice] = {
    name: slice(stop - width, stop)
    for name, width, stop in zip(USED, _WIDTHS, itertools.accumulate(_WIDTHS), strict=True)
}
"""Which of the 107 columns each raw feature fills: ``x[:, COLUMNS["sex"]]`` is the one-hot (Female, Male)."""

GROUP_NAMES = ("<=50K, Female", "<=50K, Male", ">50K, Female", ">50K, Male")
"""``group = 2 * y + sex`` with y = income > 50K and sex 0 = Female, 1 = Male."""

_FILES = Path(__file__).parent / "shipped"
_SHA256 = {
    "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
}


def load_adult(seed: int = 0, *, num_train: int = 4000, num_targets: int = 1000, num_selection: int = 1000) -> Data:
    """The official test split whole; train, target and selection are disjoint random parts of the official train
    split, drawn by the seed.

    Groups are ``GROUP_NAMES``; ids are row numbers in the official files: train 0..32560, then test 32561..48841.
    Raises ``ValueError`` when more rows are asked for than the train split has, or a file is damaged.
    """
    official_train, test = encode(read_rows("adult.data"), read_rows("adult.test"))
    train, target, selection = divide(official_train, seed, (num_train, num_targets, num_selection))
    return Data(train, target, selection, test)


def load_table() -> tuple[Table, Int[np.ndarray, " n"]]:
    """All 48,842 rows as they were recorded, and y = income > 50K; '?' is a level. Ids as in `load_adult`."""
    rows = read_rows("adult.data") + read_rows("adult.test")
    columns = {name: np.array([row[name] for row in rows]) for name in USED}
    columns |= {name: columns[name].astype(np.float64) for name in USED if LEVELS[name] is None}
    levels = {name: found for name in USED if (found := LEVELS[name]) is not None}
    y = np.array([row["income"].rstrip(".") == ">50K" for row in rows], np.int32)
    return tables.from_columns(columns, levels=levels), y


def flip(split: Split, feature: str, *, levels: tuple[str, str] | None = None) -> Pairs:
    """`pairs.flip_attribute` by names, say ``flip(test, "sex")`` or ``flip(test, "race", levels=("White", "Black"))``.

    A flipped husband is still a husband: columns that depend on the attribute stay. Raises ``ValueError`` for an
    unknown name, with the known ones.
    """
    known = LEVELS.get(feature)
    if known is None:
        categorical = [name for name, found in LEVELS.items() if found]
        raise ValueError(f"feature: found {feature!r}, expected one of {categorical}")
    if levels is not None and not set(levels) <= set(known):
        raise ValueError(f"levels: found {levels}, expected two of {known}")
    at = None if levels is None else (known.index(levels[0]), known.index(levels[1]))
    return flip_attribute(split, COLUMNS[feature], levels=at)


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of ``adult.data`` or ``adult.test`` as they are, with a final ``income``. Raises if damaged."""
    path = _FILES / f"{name}.xz"
    try:
        text = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise ValueError(f"{path}: missing or damaged, expected the official {name}. Install d3mjax anew.") from error
    if hashlib.sha256(text).hexdigest() != _SHA256[name]:
        raise ValueError(f"{path}: checksum differs from the official {name}. Install d3mjax anew.")
    rows = csv.reader(text.decode().splitlines(), skipinitialspace=True)
    # adult.test opens with a comment line, and both files end in empty lines.
    return [dict(zip((*LEVELS, "income"), row, strict=True)) for row in rows if len(row) == len(LEVELS) + 1]


def encode(train: list[dict[str, str]], test: list[dict[str, str]]) -> tuple[Split, Split]:
    """Both splits with 107 features, y = income > 50K, group = 2 y + sex, id = row number over train then test."""
    rows = train + test
    columns = [_column(name, [row[name] for row in rows], len(train)) for name in USED]
    y = np.array([row["income"].rstrip(".") == ">50K" for row in rows], np.int32)
    sex = np.array([row["sex"] == "Male" for row in rows], np.int32)
    whole = Split(np.concatenate(columns, axis=1), y, 2 * y + sex, np.arange(len(rows), dtype=np.int32))
    return Split(*(a[: len(train)] for a in whole)), Split(*(a[len(train) :] for a in whole))


def _column(name: str, values: list[str], num_train: int) -> Float32[np.ndarray, "n k"]:
    levels = LEVELS[name]
    if levels is None:
        number = np.array(values, np.float64)
        number = (number - number[:num_train].mean()) / number[:num_train].std()
        return number[:, None].astype(np.float32)
    at = {level: i for i, level in enumerate(levels)}
    return np.eye(len(levels), dtype=np.float32)[[at[value] for value in values]]
