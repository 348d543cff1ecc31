"""The page of a run: one self-contained HTML file that leads with its conclusions."""

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from d3mjax.reports import bias_sentences, plots, sentences, tables
from d3mjax.reports.rows import WGA, Row, by_task, has
from d3mjax.runtime import runs, store

STYLE = """
:root { color-scheme: light; --ink: #1b1f27; --soft: #4d5562; --line: #d5d9df; --bar: #cfe3f3; --note: #eef4f9; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 62rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { margin: 2.6rem 0 .6rem; font-size: 1.35rem; }
p, ul, dl, pre { max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--note); border-left: 5px solid #0072b2; padding: .8rem 1rem; font-size: 1.15rem;
  font-weight: 600; line-height: 1.4; margin: 1rem 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-top: 0; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; } td.text { white-space: normal; min-width: 8rem; } td.long { min-width: 20rem; }
td.bar { min-width: 7rem;
  background: linear-gradient(var(--bar), var(--bar)) left / var(--share) 100% no-repeat; }
.findings { padding-left: 1.2rem; } .findings li { margin: .3rem 0; }
figure { margin: 1.6rem 0; } figure img { max-width: 100%; display: block; }
figure .wide { border: 0; }
dl { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .4rem 1.2rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; } summary { cursor: pointer; color: #005a92; }
details { border-top: 1px solid var(--line); padding: .5rem 0; } details h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
@media (max-width: 600px) { table { font-size: .78rem; } th, td { padding: .3rem .35rem; }
  td.text { min-width: 4rem; } td.long { min-width: 14rem; }
  td.bar { min-width: 5.5rem; } dl { grid-template-columns: 1fr; } }
"""
STORY = (
    "A classifier can have a high average accuracy and a low accuracy on one group, because most of its training "
    "examples support a shortcut. D3M scores every training example by its effect on the groups with the highest loss, "
    "removes the lowest scores, and trains again. Scores are computed on target examples, choices are made on a "
    "selection set, and every number is measured on test examples used for neither."
)
SPREAD = (
    "Numbers are means over random seeds ± one standard deviation (none for a single seed). Two rows differ if their "
    "means differ by more than the joint spread, the root of the sum of both variances."
)
READABLE = 64  # pixels of the screen to an inch of a figure, at which its text can be read
# Fonts with the letters of many scripts, which plots use where they are installed.
_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Microsoft YaHei")
END = "<!-- end of the tasks -->"
INFORMATION = {
    "none": "The method uses no group labels.",
    "validation groups": "The method uses group labels of a few examples outside the training set, as D3M does.",
    "training groups": "The method needs the group label of every training example: a yardstick, not a rival.",
}


LONGEST = 240  # characters of a text in a table of single examples


class Section(NamedTuple):
    """Content of a page on one task besides its rows."""

    text: str  # for the details, one paragraph a line
    figures: Mapping[str, Figure]  # by caption
    findings: Sequence[str] = ()  # plain sentences, the verdict first; those of `conclusions` if there are none
    card: Sequence[Mapping[str, Any]] = ()  # what became of every column of the data, for the details
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = {}  # tables of single examples by caption; never written to


def finish(
    run: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    sections: Mapping[str, Section],
    seconds: float,
) -> None:
    """Write ``metrics.json`` and ``report.html`` of a finished run; print a table a task, findings around it."""
    document = runs.metrics_document(experiment, config, rows, seconds)
    store.write_json(run / "metrics.json", document)
    path = write(run, document, sections)
    for task, of_task in by_task(document["rows"]).items():
        findings = sections[task].findings if task in sections else ()
        print(f"\n{tables.summary(findings, of_task, title=task)}", end="")
    print(f"\n{seconds:.0f} s; report: {path}")


def write(run: Path, document: Mapping[str, Any], sections: Mapping[str, Section]) -> Path:
    """Write ``report.html``, which needs no other file, and its figures as PNG; returns the path of the page.

    A task has its verdict, its table, its other findings, figures, single examples, and then all details, folded.
    Tasks without findings of their own have those of `conclusions`, and a figure of the worst group against the
    average.

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
    parts = [_opening(document, sections)]
    for task, rows in tasks.items():
        section = sections.get(task, Section("", {}))
        if not section.findings:
            most = max(2, sentences.MOST // len(tasks))
            findings, others = (conclusions(rows)[part] for part in (slice(most), slice(most, None)))
            text, figures = "\n".join([section.text, *others]), {**tradeoff(rows), **section.figures}
            section = section._replace(text=text, figures=figures, findings=findings)
        first, others = section.findings[:1], section.findings[1:]
        parts += [f"<h2>{escape(task)}</h2>", *(f'<p class="verdict">{escape(text)}</p>' for text in first)]
        items = "".join(f"<li>{escape(text)}</li>" for text in others)
        parts += [tables.html(rows), f'<ul class="findings">{items}</ul>' if items else ""]
        slug = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
        parts += [
            _figure(run / f"{slug}-{i + 1}.png", *captioned) for i, captioned in enumerate(section.figures.items())
        ]
        parts += [_table(*captioned) for captioned in section.examples.items()]
        parts.append(_details(section, rows))
    parts.append(END + _closing(document, run.name))
    store.write_bytes(run / "report.html", html(f"d3mjax: {document['experiment']}", "".join(parts)).encode())
    return run / "report.html"


def tradeoff(rows: Sequence[Row], *, part: str = "group") -> dict[str, Figure]:
    """The worst group, or class, against the average accuracy of all rows of a task, by caption; for two rows or more.

    ``part``: ``group`` or ``class``, whose worst accuracy is the metric ``worst_PART_accuracy``.
    """
    goals = ("average_accuracy", f"worst_{part}_accuracy")
    shown = [row for row in rows if all(has(row, goal) for goal in goals)]
    if len(shown) < 2:
        return {}
    points = {row["method"]: tuple(row["metrics"][goal]["per_seed"] for goal in goals) for row in shown}
    plain = next((row["method"] for row in shown if row["role"] == "plain"), None)
    caption = f"Worst {part} against average accuracy: means and deviations over seeds."
    return {caption: plots.worst_against_average(points, plain=plain, part=part)}


def html(title: str, body: str) -> str:
    """A whole page in the style of all pages."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>'


def legend(rows: Sequence[Row]) -> str:
    """How to read the tables of these rows, as HTML, folded."""
    entries = tables.explanations(rows)
    used = [i for i in INFORMATION if any(row["information"] == i for row in rows)]
    entries += [(f"information: {i}", INFORMATION[i]) for i in used]
    items = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in entries)
    return _folded("How to read the tables", f"<p>{SPREAD}</p><dl>{items}</dl>")


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Sentences on the rows of one task, the verdict first."""
    return bias_sentences.conclusions(rows) or sentences.conclusions(rows)


def _opening(document: Mapping[str, Any], sections: Mapping[str, Section]) -> str:
    """Title, and the verdicts where there are several tasks."""
    items = []
    for task, rows in by_task(document["rows"]).items():
        findings = (sections[task].findings if task in sections else ()) or conclusions(rows)
        items += [f"<li><b>{escape(task)}.</b> {escape(text)}</li>" for text in findings[:1]]
    verdicts = f'<ul class="findings">{"".join(items)}</ul>' if len(items) > 1 else ""
    return f"<h1>{escape(document['experiment'])}</h1>{verdicts}"


def _closing(document: Mapping[str, Any], run: str) -> str:
    """How to read the tables, what was done, options and environment, folded; run and revision."""
    rows = document["rows"]
    removals = any(row["role"] == "ours" and {"removed", WGA} <= row["metrics"].keys() for row in rows)
    facts = store.json_text({k: document[k] for k in ("config", "environment")}, indent=2)
    return (
        legend(rows)
        + (_folded("What was done", f"<p>{STORY}</p>") if removals else "")
        + _folded("Options and environment of the run", f"<pre>{escape(facts)}</pre>")
        + f'<p class="soft">{escape(tables.provenance(document, run=run))}</p>'
    )


def _details(section: Section, rows: Sequence[Row]) -> str:
    """Text, columns of the data, values of every seed and settings, folded."""
    text = "".join(f"<p>{escape(line)}</p>" for line in section.text.splitlines())
    settings = "\n".join(f"{r['method']}: {r['role']}, {store.json_text(r['settings'])}" for r in rows)
    return (
        (_folded("About the data and the method", text) if text else "")
        + (_folded("Columns of the data", tables.card(section.card)) if section.card else "")
        + _folded("Values of every seed", tables.per_seed(rows))
        + _folded("Role and settings of every row", f"<pre>{escape(settings)}</pre>")
    )


def _figure(path: Path, caption: str, figure: Figure) -> str:
    """Write a figure as PNG; returns it as HTML, the caption being what is read out in its place."""
    families = ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in font_manager.get_font_names())]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a box is drawn where no font has the letter: the tables of the page have it
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="png", dpi=144)
    store.write_bytes(path, buffer.getvalue())
    source, caption = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), escape(caption)
    least = f"min-width: {READABLE * figure.get_figwidth():.0f}px"  # on narrow screens it scrolls
    image = f'<div class="wide" tabindex="0"><img alt="{caption}" style="{least}" src="{source}"></div>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(caption: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """A table of single examples, under its caption."""
    return f"<figure>{tables.card(lines)}<figcaption>{escape(caption)}</figcaption></figure>"


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
