"""Tables in all forms, and one golden page."""

import base64
import re

import numpy as np
import pytest
from made_rows import made, patch_rows

from d3mjax.reports import page, plots, rows, tables
from d3mjax.runtime import runs


def document(some):
    return runs.metrics_document("d3m", {"seeds": 4, "steps": 800}, some, 161.0)


def test_text_is_aligned():
    lines = tables.text(patch_rows()).splitlines()
    titles = ["method", "information", "worst group, %", "average, %", "removed, %", "LDS", "seeds"]
    assert re.split(" {2,}", lines[0]) == titles
    # deviations 1, -1, 2, -2 around the mean: squares sum to 10, over ddof 3, times .01
    ours = next(line for line in lines if line.startswith("new"))
    assert re.sub(" {2,}", "|", ours) == "new|validation groups|78.9 ± 1.8|83.8|51.2|0.7000 ± 0.0082|4"
    assert len({len(line) for line in lines}) == 1


def test_markdown_has_a_heading_a_task_and_names_its_run():
    one, other = made("ERM", "plain", (0.3, 0.0), 0.683, loss=[np.nan] * 4), made("A | B", "rival", (0.5, 0.0), 0.85)
    whole = {**document([one, {**other, "task": "adult"}]), "run": "b74db76c67", "revision": 40 * "a"}
    *lines, last = [line for line in tables.markdown(whole).splitlines() if line]
    assert lines == [
        "### patch",
        "| method | worst group, % | average, % | removed, % | loss | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| ERM | 30.0 | 68.3 | 0.0 | undefined | 4 |",
        "### adult",
        "| method | worst group, % | average, % | removed, % | seeds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| A \\| B | 50.0 | 85.0 | 0.0 | 4 |",
    ]
    assert last.startswith(f"*Run b74db76c67; revision {12 * 'a'}; 161 s;")
    only = tables.markdown(whole, only="patch: E.M$", run="other")
    assert "adult" not in only
    assert "*Run other;" in only
    with pytest.raises(ValueError, match="found no row"):
        tables.markdown(whole, only="cats")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"m{i}" for i in range(7)], [7]),
        ([f"m{i}" for i in range(9)], [7, 2]),
        # families stay together: 4 of one, 4 of another, and 2 single names beside the second
        ([f"label error {i}" for i in range(4)] + [f"feature error {i}" for i in range(4)] + ["a", "b"], [4, 6]),
    ],
)
def test_wide_tables_are_split_by_family(names, expected):
    row = rows.row("t", "m", {name: [1.0] for name in names}, role="ours")
    split = tables.families([row])
    assert list(map(len, split)) == expected
    assert [name for table in split for name in table] == names
    assert tables.text([row]).count("method") == len(expected)


def test_the_page_stands_alone_and_leads_with_its_conclusion(tmp_path):
    adult = {**made("ERM", "plain", (0.518, 0.02), 0.85), "task": "adult <b>"}
    figure = plots.bar_groups({"ERM": np.full((4, 2), 0.5)}, ["left", "日本"])  # a letter that no font here may have
    sections = {"patch": page.Section("Pullovers & coats.", {"Before and after": figure})}
    path = page.write(tmp_path, document([*patch_rows(), adult]), sections)
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|<script', text)
    images = re.findall(r"data:image/png;base64,([^\"]+)", text)  # the second after the trade-off of the rows
    assert [(tmp_path / f"patch-{i}.png").read_bytes() for i in (1, 2)] == list(map(base64.b64decode, images))
    assert re.findall('<img alt="([^"]*)', text)[1] == "Before and after"
    assert "Pullovers &amp; coats" in text
    assert "<h2>adult &lt;b&gt;</h2>" in text
    verdict = page.conclusions(patch_rows())[0]
    assert text.count(verdict) == 2  # at the top of the page and of its task
    first = text.index("<h2>patch")
    order = [text.index(part, first) for part in (verdict, "<table>", "<img", "<details>", "Pullovers")]
    assert order == sorted(order)
    with pytest.raises(ValueError, match=r"sections: found tasks without rows \['mnist'\]"):
        page.write(tmp_path, document([adult]), {"mnist": page.Section("", {})})


def test_a_benchmark_has_no_conclusions(tmp_path):
    bench = rows.row("lasso", "d3mjax", {"seconds": [1.0, 1.2], "ratio": [3.0, 3.2]}, role="ours")
    text = page.write(tmp_path, document([bench]), {}).read_text()
    assert "1.10 ± 0.14" in text
    assert 'class="verdict"' not in text
    assert "<img" not in text
    assert page.STORY not in text


def test_findings_of_a_section_replace_the_conclusions(tmp_path, capsys):
    card = [
        {"name": "age", "missing": 0.25, "note": ""},
        {"name": "<job>", "levels": list("abcdefgh"), "missing": {"--train": 3, "--test": 0}},
    ]
    lines = [{"sentence": text, "label": "a", "score": "-1.2e-03"} for text in ("No dogs <bark>.", 61 * "x")]
    lowest = {"Lowest scores.": lines}
    section = page.Section("", {}, ["Leave it: <nothing>.", "One & all."], card, lowest)
    page.finish(tmp_path, "debias", {"seeds": 4}, patch_rows(), {"patch": section}, 1.0)
    text = (tmp_path / "report.html").read_text()
    assert '<p class="verdict">Leave it: &lt;nothing&gt;.</p>' in text
    assert "<li>One &amp; all.</li>" in text
    assert not any(sentence in text for sentence in page.conclusions(patch_rows()))
    assert '<td class="text">0.25</td>' in text
    assert ">note<" not in text
    assert '<td class="text">--train: 3</td>' in text
    assert '<td class="text">&lt;job&gt;</td>' in text
    assert "a, b, c, d, e, f, ..." in text
    assert '<td class="text">No dogs &lt;bark&gt;.</td><td class="text">a</td>' in text
    assert f'<td class="text long">{61 * "x"}</td>' in text
    assert text.index("</ul>") < text.index("<figcaption>Lowest scores.</figcaption>") < text.index("<details>")
    printed = capsys.readouterr().out
    assert printed.index("Leave it") < printed.index("worst group, %") < printed.index("- One & all.")
