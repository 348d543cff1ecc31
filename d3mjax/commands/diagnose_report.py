"""Rows, figures, lists and advice of `d3mjax-diagnose`, from the diagnosis and the evaluation of its diagnoser."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands import diagnose_repaired, verdict
from d3mjax.commands.command import write_csv
from d3mjax.commands.diagnose_data import UserTable
from d3mjax.data import cells, columns
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import repair
from d3mjax.diagnosis.diagnose import Diagnosis
from d3mjax.diagnosis.repair import LABEL, MINORITY
from d3mjax.reports import plots
from d3mjax.reports.page import LONGEST, Section, tradeoff
from d3mjax.reports.rows import Row, row
from d3mjax.runtime import runs
from d3mjax.types import is_regression

MARGIN = 0.03  # precision above that of the trivial rules
MOST = 5  # findings after the verdict
SHOWN = 24  # suspects whose text is shown
BEFORE, AFTER = "trained on the table as it is", "trained on the proposed repair"


class Decision(NamedTuple):
    """A diagnosis of the rows to train on, and the repair."""

    diagnosis: Diagnosis
    used: np.ndarray  # Bool[n e], the claims that the repair acts on
    repaired: repair.Repaired
    risk: repair.Risk
    thresholds: np.ndarray  # Float[e]
    weighed: bool = False  # whether the repair is weights alone


def rows_of(task: str, decision: Decision, checks: Sequence[runs.Unit], y: np.ndarray) -> list[dict[str, Any]]:
    """Shares of suspects by each network alone; accuracy on the validation rows with labels ``y``, over seeds."""
    claimed = decision.diagnosis.info.claimed
    shares = {f"share suspected: {kind}": claimed[:, i].tolist() for i, kind in enumerate(KINDS)}
    settings = {"networks": len(claimed)}
    rows = [row(task, "diagnosis, each network alone", shares, role="ours", settings=settings)]
    for name, role in ((BEFORE, "plain"), (AFTER, "ours")):
        right = [arrays[name] for _, arrays in checks]
        removed = float((decision.repaired.weights == 0).mean()) if name == AFTER else 0.0
        measured = errors_of(right, y) if is_regression(y) else accuracies_of(right, y)
        measured["removed"] = [removed] * len(right)
        rows.append(row(task, name, measured, role=role, settings={"rows": len(y)}))
    return rows


def accuracies_of(right: Sequence[np.ndarray], y: np.ndarray) -> dict[str, list[float]]:
    """Accuracy of all rows, and of the worst class, of every seed."""
    worst = [min(r[y == c].mean() for c in np.unique(y)) for r in right]
    return {verdict.AVERAGE: [r.mean() for r in right], verdict.WORST_CLASS: worst}


def errors_of(residuals: Sequence[np.ndarray], y: np.ndarray) -> dict[str, list[float]]:
    """Root mean square error of all rows, and of the worst quarter of labels, and mean absolute error, by seed."""
    quarter = np.searchsorted(np.quantile(y, [0.25, 0.5, 0.75]), y)
    rms = lambda r: float(np.sqrt((r**2).mean()))
    worst = [max(rms(r[quarter == q]) for q in np.unique(quarter)) for r in residuals]
    mean = [float(np.abs(r).mean()) for r in residuals]
    return {verdict.RMS: list(map(rms, residuals)), verdict.WORST_QUARTER: worst, "mean_absolute_error": mean}


def write_suspects(directory: Path, data: UserTable, decision: Decision) -> None:
    """``suspects.csv``: a line for each suspected row and kind, the likeliest first."""
    probabilities = decision.diagnosis.probabilities
    rows, kinds = np.nonzero(decision.diagnosis.claims)
    order = np.argsort(-probabilities[rows, kinds], kind="stable")
    lines = (
        [data.names[i], KINDS[k], f"{probabilities[i, k]:.3f}", _proposal(data, decision, i, k)]
        for i, k in zip(rows[order].tolist(), kinds[order].tolist(), strict=True)
    )
    write_csv(directory / "suspects.csv", ("id", "kind", "probability", "proposal"), lines)


def _proposal(data: UserTable, decision: Decision, i: int, kind: int) -> str:
    repaired = decision.repaired
    if decision.weighed:
        weight = f"weight {repaired.weights[i]:.2f}"
        proposed = label_of(data, decision.diagnosis.info.proposed[i])
        return {LABEL: f"{weight}; other rows predict {proposed}", MINORITY: f"{weight}; rare"}.get(kind, weight)
    if kind == LABEL:
        if not decision.used[i, LABEL]:
            return "keep: as likely a rare example with the right label; look at it"
        proposed = label_of(data, decision.diagnosis.info.proposed[i])
        return f"drop: weight 0; other rows predict {proposed}" if is_regression(data.y) else f"relabel as {proposed}"
    if kind == MINORITY:
        return f"up-weight: {repaired.weights[i]:.3g}, others {np.median(repaired.weights):.3g}"
    if repaired.weights[i] == 0:
        return "drop: weight 0"
    changed = diagnose_repaired.changes(data, repaired.table, i)
    return f"impute {'; '.join(changed)}" if changed else "keep: no single value stands out; look at it"


def section(
    data: UserTable, decision: Decision, manifest: Mapping[str, Any], rows: Sequence[Row], findings: Sequence[str]
) -> Section:
    """Findings, details and figures of the page."""
    classes = (
        f"{len(data.class_names)} classes ({', '.join(data.class_names[:6])}{', ...' * (len(data.class_names) > 6)})"
    )
    if is_regression(data.y):
        classes = f"labels from {data.y.min():g} to {data.y.max():g}, errors in their unit"
    text = [
        f"{len(data.y):,} rows of {len(data.train.columns)} columns, {classes}; {len(data.validation_y):,} "
        "validation rows.",
        *details(data, decision, manifest),
    ]
    by_kind: dict[str, Any] = dict(zip(KINDS, decision.diagnosis.probabilities.T, strict=True))
    reliability = {kind: figures["reliability"] for kind, figures in manifest["evaluation"].items()}
    figures = {} if is_regression(data.y) else tradeoff(rows, part="class")
    figures |= {
        "Probability of each kind of error, over rows; suspects are to the right of the line.": (
            plots.probability_histograms(by_kind, dict(zip(KINDS, decision.thresholds.tolist(), strict=True)))
        ),
        "Reliability of the diagnoser on tables that it has not seen; perfect on the dotted line.": (
            plots.reliability(reliability)
        ),
    }
    return Section("\n".join(text), figures, findings, columns.card(data.columns), suspected_texts(data, decision))


def label_of(data: UserTable, y: Any) -> str:
    """A label as the user knows it: the name of a class, or a number as written in the repaired table."""
    return str(diagnose_repaired.spelled_number(data, y)) if is_regression(data.y) else data.class_names[y]


def suspected_texts(data: UserTable, decision: Decision) -> dict[str, list[dict[str, Any]]]:
    """Free text of the rows whose labels are likeliest wrong, as a table by caption; none without text or suspects."""
    free = [column.name for column in data.columns if column.kind == columns.TEXT]
    probabilities = decision.diagnosis.probabilities[:, LABEL]
    order = np.argsort(-probabilities, kind="stable").tolist()
    rows = [i for i in order if decision.diagnosis.claims[i, LABEL]][:SHOWN]
    if not free or not rows:
        return {}
    lines = [
        {
            "id": str(data.names[i]),
            "text": cells.short(" | ".join(map(str, data.raw[free].iloc[i])), length=LONGEST),
            "label": label_of(data, data.y[i]),
            "proposal": _proposal(data, decision, i, LABEL),
            "probability": f"{probabilities[i]:.2f}",
        }
        for i in rows
    ]
    return {"The texts whose labels are likeliest wrong.": lines}


def findings(
    data: UserTable, decision: Decision, manifest: Mapping[str, Any], rows: Sequence[Row], *, separate: bool
) -> list[str]:
    """The verdict, and at most `MOST` sentences that follow from numbers, the most important first.

    ``separate``: whether the validation rows that report had no part in the diagnosis.
    """
    evaluation, claimed = manifest["evaluation"], decision.diagnosis.claims
    before, after = (next(of for of in rows if of["method"] == name) for name in (BEFORE, AFTER))
    suspected = [kind for i, kind in enumerate(KINDS) if claimed[:, i].any()]
    result = verdict.decide_repair(
        before,
        after,
        suspects=int(claimed.any(1).sum()),
        reliable=[kind for kind in suspected if reliable(evaluation[kind])],
        risk=_risk(decision.risk, data.class_names) if decision.risk.likely else None,
        errors=is_regression(data.y),
    )
    some = [
        *result.reasons,
        *(_claims(kind, claimed[:, i], evaluation[kind]) for i, kind in enumerate(KINDS) if kind in suspected),
        "The reporting validation rows also described the training rows: a check on other rows is stronger."
        if not separate
        else "Validation rows may have the same errors: checked rows are better evidence.",
    ]
    return [result.sentence, *some[:MOST]]


def reliable(figures: Mapping[str, Any]) -> bool:
    """Whether claims of a kind were right more often than those of the trivial rules, on tables not seen before."""
    if figures["precision"] is None or figures["recall"] is None:
        return False
    simple, every = (figures["rivals"][name].get("precision") or 0.0 for name in ("trivial rules", "every row"))
    return figures["precision"] >= max(simple, every) + MARGIN


def details(data: UserTable, decision: Decision, manifest: Mapping[str, Any]) -> list[str]:
    """Paragraphs on the data, the evaluation of the diagnoser by kind, and the repair."""
    evaluation, claimed = manifest["evaluation"], decision.diagnosis.claims
    shares = [100 * figures["share"] for figures in evaluation.values()]
    likely = "likely" if decision.risk.likely else "not likely"
    return [
        *data.notes,
        *(_kind(kind, claimed[:, i], evaluation[kind]) for i, kind in enumerate(KINDS)),
        f"These figures are of {len(evaluation[KINDS[0]]['tables'])} tables in which "
        f"{', '.join(f'{share:.0f} %' for share in shares)} of the rows had the three kinds of error. Where yours has "
        "fewer, more of the claims are wrong; errors that are not like the planted ones are missed.",
        f"The repair is {likely} to lower the worst group ({_risk(decision.risk, data.class_names)}). Rare examples "
        "with right labels look like label errors.",
        _caution(decision),
    ]


def _claims(kind: str, claimed: np.ndarray, figures: Mapping[str, Any]) -> str:
    """Number of suspects, and how often such claims are right on other tables."""
    text = f"{kind.capitalize()}: {claimed.sum():,} of {len(claimed):,} rows are suspected"
    if figures["precision"] is None or figures["recall"] is None:
        return f"{text}; it is not known how often such claims are right."
    simple = figures["rivals"]["trivial rules"].get("precision") or 0.0
    return (
        f"{text}; on other tables {figures['precision']:.0%} of such claims were right, {simple:.0%} by a trivial rule."
    )


def _kind(kind: str, claimed: np.ndarray, figures: Mapping[str, Any]) -> str:
    """Number of suspects, precision of such claims on other tables, and the precision of trivial rules."""
    text = f"{kind.capitalize()}: {claimed.sum():,} of {len(claimed):,} rows are suspected ({claimed.mean():.1%}). "
    if figures["precision"] is None or figures["recall"] is None:
        return text + "It is not known how often such claims are right: do not rely on them."
    each = [table["precision"] for table in figures["tables"].values() if table.get("precision") is not None]
    rivals = {name: value.get("precision") or 0.0 for name, value in figures["rivals"].items()}
    simple, every = rivals["trivial rules"], rivals["every row"]
    precision, recall = figures["precision"], figures["recall"]
    by_clean = ", ".join(
        f"{right:.0%} where {clean:.0%} of the rows were clean" for clean, right in figures["by_clean"]
    )
    text += (
        f"On tables that the diagnoser had not seen, {precision:.0%} of such claims were right ({min(each):.0%} to "
        f"{max(each):.0%} by table; {by_clean}), and {recall:.0%} of such rows were found. Claiming as many rows by "
        f"{figures['trivial']} is right for {simple:.0%}, claiming every row for {every:.0%}. "
    )
    if not reliable(figures):
        return text + "The trivial rule does as well: use these claims only to decide which rows to inspect."
    if precision < 0.5:
        return text + "Most claims are wrong: a list to look through, not to act on."
    return text + "Most claims are right, some are not: look before you act on single rows."


def _risk(risk: repair.Risk, class_names: Sequence[str]) -> str:
    """The reason in the user's names."""
    return re.sub(r"\blabel (\d+)", lambda match: f"class {class_names[int(match[1])]}", risk.reason)


def _caution(decision: Decision) -> str:
    weights = decision.repaired.weights
    if decision.weighed:
        return (
            "The repair changes no label and no column: rows weigh by the probability that both are right. "
            f"{(weights < 0.5).sum():,} of {len(weights):,} rows weigh less than a half, all of them as much as "
            f"{weights.sum():,.0f} sound rows. For changes in their place, use --repair change."
        )
    kept = (decision.diagnosis.claims & ~decision.used)[:, LABEL].sum()
    changed = decision.used[:, LABEL].sum()
    return (
        f"The repair gives {changed:,} rows another label, leaves {kept:,} suspected labels as they are, because the "
        f"rows are as likely a rare case, and drops {(weights == 0).sum():,} rows."
    )
