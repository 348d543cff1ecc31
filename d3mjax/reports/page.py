"""The page of a run: one self-contained HTML file that leads with its conclusions."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from d3mjax.reports import bias_sentences, sentences, tables
from d3mjax.reports.rows import WGA, Row, by_task
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
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; }
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
STORY = (
    "A classifier can have a high average accuracy and a low accuracy on one group, because most of its training "
    "examples support a shortcut. D3M scores every training example by its effect on the groups with the highest loss, "
    "removes the lowest scores, and trains again. Scores are computed on target examples, choices are made on a "
    "selection set, and every number below is measured on test examples used for neither."
)
INFORMATION = {
    "none": "The method uses no group labels.",
    "validation groups": "The method uses group labels of a few examples outside the training set, as D3M does.",
    "training groups": "The method needs the group label of every training example: a yardstick, not a rival.",
}


class Section(NamedTuple):
    """Content of a page on one task besides its rows: plain text, one paragraph a line, and figures by caption."""

    text: str
    figures: Mapping[str, Figure]


def finish(
    run: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    sections: Mapping[str, Section],
    seconds: float,
) -> None:
    """Write ``metrics.json`` and ``report.html`` of a finished run, and print one table a task."""
    document = runs.metrics_document(experiment, config, rows, seconds)
    store.write_json(run / "metrics.json", document)
    path = write(run, document, sections)
    for task, of_task in by_task(document["rows"]).items():
        print(f"\n{task}\n{tables.text(of_task)}")
    print(f"\n{seconds:.0f} s; report: {path}")


def write(run: Path, document: Mapping[str, Any], sections: Mapping[str, Section]) -> Path:
    """Write ``report.html``, which needs no other file, and its figures as PNG; returns the path of the page.

    Args:
      run: the directory.
      document: a valid metrics document.
      sections: by task.

    Raises:
      ValueError: an invalid document, or a section without rows.
    """
    runs.validate_document(document)
    tasks = by_task(document["rows"])
    if unknown := sections.keys() - tasks.keys():
        raise ValueError(f"sections: found tasks without rows {sorted(unknown)}, expected some of {sorted(tasks)}")
    parts = [_opening(document, run.name)]
    for task, rows in tasks.items():
        text, figures = sections.get(task, Section("", {}))
        lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
        parts += [f"<h2>{escape(task)}</h2>", _conclusions(rows), lines, tables.html(rows)]
        for i, (caption, figure) in enumerate(figures.items()):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=144)
            slug = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
            store.write_bytes(run / f"{slug}-{i + 1}.png", buffer.getvalue())
            source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            caption = escape(caption)
            parts.append(f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>')
        settings = "\n".join(f"{r['method']}: {r['role']}, {store.json_text(r['settings'])}" for r in rows)
        summary = "<summary>Role and settings of every row</summary>"
        parts.append(f"<details>{summary}<pre>{escape(settings)}</pre></details>")
    facts = store.json_text({k: document[k] for k in ("config", "environment")}, indent=2)
    parts.append(f"<h2>Configuration</h2><pre>{escape(facts)}</pre>")
    store.write_bytes(run / "report.html", html(f"d3mjax: {document['experiment']}", "".join(parts)).encode())
    return run / "report.html"


def html(title: str, body: str) -> str:
    """A whole page in the style of all pages."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>'


def legend(rows: Sequence[Row]) -> str:
    """How to read the tables of these rows, as HTML."""
    entries = tables.explanations(rows)
    used = [i for i in INFORMATION if any(row["information"] == i for row in rows)]
    entries += [(f"information: {i}", INFORMATION[i]) for i in used]
    items = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in entries)
    return (
        "<p>Numbers are means over random seeds ± one standard deviation (none for a single seed). Two rows differ if "
        "their means differ by more than the joint spread, the root of the sum of both variances.</p>"
        f"<details><summary>Columns</summary><dl>{items}</dl></details>"
    )


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Sentences on the rows of one task, the verdict first."""
    return bias_sentences.conclusions(rows) or sentences.conclusions(rows)


def _conclusions(rows: Sequence[Row]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in conclusions(rows))
    return f'<div class="reading"><h3>What these numbers say</h3><ul>{items}</ul></div>' if items else ""


def _opening(document: Mapping[str, Any], run: str) -> str:
    rows = document["rows"]
    removals = any(row["role"] == "ours" and {"removed", WGA} <= row["metrics"].keys() for row in rows)
    verdicts = {task: conclusions(of_task)[:1] for task, of_task in by_task(rows).items()}
    items = "".join(f"<li><b>{escape(task)}.</b> {escape(text[0])}</li>" for task, text in verdicts.items() if text)
    return (
        f"<h1>{escape(document['experiment'])}</h1>"
        + (f'<div class="reading"><ul>{items}</ul></div>' if items and len(verdicts) > 1 else "")
        + f'<p class="soft">{escape(tables.provenance(document, run=run))}</p>'
        + (f"<p>{STORY}</p>" if removals else "")
        + legend(rows)
    )
