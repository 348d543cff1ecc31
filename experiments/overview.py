"""One self-contained page over all results: the newest full run of every study, with its claim and its figures.

Command:  python -m experiments.overview [results]        (writes ``results/overview.html``)
"""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import tyro

from d3mjax.reports import page as pages
from d3mjax.reports import tables
from d3mjax.reports.rows import by_task
from d3mjax.runtime import store
from experiments.__main__ import studies

ORDER = ("d3m", "main_table", "removal_rules", "auto_d3m", "label_errors")  # these first, the others by name
STORY = (
    "A classifier can have a high average accuracy and a low accuracy on one group, because most of its training "
    "examples support a shortcut. These studies find such training examples, measure the effect of their removal, and "
    "test how well each attribution method predicts it. Every study states its claim, its run and its conclusions."
)


def chosen(results: Path, also: tuple[str, ...] = ()) -> dict[str, list[Path]]:
    """The newest finished run of each experiment, no smoke runs, and then those of ``also``, "experiment/run"."""
    found: dict[str, Path] = {}
    for path in sorted(results.glob("*/*/metrics.json"), key=lambda path: path.stat().st_mtime):
        document = store.read_json(path)
        if not document["config"].get("smoke"):
            found[document["experiment"]] = path.parent
    if absent := [run for run in also if not (results / run / "metrics.json").exists()]:
        raise SystemExit(f"also: found no finished run at {absent} in {results}, expected experiment/run")
    rank = {name: i for i, name in enumerate(ORDER)}
    more = {name: [results / run for run in also if Path(run).parts[0] == name] for name in found}
    ordered = sorted(found, key=lambda name: (rank.get(name, len(ORDER)), name))
    return {name: list(dict.fromkeys([found[name], *more[name]])) for name in ordered}


def claim(study: str) -> str:
    """The claim of a study; empty for what is not a study, such as a benchmark."""
    known = studies()
    return known[study].claim if study in known else ""


def body(run: Path, document: Mapping[str, Any]) -> str:
    """Tables, sentences and figures of one run, a level deeper than on its own page."""
    page = run / "report.html"
    if not page.exists():
        return "".join(
            f"<h3>{escape(task)}</h3>{tables.html(rows)}" for task, rows in by_task(document["rows"]).items()
        )
    text = page.read_text()
    first, last = text.find("<h2>"), text.find(pages.END)
    return re.sub(r"<(/?)h2", r"<\1h3", text[first:last])


def page(results: Path, also: tuple[str, ...] = ()) -> str:
    """The whole page; raises SystemExit where nothing has been run."""
    experiments = chosen(results, also)
    if not experiments:
        raise SystemExit(f"{results}: found no finished run, expected <experiment>/<run>/metrics.json")
    contents, parts, rows = [], [], []
    for name, runs in experiments.items():
        stated = claim(name)
        contents.append(f'<li><a href="#{escape(name)}">{escape(name)}</a></li>')
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2>')
        parts.append(f'<p class="reading"><b>Claim.</b> {escape(stated)}</p>' if stated else "")
        for run in runs:
            document = store.read_json(run / "metrics.json")
            rows += document["rows"]
            revision = document["environment"]["revision"][:12]
            facts = f"{name}/{run.name}, {document['seconds']:,.0f} s, revision {revision}"
            parts.append(f'<p class="soft">{escape(facts)}</p>{body(run, document)}')
    meaning = pages.legend(rows)
    return pages.html(
        "d3mjax: all results",
        f"<h1>All results</h1><p>{STORY}</p>{meaning}<ol>{''.join(contents)}</ol>{''.join(parts)}",
    )


def main(results: tyro.conf.Positional[Path] = Path("results"), also: tuple[str, ...] = ()) -> Path:
    """Write ``results/overview.html``; ``also``: further runs to show, such as d3m/b74db76c67."""
    path = results / "overview.html"
    store.write_bytes(path, page(results, also).encode())
    print(path)
    return path


if __name__ == "__main__":
    tyro.cli(main)
