"""Published results: metrics of finished runs under docs/results/metrics, and the tables that pages show of them.

A page of `docs/results`, or the README, has places for tables, filled from the files alone:

    <!-- table main_table only="^adult: " metrics="worst_group_accuracy,average_accuracy" -->
    <!-- /table -->

``only`` keeps the rows whose "task: method" has a match of the regular expression, ``metrics`` the named columns;
``joined="yes"`` puts all tasks into one table. ``<!-- demix tasks -->`` is the place of the table of `demix_tasks`.
"""

import gzip
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from d3mjax.reports import tables
from d3mjax.runtime import runs, store
from experiments import demix_tasks
from experiments.study import Study

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "docs" / "results" / "metrics"
LIST = re.compile(r"(<!-- studies -->\n).*?(<!-- /studies -->)", re.DOTALL)
DEMIX = re.compile(r"(<!-- demix tasks -->\n).*?(<!-- /demix tasks -->)", re.DOTALL)
PLACE = re.compile(r"(<!-- table ([\w-]+)((?: \w+=\"[^\"]*\")*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def publish(run_dir: Path, name: str | None = None) -> Path:
    """Store the metrics of a finished run as ``docs/results/metrics/<name>.json.gz``; the study's name if not given."""
    document = store.read_json(run_dir / "metrics.json")
    runs.validate_document(document)
    path = METRICS / f"{name or document['experiment']}.json.gz"
    write(path, document | {"run": run_dir.name, "revision": document["environment"]["revision"]})
    return path


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document compressed, the same bytes for the same document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_bytes(path, gzip.compress(store.json_text(document).encode(), mtime=0))


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote."""
    return json.loads(gzip.decompress(path.read_bytes()))


def select(document: Mapping[str, Any], *, only: str = "", metrics: str = "") -> dict[str, Any]:
    """The document with the rows and metrics that a place asks for; raises ValueError where none is left."""
    rows = [row for row in document["rows"] if re.search(only, f"{row['task']}: {row['method']}")]
    if metrics:
        names = metrics.split(",")
        rows = [
            {**row, "metrics": {name: row["metrics"][name] for name in names if name in row["metrics"]}} for row in rows
        ]
    if not rows or not any(row["metrics"] for row in rows):
        known = sorted({name for row in document["rows"] for name in row["metrics"]})
        raise ValueError(f"only, metrics: found no row for {only!r}, {metrics!r}, expected a match and some of {known}")
    return {**document, "rows": rows}


def fill(text: str, directory: Path = METRICS) -> str:
    """``text`` with every place filled from the metrics in ``directory``; raises ValueError naming a missing file."""

    def table(match: re.Match) -> str:
        start, name, options, end = match.groups()
        path = directory / f"{name}.json.gz"
        if not path.exists():
            raise ValueError(f"table {name}: found no {path}, expected the metrics of a published run")
        chosen = dict(re.findall(r'(\w+)="([^"]*)"', options))
        joined = chosen.pop("joined", "") == "yes"
        document = select(read(path), **chosen)
        note = f" {document['note']}" if "note" in document else ""
        return f"{start}\n{tables.markdown(document, joined=joined)}{note}\n\n{end}"

    text = PLACE.sub(table, text)
    document = cache(lambda name: read(directory / f"{name}.json.gz"))
    return DEMIX.sub(lambda match: f"{match[1]}\n{demix_tasks.markdown(document)}\n\n{match[2]}", text)


def fill_pages(studies: Mapping[str, Study], root: Path = ROOT) -> list[Path]:
    """Fill the pages of ``docs/results`` and both READMEs in place; returns the files that changed."""
    changed, listing = [], f"\\1\n{studies_table(studies, root)}\n\n\\2"
    for path in (root / "README.md", root / "experiments" / "README.md", *sorted((root / "docs/results").glob("*.md"))):
        before = path.read_text()
        after = LIST.sub(listing, fill(before))
        if after != before:
            store.write_bytes(path, after.encode())
            changed.append(path)
    return changed


def studies_table(studies: Mapping[str, Study], root: Path = ROOT) -> str:
    """One line a study in markdown: name, claim, headline number, minutes, and the page that shows its tables."""
    pages = {path: path.read_text() for path in sorted((root / "docs" / "results").glob("*.md"))}
    lines = ["| study | claim | headline | minutes | results |", "|---|---|---|---:|---|"]
    for name, study in studies.items():
        page = next((path.stem for path, text in pages.items() if f"<!-- table {name}" in text), None)
        link = f"[{page}](../docs/results/{page}.md)" if page else ""
        lines.append(f"| `{name}` | {study.claim} | {headline(study)} | {study.minutes:g} | {link} |")
    return "\n".join(lines)


def headline(study: Study, directory: Path = METRICS) -> str:
    """The number that stands for a study, "metric mean ± std (task, method)"; empty without published metrics."""
    path = directory / f"{study.name}.json.gz"
    if study.headline is None or not path.exists():
        return ""
    task, method, metric = study.headline
    rows = read(path)["rows"]
    value = next((r["metrics"].get(metric) for r in rows if (r["task"], r["method"]) == (task, method)), None)
    if not value or value["mean"] is None:
        return ""
    spread = f" ± {value['std']:.3g}" if value["std"] else ""
    return f"{metric.replace('_', ' ')} {value['mean']:.3g}{spread} ({task}, {method})"
