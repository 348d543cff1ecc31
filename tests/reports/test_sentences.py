"""Conclusions follow from roles and numbers: verdicts and figures are tested, not the prose around them."""

import pytest
from made_rows import made, patch_rows, spread

from d3mjax.reports import bias_sentences, rows, sentences


def test_the_verdict_comes_first_and_at_most_six_short_sentences_follow():
    first, *rest = sentences.conclusions(patch_rows())
    for part in ("new", "78.9 ± 1.8 %", "above", "31.3 ± 3.7 %", "+15.5 points"):
        assert part in first
    assert len(rest) < sentences.MOST
    for control, part in (
        ("matched", "above, +47.8 ± 4.1"),
        ("targets", "above, +33.9 ± 4.1"),
        ("SUBG", "level, -0.9 ± 2.6"),
    ):
        assert any(f"against {control}" in sentence and part in sentence for sentence in rest)
    assert max(len(sentence.split()) for text in [first, *rest] for sentence in text.split(". ")) <= 25


def test_names_decide_nothing():
    outcomes = lambda some: [
        [text.count(f": {outcome},") for outcome in rows.VERDICTS] for text in sentences.conclusions(some)
    ]
    renamed = [{**row, "method": f"m{i}"} for i, row in enumerate(patch_rows())]
    assert outcomes(renamed) == outcomes(patch_rows())
    assert sum(map(sum, outcomes(renamed))) == 3


@pytest.mark.parametrize(("targets", "outcome"), [(0.45, "above"), (0.78, "level"), (0.9, "below")])
def test_the_meaning_of_a_control_follows_its_verdict(targets, outcome):
    some = patch_rows()
    some[4] = made("targets", "control", (targets, 0.02), 0.7, controls="targets alone")
    text = "\n".join(sentences.conclusions(some))
    meanings = sentences.CONTROLS["targets alone"]
    assert [name for name, meaning in meanings.items() if meaning in text] == [outcome]


def test_missing_rows_are_named():
    ours = patch_rows()[3]
    assert len(sentences.conclusions([ours])) == 3  # no plain training, no control of either kind
    assert sentences.conclusions([]) == []
    assert sentences.conclusions([rows.row("t", "m", {"seconds": [1.0]}, role="ours")]) == []


def test_one_seed_gives_no_verdict():
    some = patch_rows()
    for row in some:
        row["metrics"] = {rows.WGA: rows.summary([row["metrics"][rows.WGA]["mean"]])}
    first, second, *_ = sentences.conclusions(some)
    assert "not comparable" in first
    assert "1 seed:" in second
    assert sentences.points(some[3], some[0]) == "+47.6 points"


def test_diagnostics_of_checkpoints_are_given_in_numbers():
    some = patch_rows()
    values = {"suspects": [0.1, 0.1], "suspects_removed": [0.01, 0.03], "effective_checkpoints": [4.0, 5.0]}
    some[3]["metrics"] |= {name: rows.summary(value) for name, value in values.items()}
    some[3]["settings"] = {"checkpoints": 20}
    text = "\n".join(sentences.conclusions(some[:4]))
    # 1 % and 3 %: deviation sqrt(2); 4 and 5: deviation sqrt(1/2)
    for part in ("10.0 % of all", "2.0 ± 1.4 % of the removed", "20 checkpoints", "4.5 ± 0.7"):
        assert part in text


def bias_row(method, role, wga, accuracy, bias, information="none", **settings):
    values = {rows.WGA: spread(*wga), "accuracy": [accuracy] * 4, "bias": [bias] * 4}
    return rows.row("t", method, values, role=role, information=information, settings=settings)


def test_conclusions_on_bias_name_a_method_for_each_goal():
    edits = {"edits": "a trained network"}
    some = [
        bias_row("base", "plain", (0.30, 0.01), 0.80, 0.4),
        bias_row("edit", "ours", (0.50, 0.01), 0.797, 0.2, **edits),
        bias_row("flipped", "control", (0.99, 0.01), 0.5, 0.6, controls="sign", **edits),
        bias_row("newton", "ours", (0.45, 0.01), 0.796, 0.1, **edits),
        bias_row("tuned", "rival", (0.40, 0.01), 0.79, 0.05, **edits),
        bias_row("blind", "rival", (0.60, 0.01), 0.799, 0.0),
        bias_row("groups", "rival", (0.605, 0.01), 0.7, 0.3, "validation groups"),
        bias_row("SUBG", "yardstick", (0.9, 0.01), 0.7, 0.3, "training groups"),
        bias_row("temperature", "control", (0.3, 0.01), 0.80, 0.2, controls="temperature"),
    ]
    worst, accuracy, least, least_edit, best_edit, temperature = bias_sentences.conclusions(some)
    for part in ("groups (needs validation groups)", "60.5 ± 1.8 %", "30.0 ± 1.8 %", "level with it: blind"):
        assert part in worst
    assert "keep plain training (80.0 %)" in accuracy
    assert "blind, 0.000 of 0.400" in least
    assert "newton, 0.100 of 0.400" in least_edit  # tuning costs a point
    assert best_edit.count("edit is above tuned") == 2
    assert "prediction" in temperature
    assert bias_sentences.conclusions(some[1:]) == []
