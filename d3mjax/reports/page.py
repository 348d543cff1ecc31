"""Tables and one self-contained page from the rows of `metrics.json`.

Command:  python -m experiments.report results/d3m/<run>     (prints the tables as markdown, from the file alone)
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from matplotlib.figure import Figure

from d3mjax.reports.bias_sentences import by_goal
from d3mjax.reports.rows import Row, by_task
from d3mjax.reports.sentences import SPOKEN, WGA, num_seeds, percent, reading
from d3mjax.runtime import runs, store

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6472; --line: #dfe3e8; --page: #fbfbfa; --card: #fff;
  --bar: #cfe3f3; --note: #eef4f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3adba; --line: #333b47; --page: #14181f;
  --card: #1b212a; --bar: #24455f; --note: #1d2a36; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { margin: 3rem 0 .6rem; font-size: 1.4rem; }
p, ul, dl { max-width: 46rem; } .soft, figcaption, summary { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .5rem .65rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-top: 0; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; } td.bar { min-width: 8rem;
  background: linear-gradient(var(--bar), var(--bar)) left / var(--share) 100% no-repeat; }
.reading { background: var(--note); border-radius: 8px; padding: .8rem 1.1rem; margin: 1.2rem 0; }
.reading h3 { margin: 0; font-size: 1rem; } .reading ul { margin: .4rem 0 0; padding-left: 1.1rem; }
figure { margin: 1.8rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 8px;
  padding: .6rem; box-sizing: border-box; border: 1px solid var(--line); }
dl { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .5rem 1.2rem; font-size: .92rem; }
dt { font-weight: 600; } dd { margin: 0; } summary { cursor: pointer; margin-top: 1rem; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; }
"""


class Section(NamedTuple):
    """What the page says about one task besides its rows: plain text, a line a paragraph, and figures by caption."""

    text: str
    figures: Mapping[str, Figure]


class Column(NamedTuple):
    title: str
    explanation: str
    percent: bool = False


COLUMNS = {
    WGA: Column(
        "worst group, %",
        "Accuracy on the test examples of the group where the classifier does worst: the number this is all about.",
        True,
    ),
    "average_accuracy": Column("average, %", "Accuracy over all test examples: what the help may cost.", True),
    "removed": Column("removed, %", "Share of the training examples that were taken out before retraining.", True),
    "lds": Column(
        "LDS", "How well the attribution predicts the outputs of models trained on other subsets (1: their ranking)."
    ),
    "seconds": Column("seconds", "Wall time."),
    "per_second": Column("per second", "Throughput."),
    "peak_memory_mib": Column("peak MiB", "Largest memory in use."),
    "ratio": Column("ratio", "Against the alternative that the row names, measured in the same run."),
}
"""The known metrics in the order of the table; others follow under their own names, but for `SPOKEN`."""

INFORMATION = {
    "none": "uses no group labels at all.",
    "validation groups": "uses group labels of a few examples outside the training set, as D3M does.",
    "training groups": "needs the group label of every training example. Such methods are told what the others have "
    "to find out: read them as a yardstick, not as rivals.",
}


def table_text(rows: Sequence[Row]) -> str:
    """The rows as an aligned table for the terminal: mean ± standard deviation over seeds."""
    header, body, numeric = _cells(rows)
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]

    def aligned(line):
        pairs = zip(line, widths, numeric, strict=True)
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in pairs).rstrip()

    return "\n".join([aligned(header), "  ".join("-" * w for w in widths), *map(aligned, body)])


def table_markdown(rows: Sequence[Row]) -> str:
    """The same table in markdown."""
    header, body, numeric = _cells(rows)
    rule = ["---:" if n else "---" for n in numeric]
    lines = ([c.replace("|", "\\|") for c in line] for line in (header, rule, *body))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(run: Path, document: Mapping[str, Any], sections: Mapping[str, Section]) -> Path:
    """Write `report.html`, one page without any other file, and its figures as PNG; returns the page's path.

    `document` is a valid metrics document; `sections` go by task. Raises ValueError for a section without rows.
    """
    runs.validate_document(document)
    tasks = by_task(document["rows"])
    if unknown := sections.keys() - tasks.keys():
        raise ValueError(f"sections {sorted(unknown)} have no rows; tasks are {sorted(tasks)}")
    parts = [_opening(document)]
    for task, rows in tasks.items():
        section = sections.get(task, Section("", {}))
        parts += [f"<h2>{escape(task)}</h2>", *(f"<p>{escape(line)}</p>" for line in section.text.splitlines())]
        parts.append(table_html(rows))
        if said := by_goal(rows) or reading(rows):
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
            parts.append(f'<div class="reading"><h3>What these numbers say</h3><ul>{items}</ul></div>')
        for i, (caption, figure) in enumerate(section.figures.items()):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=144)
            slug = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
            store.write_bytes(run / f"{slug}-{i + 1}.png", buffer.getvalue())
            source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            caption = escape(caption)
            parts.append(f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>')
        settings = "\n".join(f"{r['method']}: {store.json_text(r['settings'])}" for r in rows)
        parts.append(f"<details><summary>Settings of every row</summary><pre>{escape(settings)}</pre></details>")
    facts = store.json_text({k: document[k] for k in ("config", "environment")}, indent=2)
    parts.append(f"<h2>How to repeat it</h2><pre>{escape(facts)}</pre>")
    page = html(f"d3mjax: {document['experiment']}", "".join(parts))
    store.write_bytes(run / "report.html", page.encode())
    return run / "report.html"


def html(title: str, body: str) -> str:
    """A whole page in the style of all pages."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>'


def finish(
    run: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    sections: Mapping[str, Section],
    seconds: float,
) -> None:
    """Write ``metrics.json`` and the page of a finished run, and print one table a task."""
    document = runs.metrics_document(experiment, config, rows, seconds)
    store.write_json(run / "metrics.json", document)
    page = write_report(run, document, sections)
    for task, of_task in by_task(document["rows"]).items():
        print(f"\n{task}\n{table_text(of_task)}")
    print(f"\n{seconds:.0f} s; report: {page}")


def main(run: tyro.conf.Positional[Path], into: Path | None = None, place: str | None = None, only: str = "") -> None:
    """Print the tables of a finished run as markdown, or put them ``into`` a file that has a place for them.

    A place called p lies between the lines ``<!-- p -->`` and ``<!-- /p -->``; the experiment's name if not given.
    ``only``: rows whose "task: method" has a match of this regular expression.
    """
    path = run / "metrics.json" if run.is_dir() else run
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run the experiment first")
    document = store.read_json(path)
    runs.validate_document(document)
    tasks = by_task([row for row in document["rows"] if re.search(only, f"{row['task']}: {row['method']}")])
    if not tasks:
        raise SystemExit(f"--only: found no row whose 'task: method' matches {only!r}, expected at least one")
    text = "\n\n".join(f"**{task}**\n\n{table_markdown(rows)}" for task, rows in tasks.items())
    device, seconds = document["environment"]["device"], document["seconds"]
    took = f"{seconds:,.0f} s" if seconds >= 1 else "Read from finished units"
    text += f"\n\n{took} on {device['count']} x {device['kind']}, peak {document['peak_memory_mib']:,.0f} MiB."
    if into is None:
        print(text)
        return
    start, end = (f"<!-- {slash}{place or document['experiment']} -->" for slash in ("", "/"))
    whole = into.read_text()
    if start not in whole or end not in whole:
        raise SystemExit(f"{into} has no place for this table: expected lines {start} and {end}")
    before, rest = whole.split(start)
    store.write_bytes(into, f"{before}{start}\n\n{text}\n\n{end}{rest.split(end)[1]}".encode())


def _shown(metric: str, row: Row) -> str:
    value = row["metrics"].get(metric)
    if value is None:
        return ""
    if value["mean"] is None:
        return "undefined"
    if metric in COLUMNS and COLUMNS[metric].percent:
        return percent(value)
    if not value["std"] or value["std"] < 1e-6 * abs(value["mean"]):  # the same in every seed, but for rounding
        return f"{value['mean']:.4g}"
    places = max(0, 1 - math.floor(math.log10(value["std"])))  # two digits of the spread, the mean to match
    return f"{value['mean']:.{places}f} ± {value['std']:.{places}f}"


def _metrics(rows: Sequence[Row]) -> list[str]:
    present = dict.fromkeys(metric for row in rows for metric in row["metrics"] if metric not in SPOKEN)
    return [m for m in COLUMNS if m in present] + [m for m in present if m not in COLUMNS]


def _title(metric: str) -> str:
    return COLUMNS[metric].title if metric in COLUMNS else metric.replace("_", " ")


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[bool]]:
    """Header, rows, and which columns hold numbers; no task where there is one, no information where none is used."""
    metrics, told = _metrics(rows), any(row["information"] != "none" for row in rows)
    text = [*(["task"] if len(by_task(rows)) > 1 else []), "method", *(["information"] if told else [])]
    header = [*text, *map(_title, metrics), "seeds"]
    body = [[*(str(row[t]) for t in text), *(_shown(m, row) for m in metrics), str(num_seeds(row))] for row in rows]
    return header, body, [False] * len(text) + [True] * (len(metrics) + 1)


def _opening(document: Mapping[str, Any]) -> str:
    rows, environment = document["rows"], document["environment"]
    story = (
        "<p>A classifier can be good on average and bad on one group of cases, because most of its training examples "
        "teach it a shortcut. D3M scores every training example by how much having it in the training set helps the "
        "groups that fail, takes out the lowest, and trains again. Scores are computed on a set of target examples, "
        "choices are made on a selection set, and every number here is measured on test examples used for neither.</p>"
    )
    told = WGA in _metrics(rows) and any(row["method"] == "ERM" or "D3M" in row["method"] for row in rows)
    revision = re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", environment["revision"])
    device = environment["device"]
    device = f"{device['count']} × {device['kind']}" if isinstance(device, Mapping) else str(device)
    return (
        f"<h1>{escape(document['experiment'])}</h1>"
        f'<p class="soft">{document["seconds"]:,.0f} s on {escape(device)}, {environment["cores"]} cores, peak memory '
        f"{document['peak_memory_mib']:,.0f} MiB, revision {escape(revision)}</p>"
        f"{story if told else ''}{meaning_html(rows)}"
    )


def meaning_html(rows: Sequence[Row]) -> str:
    """How to read the numbers of these rows, and what their columns mean."""
    entries = [(COLUMNS[m].title, COLUMNS[m].explanation) for m in _metrics(rows) if m in COLUMNS]
    used = [i for i in INFORMATION if any(row["information"] == i for row in rows)]
    entries += [(f"information: {i}", f"The method {INFORMATION[i]}") for i in used]
    words = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in entries)
    return (
        "<p>Numbers are means over random seeds ± one standard deviation (none for a single seed). Two rows are called "
        "different only if their means differ by more than the joint spread: the root of the sum of both squared "
        f"deviations.</p><details open><summary>What the columns mean</summary><dl>{words}</dl></details>"
    )


def table_html(rows: Sequence[Row]) -> str:
    """The table of a page; worst-group accuracy is drawn as a bar."""
    metrics, (header, body, numeric) = _metrics(rows), _cells(rows)
    kinds = ["" if n else ' class="text"' for n in numeric]
    lines = ["".join(f"<th{k}>{escape(c).replace(', %', ',&nbsp;%')}</th>" for c, k in zip(header, kinds, strict=True))]
    for row, cells in zip(rows, body, strict=True):
        drawn = dict(enumerate(kinds))
        share = row["metrics"].get(WGA, {}).get("mean")
        if share is not None:
            drawn[numeric.index(True) + metrics.index(WGA)] = f' class="bar" style="--share: {100 * share:.1f}%"'
        lines.append("".join(f"<td{drawn[i]}>{escape(c)}</td>" for i, c in enumerate(cells)))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


if __name__ == "__main__":
    tyro.cli(main)
