"""Groups of users: crossed columns, quantiles, overlapping yes/no columns, and small groups merged."""

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import memberships


def frames(train, held):
    return {"--train": pd.DataFrame(train), "--validation": pd.DataFrame(held)}


def groups_of(tables, spec, *, any_of=(), min_group=1):
    columns = memberships.columns_of(spec, list(tables["--validation"]))
    factors = [memberships.factor(tables, name, bins) for name, bins in columns.items()]
    factors += [memberships.any_of(tables, any_of)] if any_of else []
    sizes = {option: len(frame) for option, frame in tables.items()}
    return memberships.cross(factors, sizes, min_group=min_group)


def test_columns_are_crossed_in_the_order_of_their_values():
    tables = frames(
        {"sex": ["F", "F", None], "n": [10, 9, 9]}, {"sex": ["M", "F", "M", "M"], "n": ["9", "10", "10", "9"]}
    )
    groups = groups_of(tables, "sex,n")
    assert groups.names == ("sex=F, n=10", "sex=M, n=9", "sex=M, n=10")
    assert groups.group["--validation"].tolist() == [1, 0, 2, 1]
    assert groups.group["--train"].tolist() == [0, -1, -1]  # a combination without targets, and a missing one


def test_missing_groups_of_targets_are_a_level():
    groups = groups_of(frames({"a": [1]}, {"sex": ["M", "", "n/a x", None]}), "sex")
    assert groups.names == ("sex=M", "sex=n/a x", "sex=missing")
    assert groups.group["--validation"].tolist() == [0, 2, 1, 2]
    assert groups.group["--train"].tolist() == [-1]


def test_numbers_are_cut_at_quantiles_of_the_targets():
    groups = groups_of(frames({"age": [0, 500, 20]}, {"age": [10, 20, 30, 40, np.nan]}), "age:2")
    assert groups.names == ("age<=25", "age>25", "age=missing")
    assert groups.group["--validation"].tolist() == [0, 0, 1, 1, 2]
    assert groups.group["--train"].tolist() == [0, 1, 0]
    assert groups_of(frames({}, {"age": [1, 2, 3, 4]}), "age:4").names[1] == "1.75<age<=2.5"


def test_names_of_large_numbers_differ():
    groups = groups_of(frames({}, {"g": [1000001, 1000002, 1000001]}), "g")
    assert groups.names == ("g=1000001", "g=1000002")


def test_ties_leave_fewer_intervals():
    groups = groups_of(frames({}, {"age": [0] * 9 + [5]}), "age:4")
    assert groups.names == ("age<=0", "age>0")


def test_a_column_with_a_colon_in_its_name_is_that_column():
    assert memberships.columns_of("age:4, sex", ["age:4", "sex"]) == {"age:4": None, "sex": None}
    assert memberships.columns_of("age:4,sex", ["age", "sex"]) == {"age": 4, "sex": None}


def test_any_of_overlapping_columns():
    held = {"black": ["yes", "no", "no"], "muslim": [True, True, False], "x": [1, 2, 3]}
    groups = groups_of(frames({"black": [1, 0], "muslim": [0, np.nan]}, held), "", any_of=("black", "muslim"))
    assert groups.names == ("not (black or muslim)", "black or muslim")
    assert groups.group["--validation"].tolist() == [1, 1, 0]
    assert groups.group["--train"].tolist() == [1, 0]


def test_small_groups_are_merged_and_named():
    held = {"g": ["a"] * 5 + ["b"] * 2 + ["c"] + ["d"] * 4}
    groups = groups_of(frames({"g": ["c", "d", "a", "z"]}, held), "g", min_group=3)
    assert groups.names == ("g=a", "g=d", "other")
    assert groups.group["--validation"].tolist() == [0] * 5 + [2] * 3 + [1] * 4
    assert groups.group["--train"].tolist() == [2, 1, 0, -1]
    assert groups.notes == ("Groups of fewer than 3 targets, merged into 'other': g=b (2); g=c (1).",)


@pytest.mark.parametrize(
    ("held", "spec", "message"),
    [
        (
            {"g": ["a"] * 5 + ["b"]},
            "g",
            r"--validation: found so few examples of groups: \{'g=b': 1\}; expected at least 3",
        ),
        ({"g": ["a"] * 5 + ["b", "c"]}, "g", r"\{'other': 2\}"),
        ({"g": ["a"] * 5}, "g", r"found one group in --validation \(g=a\)"),
        ({"g": np.arange(30)}, "g", "found 30 different numbers in 'g', expected at most 20 values, or quantiles"),
        ({"g": ["a"] * 5}, "g:3", "found text in 'g', expected numbers, to be cut into 3 quantiles"),
        ({"g": ["a"] * 5}, "g:x", "found 'g:x', expected a column, or one with its number of quantiles"),
        ({"sex": ["a"] * 5}, "sx", "--group: found no 'sx' in --validation, which has .* Did you mean sex"),
    ],
)
def test_groups_that_cannot_be_used_are_refused(held, spec, message):
    with pytest.raises(ValueError, match=message):
        groups_of(frames({}, held), spec, min_group=3)


def test_columns_of_any_of_must_be_yes_or_no():
    with pytest.raises(ValueError, match=r"--any-of: found \['perhaps'\] in 'b' of --validation, expected yes or no"):
        groups_of(frames({}, {"a": ["yes"], "b": ["perhaps"]}), "", any_of=("a", "b"))
