"""Rows, summaries and verdicts."""

import jax.numpy as jnp
import pytest

from d3mjax.reports import rows


def test_a_row_leaves_out_what_a_seed_lacks():
    got = rows.row("patch", "ERM", {"lds": [0.5, 0.7], "removed": [0.1, None]}, role="plain", settings={"p": 3})
    facts = {"task": "patch", "method": "ERM", "role": "plain", "information": "none", "settings": {"p": 3}}
    assert got == {**facts, "metrics": {"lds": rows.summary([0.5, 0.7])}}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"role": "winner"}, "role: found 'winner', expected one of"),
        ({"role": "ours", "information": "test groups"}, "information: found 'test groups', expected one of"),
        ({"role": "control"}, "settings.controls: found none"),
    ],
)
def test_a_row_of_an_unknown_kind_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        rows.row("patch", "ERM", {"lds": [0.5]}, **kind)


def test_summary():
    # mean 2, squared deviations 1 + 0 + 1 over ddof 2
    assert rows.summary([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "per_seed": [1.0, 2.0, 3.0]}
    assert rows.summary(jnp.array([0.5])) == {"mean": 0.5, "std": None, "per_seed": [0.5]}
    assert rows.summary([0.5, float("nan")]) == {"mean": None, "std": None, "per_seed": [0.5, None]}
    with pytest.raises(ValueError, match=r"found shape \(0,\)"):
        rows.summary([])


@pytest.mark.parametrize(
    ("seeds", "outcome"),
    # standard deviations .1 and .1: a joint spread of .1414
    [([0.45, 0.55, 0.65], "level"), ([0.6, 0.7, 0.8], "above"), ([0.25, 0.35, 0.45], "below"), ([0.9], "unknown")],
)
def test_a_verdict_needs_more_than_the_joint_spread(seeds, outcome):
    base = rows.row("t", "base", {rows.WGA: [0.4, 0.5, 0.6]}, role="plain")
    assert rows.verdict(rows.row("t", "other", {rows.WGA: seeds}, role="ours"), base) == outcome
