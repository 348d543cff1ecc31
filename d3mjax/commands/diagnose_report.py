"""Rows, figures, lists and advice of `experiments.diagnose`, from what it found and what its diagnoser is worth."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands.debias_report import write_csv
from d3mjax.commands.diagnose_data import MISSING, Files, Own
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import repair, trees
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Row, row
from d3mjax.reports.tables import percent
from d3mjax.runtime import store
from experiments import study

BEFORE, AFTER = "trained on the table as it is", "trained on the proposed repair"
LABEL, FEATURE, MINORITY = range(3)


class Diagnosis(NamedTuple):
    """What was found in the rows to train on, and the repair."""

    probabilities: np.ndarray  # Float[n 3], in the order of `KINDS`
    flags: np.ndarray  # Bool[n 3], suspects
    used: np.ndarray  # Bool[n 3], those of them that the repair acts on
    proposed: np.ndarray  # Int[n], the likeliest other class
    repaired: repair.Repaired
    risk: repair.Risk
    thresholds: np.ndarray  # Float[3]


def rows_of(
    task: str,
    own: Own,
    fitted: trees.Trees,
    found: Sequence[study.Unit],
    diagnosis: Diagnosis,
    checks: Sequence[study.Unit],
    y: np.ndarray,
) -> list[dict[str, Any]]:
    """Shares of suspects by each network alone; accuracy on the validation rows with labels ``y``, over seeds."""
    claims = [np.asarray(trees.claim(fitted, arrays["probabilities"])).mean(0) for _, arrays in found]
    shares = {f"share suspected: {kind}": [float(claim[i]) for claim in claims] for i, kind in enumerate(KINDS)}
    rows = [row(task, "diagnosis, each network alone", shares, role="ours", settings={"networks": len(found)})]
    for name, role in ((BEFORE, "plain"), (AFTER, "ours")):
        right = [arrays[name] for _, arrays in checks]
        worst = [min(r[y == c].mean() for c in np.unique(y)) for r in right]
        removed = float((diagnosis.repaired.weights == 0).mean()) if name == AFTER else 0.0
        measured = {"average_accuracy": [r.mean() for r in right], "worst_class_accuracy": worst}
        measured["removed"] = [removed] * len(right)
        rows.append(row(task, name, measured, role=role, settings={"rows": len(y)}))
    return rows


def write_suspects(directory: Path, own: Own, diagnosis: Diagnosis) -> None:
    """``suspects.csv``: a line for each suspected row and kind, the likeliest first."""
    rows, kinds = np.nonzero(diagnosis.flags)
    order = np.argsort(-diagnosis.probabilities[rows, kinds], kind="stable")
    lines = (
        [own.names[i], KINDS[k], f"{diagnosis.probabilities[i, k]:.3f}", _proposal(own, diagnosis, i, k)]
        for i, k in zip(rows[order], kinds[order], strict=True)
    )
    write_csv(directory / "suspects.csv", ("id", "kind", "probability", "proposal"), lines)


def _proposal(own: Own, diagnosis: Diagnosis, i: int, kind: int) -> str:
    repaired = diagnosis.repaired
    if kind == LABEL:
        if not diagnosis.used[i, LABEL]:
            return "keep: as likely a rare example with the right label; look at it"
        return f"relabel as {own.class_names[diagnosis.proposed[i]]}"
    if kind == MINORITY:
        return f"up-weight: {repaired.weights[i]:.3g}, others {np.median(repaired.weights):.3g}"
    if repaired.weights[i] == 0:
        return "drop: weight 0"
    changed = [
        f"{name}: {_entry(own.train, name, i)} -> {_entry(repaired.table, name, i)}"
        for name in own.train.columns
        if _changed(own.train.columns[name], repaired.table.columns[name])[i]
    ]
    return f"impute {'; '.join(changed)}" if changed else "keep: no single value stands out; look at it"


def write_repaired(directory: Path, own: Own, diagnosis: Diagnosis, files: Files) -> Path:
    """The user's columns with what the repair changed, and ``weight``; Parquet if the user's file is, else csv."""
    repaired, columns = diagnosis.repaired, dict(own.raw)
    for name, values in repaired.table.columns.items():
        changed = _changed(own.train.columns[name], values)
        if changed.any():
            levels = np.array([*repaired.table.levels.get(name, ()), MISSING])
            texts = np.where(levels == MISSING, "", levels)
            columns[name] = _replaced(
                own.raw[name], changed, values if name not in repaired.table.levels else texts[values]
            )
    raw, names = own.raw[files.label], np.array(own.class_names)
    labels = names if raw.dtype.kind == "U" else names.astype(np.int64).astype(raw.dtype)
    columns[files.label] = np.where(repaired.labels == own.y, raw, labels[repaired.labels])
    columns["weight" if "weight" not in columns else "d3mjax_weight"] = repaired.weights
    if not files.train.lower().endswith(".parquet"):
        lines = zip(*([_text(v) for v in a.tolist()] for a in columns.values()), strict=True)
        write_csv(directory / "repaired.csv", tuple(columns), lines)
        return directory / "repaired.csv"
    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    arrays = {name: pa.array(a, from_pandas=True) for name, a in columns.items()}  # NaN is null
    pyarrow.parquet.write_table(pa.table(arrays), buffer)
    store.write_bytes(directory / "repaired.parquet", buffer.getvalue())
    return directory / "repaired.parquet"


def section(task: str, own: Own, diagnosis: Diagnosis, manifest: Mapping[str, Any], advice: Sequence[str]) -> Section:
    """What the page shows."""
    text = [
        f"{len(own.y):,} rows of {len(own.train.columns)} columns, {len(own.class_names)} classes "
        f"({', '.join(own.class_names[:6])}{', ...' * (len(own.class_names) > 6)}); {len(own.validation_y):,} "
        "validation rows.",
        "How far to trust it:",
        *(f"- {sentence}" for sentence in advice),
    ]
    by_kind: dict[str, Any] = dict(zip(KINDS, diagnosis.probabilities.T, strict=True))
    said = {kind: told["reliability"] for kind, told in manifest["evaluation"].items()}
    figures = {
        "How likely it is that a row has each kind of error; suspects are to the right of the line.": (
            plots.probability_histograms(by_kind, dict(zip(KINDS, diagnosis.thresholds.tolist(), strict=True)))
        ),
        "How often what the diagnoser says of tables that it has not seen is true: on the dotted line always.": (
            plots.reliability(said)
        ),
    }
    return Section("\n".join(text), figures)


def advice(
    own: Own, diagnosis: Diagnosis, manifest: Mapping[str, Any], rows: Sequence[Row], *, separate: bool
) -> list[str]:
    """What somebody who has to decide should know, in plain words; every sentence follows from numbers."""
    found = [_kind(kind, diagnosis.flags[:, i], manifest["evaluation"][kind]) for i, kind in enumerate(KINDS)]
    shares = [100 * told["share"] for told in manifest["evaluation"].values()]
    before, after = (next(of for of in rows if of["method"] == name) for name in (BEFORE, AFTER))
    return [
        *own.said,
        *found,
        f"These figures are of {len(manifest['evaluation'][KINDS[0]]['tables'])} tables in which "
        f"{', '.join(f'{share:.0f} %' for share in shares)} of the rows had the three kinds of error. Where yours has "
        "fewer, more of the claims are wrong; errors that are not like the planted ones are missed.",
        _minority(diagnosis.risk, own.class_names),
        _caution(diagnosis),
        _worth_it(before, after, separate),
        "Look at the first lines of suspects.csv before you train on the repaired table.",
    ]


def _kind(kind: str, flags: np.ndarray, told: Mapping[str, Any]) -> str:
    """How many are suspected, how often that is true elsewhere, and what is as good without any of this."""
    text = f"{kind.capitalize()}: {flags.sum():,} of {len(flags):,} rows are suspected ({flags.mean():.1%}). "
    if told["precision"] is None or told["recall"] is None:
        return text + "Nothing is known of how often that is true: do not rely on it."
    each = [table["precision"] for table in told["tables"].values() if table.get("precision") is not None]
    rivals = {name: value.get("precision") or 0.0 for name, value in told["rivals"].items()}
    simple, every = rivals["trivial rules"], rivals["every row"]
    precision, recall = told["precision"], told["recall"]
    by_clean = ", ".join(f"{right:.0%} where {clean:.0%} of the rows were clean" for clean, right in told["by_clean"])
    text += (
        f"On tables that the diagnoser had not seen, {precision:.0%} of such claims were right ({min(each):.0%} to "
        f"{max(each):.0%} by table; {by_clean}), and {recall:.0%} of such rows were found. Claiming as many rows by "
        f"{told['trivial']} is right for {simple:.0%}, claiming every row for {every:.0%}. "
    )
    if precision < max(simple, every) + 0.03:
        return text + "That is no better than the trivial rule: take it as a hint where to look, nothing more."
    if precision < 0.5:
        return text + "Most claims are wrong: a list to look through, not to act on."
    return text + "Most claims are right, some are not: look before you act on single rows."


def _minority(risk: repair.Risk, class_names: Sequence[str]) -> str:
    reason = re.sub(r"\blabel (\d+)", lambda found: f"class {class_names[int(found[1])]}", risk.reason)
    if risk.likely:
        return (
            f"Warning: the repair is likely to lower the worst group ({reason}). Rare examples with right labels "
            "look like label errors: check the relabelled rows of that class, or leave them as they are."
        )
    return f"The repair is not likely to lower the worst group ({reason})."


def _caution(diagnosis: Diagnosis) -> str:
    kept = (diagnosis.flags & ~diagnosis.used)[:, LABEL].sum()
    turned, weights = diagnosis.used[:, LABEL].sum(), diagnosis.repaired.weights
    return (
        f"The repair gives {turned:,} rows another label, leaves {kept:,} suspected labels as they are, because the "
        f"rows are as likely a rare case, and drops {(weights == 0).sum():,} rows."
    )


def _worth_it(before: Row, after: Row, separate: bool) -> str:
    a, b = (row["metrics"]["average_accuracy"] for row in (before, after))
    change = 100 * (b["mean"] - a["mean"])
    spread = None if a["std"] is None else 100 * (a["std"] ** 2 + b["std"] ** 2) ** 0.5
    meaning = "one seed decides nothing: take --seeds 5"
    if spread is not None:
        meaning = "within the spread: no gain to count on"
        if abs(change) > spread:
            meaning = "more than the spread" + (": a gain" if change > 0 else ": a loss, leave the table as it is")
    which = "that were not looked at" if separate else "(those that were looked at)"
    return (
        f"Trained on the repaired table, accuracy on validation rows {which} goes from {percent(a)} % to "
        f"{percent(b)} %, {change:+.1f} points; {meaning}. The validation rows may have errors of the same kinds, on "
        "which a right answer counts as wrong: a list of rows that somebody has checked says more."
    )


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where entries differ; missing ones are alike."""
    return (before != after) & ~((before != before) & (after != after))


def _replaced(raw: np.ndarray, changed: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``raw`` with some entries replaced; numbers that were text beside missing ones stay text."""
    if raw.dtype.kind == "U":
        return np.where(changed, np.array([str(_text(v)) for v in values.tolist()]), raw)
    return np.where(changed, values.astype(np.float64), raw)


def _entry(table: Any, name: str, i: int) -> str:
    value = table.columns[name][i]
    return table.levels[name][value] if name in table.levels else f"{value:.4g}"


def _text(value: Any) -> Any:
    return "" if value != value else value
