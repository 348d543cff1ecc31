"""Small tables with a planted shortcut, for the tests of the command that reads the user's own files."""

import csv
from typing import Any

import numpy as np

from d3mjax.commands.debias_data import Files

QUICK: dict[str, Any] = {"steps": 200, "checkpoints": 4, "seeds": 2, "retrains": 1}


def planted(seed, n, aligned):
    """Columns of n examples: feature a tells the class, feature b the group, which mostly goes with the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    s = np.where(rng.random(n) < aligned, y, 1 - y)
    columns = {"a": 3.0 * y + rng.normal(size=n), "b": 6.0 * s + rng.normal(size=n)}
    columns |= {f"noise{i}": rng.normal(size=n) for i in range(8)}
    return columns | {
        "job": np.array(["cook", "clerk", "smith"])[rng.integers(0, 3, n)],
        "sex": np.array(["F", "M"])[s],
        "income": np.array(["low", "high"])[y],
        "row": np.array([f"r{seed}-{i}" for i in range(n)]),
    }


def write_csv(path, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def make_files(path):
    write_csv(path / "train.csv", {k: v for k, v in planted(0, 600, 0.95).items() if k != "sex"})
    write_csv(path / "val.csv", planted(1, 400, 0.75))
    return Files(str(path / "train.csv"), str(path / "val.csv"), "income", group="income,sex", id="row")
