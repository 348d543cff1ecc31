"""Labels of a regression as users write them: finite numbers of more than two values; anything else is refused.

    y = read({"--train": train["price"], "--validation": validation["price"]}, "price")

Pure functions of pandas columns. Errors are ``ValueError`` that name the option, what was found and what is expected.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from d3mjax.data.labels import check_present


def read(columns: Mapping[str, pd.Series], name: str) -> dict[str, Float[np.ndarray, "n"]]:
    """Numbers of the label column ``name`` of every source, in float64; ``columns`` by option, that of training first.

    Raises:
      ValueError: missing or infinite labels, text, and training labels of one or two values.
    """
    numbers = {option: _numbers(option, name, column) for option, column in columns.items()}
    first = next(iter(numbers))
    values = np.unique(numbers[first])
    if len(values) < 3:
        raise ValueError(
            f"--label: found {len(values)} different values in {name!r} of {first}, expected numbers to predict: it "
            "looks like a class; use classification: leave out --regression"
        )
    return numbers


def _numbers(option: str, name: str, column: pd.Series) -> Float[np.ndarray, "n"]:
    check_present(option, name, column, hint=", expected none: leave these rows out")
    if pd.api.types.is_bool_dtype(column):
        raise ValueError(
            f"--label: found truth values in {name!r} of {option}, expected numbers; leave out --regression"
        )
    made = np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)
    if (text := np.isnan(made)).any():
        row = int(text.argmax())
        raise ValueError(
            f"--label: found {column.iloc[row]!r} in {name!r} of {option}, row {row}, expected numbers; leave out "
            "--regression where labels are classes"
        )
    if (infinite := ~np.isfinite(made)).any():
        raise ValueError(
            f"--label: found {infinite.sum()} infinite values in {name!r} of {option}, first in row "
            f"{int(infinite.argmax())}, expected finite numbers"
        )
    return made
