"""Tables, reading and page from a made-up run with the numbers of a realistic one; figures that can be drawn."""

import base64
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from d3mjax.reports import page as report
from d3mjax.reports import plots
from d3mjax.reports.bias_sentences import by_goal
from d3mjax.reports.rows import row as made_row
from d3mjax.reports.rows import summary
from d3mjax.reports.sentences import WGA, reading, verdict
from d3mjax.runtime import runs

GROUPS = ["pullover, patch left", "pullover, patch right", "coat, patch left", "coat, patch right"]


def row(task, method, information, wga, average, removed=0.0, **extra):
    """Four seeds spread by 1, -1, 2, -2 deviations of `wga = (mean, deviation)`."""
    seeds = np.array([1, -1, 2, -2]) * wga[1] + wga[0]
    values = {"worst_group_accuracy": seeds, "average_accuracy": [average] * 4, "removed": [removed] * 4, **extra}
    measured = {name: summary(np.asarray(v)) for name, v in values.items()}
    return {
        "task": task,
        "method": method,
        "role": "ours",
        "information": information,
        "settings": {"steps": 800},
        "metrics": measured,
    }


def patch_rows(targets=0.45):
    return [
        row("patch", "ERM", "none", (0.313, 0.02), 0.683),
        row("patch", "random removal", "none", (0.323, 0.02), 0.68, 0.512),
        row("patch", "class-matched random", "none", (0.311, 0.02), 0.68, 0.512),
        row("patch", "D3M (TRAK)", "validation groups", (0.789, 0.01), 0.838, 0.512, lds=[0.7, 0.71, 0.69, 0.7]),
        row("patch", "targets alone (RWG)", "validation groups", (targets, 0.02), 0.7),
        row("patch", "SUBG", "training groups", (0.798, 0.01), 0.84, 0.9),
    ]


def document(rows):
    return runs.metrics_document("d3m", {"seeds": 4, "steps": 800}, rows, 161.0)


def test_table_text_is_aligned():
    lines = report.table_text(patch_rows()).splitlines()
    titles = ["method", "information", "worst group, %", "average, %", "removed, %", "LDS", "seeds"]
    assert re.split(" {2,}", lines[0]) == titles
    # deviations 1, -1, 2, -2 around the mean: squares sum to 10, over ddof 3, times .01
    d3m = next(line for line in lines if line.startswith("D3M"))
    assert re.sub(" {2,}", "|", d3m) == "D3M (TRAK)|validation groups|78.9 ± 1.8|83.8|51.2|0.7000 ± 0.0082|4"
    assert len({len(line) for line in lines}) == 1


def test_table_markdown_names_tasks_and_shows_what_is_undefined():
    rows = [
        row("patch", "ERM", "none", (0.3, 0.0), 0.683, loss=[np.nan] * 4),
        row("adult", "A | B", "none", (0.5, 0.0), 0.85),
    ]
    assert report.table_markdown(rows).splitlines() == [
        "| task | method | worst group, % | average, % | removed, % | loss | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| patch | ERM | 30.0 | 68.3 | 0.0 | undefined | 4 |",
        "| adult | A \\| B | 50.0 | 85.0 | 0.0 |  | 4 |",
    ]


def test_reading_says_what_is_shown():
    said = "\n".join(reading(patch_rows()))
    assert "(ERM) reaches 31.3 ± 3.7 % on its worst group" in said
    assert re.search(r"Better by more than the joint spread: D3M \(TRAK\) \(\+47.6 ± 4.1 points\), targets alone", said)
    assert "Within the joint spread of it: random removal (+1.0 ± 5.2 points), class-matched random" in said
    assert "class-matched random, +47.8 ± 4.1 points: which examples go matters" in said
    assert "holds something that the targets do not" in said
    assert "D3M (TRAK) is level with SUBG" in said
    assert "Average accuracy under D3M (TRAK): 83.8 %, under ERM 68.3 %." in said
    assert "proves nothing" not in said


def test_reading_says_when_the_demonstration_proves_nothing():
    for targets, does in ((0.78, "as well"), (0.9, "better")):
        said = "\n".join(reading(patch_rows(targets)))
        assert f"do {does}, so for D3M (TRAK) this task proves nothing about finding training examples" in said


def test_plain_training_on_a_table_with_errors_is_what_repair_is_held_against(tmp_path):
    rows = [row("t", "dirty", "none", (0.3, 0.01), 0.7), row("t", "predicted", "none", (0.2, 0.01), 0.8)]
    said = "\n".join(reading(rows))
    assert "D3M" not in report.write_report(tmp_path, document(rows), {}).read_text().replace("d3m", "")
    assert "Plain training (dirty) reaches 30.0" in said
    assert "Worse by more than the joint spread: predicted" in said


def test_reading_says_what_is_missing():
    only = [r for r in patch_rows() if r["method"].startswith("D3M")]
    said = "\n".join(reading(only))
    for missing in ("no row of plain training", "No row removes random", "No row trains on the targets alone"):
        assert missing in said
    assert reading([]) == []
    bench = {"seconds": summary([1.0])}
    assert reading([{**only[0], "metrics": bench}]) == []


def test_reading_tells_what_single_checkpoints_say_and_tables_do_not():
    rows = patch_rows()
    d3m = rows[3]
    found = {"suspects": [0.1, 0.1], "suspects_removed": [0.01, 0.03], "effective_checkpoints": [4.0, 5.0]}
    d3m["metrics"] |= {name: summary(values) for name, values in found.items()}
    d3m["settings"] = {"checkpoints": 20}
    said = "\n".join(reading(rows))
    # 1 % and 3 %: deviation sqrt(2); 4 and 5: deviation sqrt(1/2)
    assert "10.0 % of the training set, and of the removed examples 2.0 ± 1.4 % (D3M (TRAK))." in said
    assert "the 20 checkpoints behind the scores evens out as much as averaging 4.5 ± 0.7 unrelated ones" in said
    assert "checkpoints" not in "\n".join(reading(patch_rows()))
    assert report.table_text(rows) == report.table_text(patch_rows())


def test_a_row_leaves_out_what_a_seed_lacks():
    made = made_row("patch", "ERM", {"lds": [0.5, 0.7], "removed": [0.1, None]}, role="plain", settings={"p": 3})
    assert made == {
        "task": "patch",
        "method": "ERM",
        "role": "plain",
        "information": "none",
        "settings": {"p": 3},
        "metrics": {"lds": summary([0.5, 0.7])},
    }


def test_one_seed_decides_nothing():
    rows = patch_rows()
    for r in rows:
        r["metrics"] = {WGA: summary([r["metrics"][WGA]["mean"]])}
    said = "\n".join(reading(rows))
    assert "One seed, so no spread" in said
    assert "Only 1 seed:" in said
    assert "Better by" not in said
    assert "proves nothing" not in said
    assert verdict(rows[3], rows[0]) == "unknown"


def figures():
    rng = np.random.default_rng(0)
    sizes = [190, 10, 10, 190]
    group, y = np.repeat([0, 1, 2, 3], sizes), np.repeat([0, 0, 1, 1], sizes)
    scores = rng.normal(size=400) + np.repeat([-0.2, 2, 2, -0.2], sizes)
    curves = {"D3M (TRAK)": ([0, 100, 200], rng.uniform(0.5, 0.8, (4, 3))), "random": ([0, 100, 200], [0.3, 0.3, 0.3])}
    return {
        "Worst-group accuracy against what is removed": plots.accuracy_against_removed(
            curves, {"D3M, drop negative": (150, 0.7)}, references={"ERM": [0.3, 0.32], "SUBG": 0.8}, num_train=400
        ),
        "Who was removed": plots.removed_by_cell(scores > 0, y, group, ["pullover", "coat"], GROUPS),
        "Scores": plots.score_histogram(scores, group, GROUPS),
        "Lowest scores": plots.image_grid(rng.normal(size=(10, 14, 14)), [f"{s:.2f}" for s in scores[:10]]),
        "Before and after": plots.bar_groups({"ERM": rng.uniform(size=(4, 4)), "D3M": [[0.7] * 4]}, GROUPS),
    }


def bias_row(method, wga, accuracy, bias, information="none"):
    made = row("t", method, information, wga, 0.0, bias=[bias] * 4, accuracy=[accuracy] * 4)
    return made | {"metrics": {name: value for name, value in made["metrics"].items() if name != "average_accuracy"}}


def test_reading_of_bias_names_a_method_for_each_goal():
    rows = [
        bias_row("no edit", (0.30, 0.01), 0.80, 0.4),
        bias_row("FMD", (0.50, 0.01), 0.797, 0.2),
        bias_row("FMD, sign flipped", (0.99, 0.01), 0.5, 0.6),
        bias_row("Newton on the bias", (0.45, 0.01), 0.796, 0.1),
        bias_row("head fine-tuned on the pairs", (0.40, 0.01), 0.79, 0.05),
        bias_row("trained without the attribute", (0.60, 0.01), 0.799, 0.0),
        bias_row("D3M", (0.605, 0.01), 0.7, 0.3, "validation groups"),
        bias_row("SUBG", (0.9, 0.01), 0.7, 0.3, "training groups"),
        bias_row("temperature of FMD's bias", (0.3, 0.01), 0.80, 0.2),
    ]
    said = by_goal([r for r in rows if "flipped" not in r["method"]])
    assert said[0].startswith("For the worst group: D3M (needs groups of validation rows), 60.5 ±")
    assert said[0].endswith("30.0 ± 1.8 % as it was trained; level with it: trained without the attribute.")
    assert (
        said[1] == "For accuracy nothing is better than the model as it was trained (80.0 %) by more than the spread."
    )
    assert "at 0.5 points of accuracy at most: trained without the attribute, 0.000 of 0.400" in said[2]
    assert "Newton on the bias, 0.100 of 0.400" in said[3]  # fine-tuning costs a point
    assert by_goal(rows)[4] == "On the worst group FMD at its best (FMD) is above head fine-tuned on the pairs."
    assert by_goal(rows)[5] == "On accuracy FMD at its best (FMD) is above head fine-tuned on the pairs."
    assert "changes no prediction" in said[6]
    assert not by_goal(rows[1:])
    assert not by_goal(rows[:1])


def test_report_is_one_page_with_everything(tmp_path):
    adult = [row("adult <b>", "ERM", "none", (0.518, 0.02), 0.85)]
    drawn = figures()
    sections = {"patch": report.Section("Pullovers & coats with a white patch.", drawn)}
    path = report.write_report(tmp_path, document(patch_rows() + adult), sections)
    page = path.read_text()
    assert path.name == "report.html"
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|<script', page)
    images = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(images) == len(drawn) == 5
    for i, image in enumerate(images):
        content = base64.b64decode(image)
        assert content.startswith(b"\x89PNG")
        assert (tmp_path / f"patch-{i + 1}.png").read_bytes() == content
    assert "Pullovers &amp; coats" in page
    assert "<h2>adult &lt;b&gt;</h2>" in page
    assert page.count('class="reading"') == 2
    assert "needs the group label of every training example" in page
    with pytest.raises(ValueError, match=r"sections \['mnist'\] have no rows"):
        report.write_report(tmp_path, document(adult), {"mnist": report.Section("", {})})


def test_report_of_a_benchmark_has_no_reading(tmp_path):
    bench = made_row("lasso", "d3mjax", {"seconds": [1.0, 1.2], "ratio": [3.0, 3.2]}, role="ours")
    page = report.write_report(tmp_path, document([bench]), {}).read_text()
    assert "1.10 ± 0.14" in page
    assert 'class="reading"' not in page
    assert "worst group" not in page


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in [*axes.texts, *axes.get_yticklabels(), axes.title]] + [
        axes.get_title(loc="left") for axes in figure.axes
    ]


def test_removed_by_cell_counts_by_hand():
    kept = [True, False, False, True, False, True]
    y, group = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, -1]
    got = texts(plots.removed_by_cell(kept, y, group, ["cat", "dog"], ["indoor", "outdoor"]))
    assert "cat · indoor" in got
    assert "dog · unknown group" in got
    assert got[:5] == [
        "1 of 2 (50%), 33% of all removed",
        "1 of 1 (100%), 33% of all removed",
        "0 of 1 (0%), 0% of all removed",
        "0 of 1 (0%), 0% of all removed",
        "1 of 1 (100%), 33% of all removed",
    ]


def test_score_histogram_counts_by_hand_and_survives_equal_scores():
    got = texts(plots.score_histogram([-1.0, 0.0, 2.0, -3.0], [0, 0, 0, 2], ["a", "empty", "c"]))
    assert "a: 3 examples, 33% below zero" in got
    assert "c: 1 examples, 100% below zero" in got
    assert isinstance(plots.score_histogram(np.zeros(4), [0] * 4, ["a"]), Figure)


def test_image_grid_takes_grey_and_colour_and_refuses_the_rest():
    for shape in ((3, 4, 4), (3, 4, 4, 1), (3, 4, 4, 3)):
        assert len(plots.image_grid(np.zeros(shape, np.uint8), ["a", "b", "c"]).axes) == 3
    for shape, titles in (((3, 16), "abc"), ((3, 4, 4, 2), "abc"), ((3, 4, 4), "ab")):
        with pytest.raises(ValueError, match="titles for images of shape"):
            plots.image_grid(np.zeros(shape), list(titles))
