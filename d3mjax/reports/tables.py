"""Tables of rows as text, markdown and HTML; wide tables are split by families of metrics."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from d3mjax.reports.rows import WGA, Row, by_task, num_seeds

MOST = 7
"""Metrics in one table."""
MANY = 6
"""Entries of a list in a table."""
LONG = 60
"""Characters of a cell beyond which it is wide."""


class Column(NamedTuple):
    """How a metric is shown."""

    title: str
    explanation: str
    percent: bool = False


COLUMNS = {
    WGA: Column("worst group, %", "Accuracy on the test examples of the group with the lowest accuracy.", True),
    "average_accuracy": Column("average, %", "Accuracy over all test examples.", True),
    "worst_group_with_offsets": Column(
        "worst group with offsets, %", "With class offsets, a decision threshold, chosen on groups of validation.", True
    ),
    "average_with_offsets": Column("average with offsets, %", "Over all test examples, with the same offsets.", True),
    "worst_class_accuracy": Column("worst class, %", "Accuracy on the class with the lowest accuracy.", True),
    "removed": Column("removed, %", "Share of the training examples that were removed before retraining.", True),
    "lds": Column(
        "LDS", "Rank correlation of predicted outputs with those of models trained on other subsets; 1 is perfect."
    ),
    "lds_groups": Column("LDS of groups", "The same for the mean outputs of groups of targets."),
    "seconds": Column("seconds", "Wall time."),
    "per_second": Column("per second", "Throughput."),
    "peak_memory_mib": Column("peak MiB", "Largest memory in use."),
    "ratio": Column("ratio", "Rate relative to the alternative that the row names, in the same run."),
}
"""The known metrics in the order of the table; others follow under their own names, except `SPOKEN`."""

KINDS = ("label error", "feature error", "spurious minority")
SPOKEN = ("suspects", "suspects_removed", "effective_checkpoints", *(f"share suspected: {kind}" for kind in KINDS))
"""Metrics that appear in sentences and not in tables."""


def text(rows: Sequence[Row]) -> str:
    """Rows as aligned tables for the terminal: mean ± standard deviation over seeds."""

    def one(header, body, numeric):
        widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
        lines = []
        for line in (header, ["-" * w for w in widths], *body):
            pairs = zip(line, widths, numeric, strict=True)
            lines.append("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in pairs).rstrip())
        return "\n".join(lines)

    return "\n\n".join(one(*cells(rows, family)) for family in families(rows))


def markdown(
    document: Mapping[str, Any], *, only: str = "", run: str | None = None, level: int = 3, joined: bool = False
) -> str:
    """Tables of a metrics document in markdown, one heading a task, with run and revision in the last line.

    Args:
      document: as `runs.metrics_document` makes it; ``run`` and ``revision`` of a published one are shown.
      only: a regular expression; rows whose "task: method" has no match are left out.
      run: name of the run, if the document does not hold it.
      level: of the headings.
      joined: all tasks in one table, with a column for the task and no headings.

    Raises:
      ValueError: no row matches ``only``.
    """
    rows = [row for row in document["rows"] if re.search(only, f"{row['task']}: {row['method']}")]
    if not rows:
        raise ValueError(f"only: found no row whose 'task: method' matches {only!r}, expected at least one")
    parts = []
    for task, of_task in ({"": rows} if joined else by_task(rows)).items():
        tables = (_markdown(*cells(of_task, family)) for family in families(of_task))
        parts += [*([] if joined else [f"{'#' * level} {task}"]), *tables]
    return "\n\n".join([*parts, f"*{provenance(document, run=run)}*"])


def html(rows: Sequence[Row]) -> str:
    """Rows as HTML tables; worst-group accuracy is drawn as a bar."""
    return "".join(_html(rows, family) for family in families(rows))


def summary(findings: Sequence[str], rows: Sequence[Row], *, title: str = "") -> str:
    """Rows and findings as text: the first finding, the table, then the others as a list; ends with a line break."""
    parts = [*findings[:1], "\n".join([*([title] if title else []), text(rows)])]
    others = "\n".join(f"- {sentence}" for sentence in findings[1:])
    return "\n\n".join([*parts, *([others] if others else [])]) + "\n"


def per_seed(rows: Sequence[Row]) -> str:
    """The values of every seed as an HTML table, a line a row and metric."""
    lines = [
        {"method": row["method"], "metric": name, **{f"seed {i}": v for i, v in enumerate(of["per_seed"])}}
        for row in rows
        for name, of in row["metrics"].items()
    ]
    return card(lines)


def card(lines: Sequence[Mapping[str, Any]]) -> str:
    """Facts as an HTML table, a line a mapping; columns in the order of their first fact.

    Of a list the first `MANY` entries are shown, of a mapping those that are not 0, of a number four digits.
    """
    titles = dict.fromkeys(name for line in lines for name, fact in line.items() if _fact(fact))
    numeric = {
        name: all(isinstance(line.get(name, 0.0), (int, float, type(None))) for line in lines) for name in titles
    }
    kinds = {name: "" if numeric[name] else ' class="text"' for name in titles}
    header = "".join(f"<th{kinds[name]}>{escape(str(name))}</th>" for name in titles)
    body = ("".join(_cell(_fact(line.get(name)), kinds[name]) for name in titles) for line in lines)
    return (
        f'<div class="wide" tabindex="0"><table>{"".join(f"<tr>{line}</tr>" for line in (header, *body))}</table></div>'
    )


def provenance(document: Mapping[str, Any], *, run: str | None = None) -> str:
    """Run, revision, time, device and memory of a document in one line."""
    environment, run = document["environment"], run or document.get("run")
    revision = re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", document.get("revision") or environment["revision"])
    device, seconds = environment["device"], document["seconds"]
    device = f"{device['count']} x {device['kind']}" if isinstance(device, Mapping) else str(device)
    time = f"{seconds:,.0f} s" if seconds >= 1 else "read from finished units"
    memory = f"peak memory {document['peak_memory_mib']:,.0f} MiB"
    facts = [f"revision {revision}", time, f"{device}, {environment['cores']} cores", memory]
    return "; ".join([f"Run {run}", *facts] if run else [facts[0].capitalize(), *facts[1:]]) + "."


def explanations(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Title and explanation of every known column of these rows."""
    return [COLUMNS[name][:2] for name in metrics_of(rows) if name in COLUMNS]


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Metrics that tables show: the known ones first, then the others in the order of the rows."""
    present = dict.fromkeys(name for row in rows for name in row["metrics"] if name not in SPOKEN)
    return [name for name in COLUMNS if name in present] + [name for name in present if name not in COLUMNS]


def families(rows: Sequence[Row]) -> list[list[str]]:
    """Metrics of each table, at most `MOST`; names that differ in their last word alone stay together.

    Rows without any metric make one table.
    """
    names = metrics_of(rows)
    if len(names) <= MOST:
        return [names]
    tables: list[list[str]] = [[]]
    for _, group in itertools.groupby(names, _family):
        members = list(group)
        for start in range(0, len(members), MOST):
            part = members[start : start + MOST]
            if len(tables[-1]) + len(part) > MOST:
                tables.append([])
            tables[-1] += part
    return [table for table in tables if table]


def cells(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[str], list[list[str]], list[bool]]:
    """Header, body, and which columns hold numbers; rows without any of the metrics ``names`` are left out.

    Columns of the task, the information and the number of seeds are left out where they do not vary.
    """
    several, informed = len(by_task(rows)) > 1, any(row["information"] != "none" for row in rows)
    facts = [*(["task"] if several else []), "method", *(["information"] if informed else [])]
    shown = [row for row in rows if not names or any(name in row["metrics"] for name in names)]
    titles = [COLUMNS[name].title if name in COLUMNS else name.replace("_", " ") for name in names]
    body = [[*(row[t] for t in facts), *(value(row, m) for m in names), str(num_seeds(row))] for row in shown]
    return [*facts, *titles, "seeds"], body, [False] * len(facts) + [True] * (len(names) + 1)


def value(row: Row, metric: str) -> str:
    """One cell: mean ± standard deviation; empty where the row lacks the metric."""
    of = row["metrics"].get(metric)
    if of is None:
        return ""
    if of["mean"] is None:
        return "undefined"
    if metric in COLUMNS and COLUMNS[metric].percent:
        return percent(of)
    if not of["std"] or of["std"] < 1e-6 * abs(of["mean"]):  # the same in every seed, but for rounding
        return f"{of['mean']:.4g}"
    digits = max(0, 1 - math.floor(math.log10(of["std"])))  # two digits of the spread, the mean to match
    return f"{of['mean']:.{digits}f} ± {of['std']:.{digits}f}"


def percent(summary: Mapping[str, Any]) -> str:
    """Mean ± standard deviation of a share, in per cent."""
    return rounded(summary, scale=100.0)


def rounded(summary: Mapping[str, Any], *, scale: float = 1.0) -> str:
    """Mean ± standard deviation with one decimal."""
    spread = f" ± {scale * summary['std']:.1f}" if summary["std"] else ""
    return f"{scale * summary['mean']:.1f}{spread}"


def _fact(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        value = [f"{name}: {fact}" for name, fact in value.items() if fact]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value[:MANY])) + ", ..." * (len(value) > MANY)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str, kind: str) -> str:
    """A cell; one of long text is wide, as it would be high otherwise."""
    kind = ' class="text long"' if len(text) > LONG else kind
    return f"<td{kind}>{escape(text)}</td>"


def _family(metric: str) -> str:
    return "" if metric in COLUMNS else " ".join(re.split(r"[ _]+", metric)[:-1])


def _markdown(header: list[str], body: list[list[str]], numeric: list[bool]) -> str:
    rule = ["---:" if n else "---" for n in numeric]
    lines = ([cell.replace("|", "\\|") for cell in line] for line in (header, rule, *body))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html(rows: Sequence[Row], names: Sequence[str]) -> str:
    header, body, numeric = cells(rows, names)
    kinds = ["" if n else ' class="text"' for n in numeric]
    lines = ["".join(f"<th{k}>{escape(c).replace(', %', ',&nbsp;%')}</th>" for c, k in zip(header, kinds, strict=True))]
    bar = header.index(COLUMNS[WGA].title) if WGA in names else None
    for line in body:
        drawn = list(kinds)
        if bar is not None and re.match(r"[\d.]+", line[bar]):
            drawn[bar] = f' class="bar" style="--share: {line[bar].split()[0]}%"'
        lines.append("".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(line, drawn, strict=True)))
    return f'<div class="wide" tabindex="0"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
