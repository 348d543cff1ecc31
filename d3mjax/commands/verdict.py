"""What to do about a training set: one action, by stated rules from measured differences, the first line of a report.

Rows are judged against plain training and each other by worst-group accuracy, with --regression by the error of the
worst group, where smaller is better (`measures`). A difference counts if it exceeds its
uncertainty: the root of the sum of squares of the joint spread over seeds (`reports.rows.verdict`; with a single seed
`SINGLE`) and of `ERRORS` standard errors by the reporting examples, which seeds share (`sampling_error`). Every row
offers an action, by its role, its control, its removals and its offsets:

    role control, controls "threshold"                           move the threshold                   cost 0
    role control, controls "shift"                               shift the predictions                cost 0
    role control, controls "class balance" or "class weights"    balance classes                      cost 1
    role control, controls "label balance" or "label weights"    balance labels                       cost 1
    role ours, removes examples                                  drop them                            cost 2
    role ours, removes examples and has offsets                  drop them and move the threshold     cost 3
    role ours, has offsets and removes nothing                   move the threshold                   cost 0
    role control, controls "targets alone"                       train on the targets                 cost 4

A row *wins* if it is above plain training and, where it removes scored examples, above all random removals, which must
remove at least half as many. A row is *affordable* if its average accuracy is at most ``max_loss`` below that of plain
training, or its error at most by that part larger. The first rule that holds decides:

    1. The smallest group has fewer than `FEW` targets to score on: collect more targets.
    2. No row wins, and the smallest group has fewer than `FEW` targets to select on: collect more targets.
    3. No row wins: leave it.
    4. No row that wins is affordable: leave it, and name what the best row costs.
    5. Of the affordable rows that win, those level with the best of them are equivalent: the action of the cheapest.
       Where a row that is not affordable is above it, the sentence names that row and its cost, too.

Of rows of equal cost, the one that selection chose comes first, then the one with the highest accuracy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands import measures
from d3mjax.commands.measures import SINGLE, gain, lift, loss, shown
from d3mjax.reports.rows import WGA, Row, difference, has, num_seeds
from d3mjax.reports.sentences import points
from d3mjax.types import AnyArray

DROP, THRESHOLD, BOTH = "drop them", "move the threshold", "drop them and move the threshold"
BALANCE, TARGETS, COLLECT, LEAVE = "balance classes", "train on the targets", "collect more targets", "leave it"
SHIFT, BALANCE_LABELS = "shift the predictions", "balance labels"
REPAIR, LOOK = "repair it", "look at the suspects"
COSTS = {THRESHOLD: 0, SHIFT: 0, BALANCE: 1, BALANCE_LABELS: 1, DROP: 2, BOTH: 3, TARGETS: 4}
"""Order of the actions that change something, the cheapest first. The last one gives up the training set."""
CONTROLS = {
    "threshold": THRESHOLD,
    "class balance": BALANCE,
    "class weights": BALANCE,
    "shift": SHIFT,
    "label balance": BALANCE_LABELS,
    "label weights": BALANCE_LABELS,
    "targets alone": TARGETS,
}
"""Actions of controls, by ``settings["controls"]``; other controls are comparisons alone."""
RANDOM = ("number", "class balance", "label balance")  # controls that remove as many examples at random
FEW, ENOUGH = 10, 25  # scored targets of a group: at 10 the choice is unstable, at 20 of 800 it was sound on two tasks
ERRORS = 2.0  # standard errors of the reporting examples: 95 of 100 differences by chance alone are smaller
MAX_LOSS = 0.05
ONE_SEED = f"A single seed: the spread is unknown, and differences up to {100 * SINGLE:g} points count as none."
AVERAGE, WORST_CLASS = "average_accuracy", "worst_class_accuracy"
RMS, WORST_QUARTER = "rms_error", "worst_quarter_rms_error"  # in the unit of the labels
ONE_SEED_OF_ERRORS = (
    f"A single seed: the spread is unknown, and differences up to {SINGLE:.0%} of the error count as none."
)

Influences = Mapping[str, AnyArray]
"""By method, `metrics.worst_group_influence`, or that of errors, of every reporting example, mean over seeds."""


Judge = Callable[[Row, Row], str]  # `outcome` with the sampling error of both rows


class Verdict(NamedTuple):
    """An action, the sentence that opens the report, and what decided it."""

    action: str
    sentence: str
    reasons: tuple[str, ...]
    method: str | None = None  # of the row whose action it is; None where nothing changes


def decide(
    rows: Sequence[Row],
    sizes: Mapping[str, Sequence[int]],
    group_names: Sequence[str],
    influences: Influences,
    *,
    max_loss: float = MAX_LOSS,
    kind: str = "group",
) -> Verdict:
    """The verdict on the rows of one task, by the rules of this module.

    Args:
      rows: of one task, one of role ``plain`` among them.
      sizes: examples of every group in the parts ``target`` (scored on), ``selection`` and ``test``.
      group_names: in the order of ``sizes``.
      influences: of every row with a number of the worst group.
      max_loss: what a gain of the worst group may cost, as `measures.loss` measures it.
      kind: what the groups are, in words.

    Raises:
      ValueError: no row of plain training with a number of the worst group.
    """
    metric = measures.measure_of(rows).worst
    rows = [row for row in rows if has(row, metric)]
    plain = next((row for row in rows if row["role"] == "plain"), None)
    if plain is None:
        raise ValueError(f"rows: found no plain training, expected one row of role 'plain' with {metric}")
    judge = lambda row, other: outcome(row, other, metric=metric, error=sampling_error(influences, row, other))
    above_plain = [row for row in rows if action_of(row) != LEAVE and judge(row, plain) == "above"]
    explained = [row for row in above_plain if explanations(row, rows, judge)]
    winning = [row for row in above_plain if row not in explained]
    shared = [] if any(row["role"] == "ours" and _removes(row) for row in winning) else explained
    reasons = _reasons(rows, shared, plain, judge)

    for part, decides in (("target", "to score on"), ("selection", "to select on")):
        g = min(range(len(group_names)), key=lambda i, part=part: sizes[part][i])
        size, of = sizes[part][g], f"{group_names[g]}, the smallest {kind}"
        if size < FEW and (part == "target" or not winning):
            more = max(2 * (ENOUGH - sizes["target"][g]), 4 * (FEW - sizes["selection"][g]))  # a half, a quarter
            sentence = f"Collect about {more} more targets of {of}: it has {size} targets {decides}."
            return Verdict(COLLECT, sentence, (f"Fewer than {FEW} are too few to choose by.", *reasons))
        if part == "target" and size < ENOUGH:
            reasons = (*reasons, f"{of}, has {size} targets {decides}: {ENOUGH} would be safer.")
    if not winning:
        improves = "lowers the error of the" if metric == measures.WORST_ERROR else "lifts the"
        sentence = f"Leave it: nothing tried {improves} worst {kind} ({shown(plain)}) by more than its uncertainty."
        return Verdict(LEAVE, sentence, reasons)
    return _weigh(winning, plain, max_loss, kind, reasons, judge)


def _weigh(
    winning: Sequence[Row], plain: Row, max_loss: float, kind: str, reasons: tuple[str, ...], judge: Judge
) -> Verdict:
    """The cheapest of what wins for an acceptable loss over all examples."""
    measure = measures.measure_of([plain])
    affordable = [row for row in winning if loss(row, plain) <= max_loss + 1e-9]
    top = _best(winning)
    limit = f"The limit is {measures.limit(max_loss, measure)} (--max-loss)."
    if not affordable:
        cost = f"costs {measures.limit(loss(top, plain), measure)}"
        return Verdict(LEAVE, f"Leave it: {lift(top, plain, kind)}, but {cost}.", (limit, *reasons))
    within = _best(affordable)
    chosen = min((row for row in affordable if judge(within, row) != "above"), key=_preference)
    action, sign, unit = action_of(chosen), *((1, "%") if measure.errors else (-1, "points"))
    change, of_all = f"{100 * sign * loss(chosen, plain):+.1f} {unit}", "error" if measure.errors else "accuracy"
    if chosen is not within:
        reasons = (f"{within['method']} ({shown(within)}) is better, but by less than the uncertainty.", *reasons)
    if top in affordable or judge(top, chosen) != "above":
        sentence = f"{action.capitalize()}: {lift(chosen, plain, kind)}; average {of_all} changes by {change}."
        return Verdict(action, sentence, reasons, chosen["method"])
    reached = f"worst {kind} {shown(plain)} to {shown(chosen)}, average {change}"
    beyond = measures.limit(loss(top, plain), measure).removesuffix(" accuracy")
    cost = f"{top['method']} has {shown(top)} but costs {beyond}"
    return Verdict(action, f"{action.capitalize()}: {reached}; {cost}.", (limit, *reasons), chosen["method"])


def decide_repair(
    before: Row, after: Row, *, suspects: int, reliable: Sequence[str], risk: str | None, errors: bool = False
) -> Verdict:
    """The verdict of d3mjax-diagnose. The first rule that holds decides:

        1. No row is suspected: leave it.
        2. The repair raises average accuracy, does not lower the worst class, and has no risk: repair it.
        3. Claims of some kind are reliable: look at the suspects.
        4. Leave it.

    With ``errors``, of a regression, the second rule is: the repair lowers the error, does not raise that of the worst
    quarter of the labels, and has no risk.

    Args:
      before: row of models trained on the table as it is, with `AVERAGE` and `WORST_CLASS`, or `RMS` and
        `WORST_QUARTER`.
      after: the same of the repaired table.
      suspects: number of suspected rows.
      reliable: kinds of error with suspects whose claims are right more often than a trivial rule.
      risk: why the repair may lower the worst group; None where that is not likely.
      errors: whether smaller is better.
    """
    if suspects == 0:
        return Verdict(LEAVE, "Leave it: no row is suspected.", ())
    if errors:
        judged, worst = (outcome(after, before, metric=name) for name in (RMS, WORST_QUARTER))
        mean = lambda row: row["metrics"][RMS]["mean"]
        change = f"the repair changes the root mean square error from {mean(before):.4g} to {mean(after):.4g}"
        harm = "The repair raises the error of the worst quarter of the labels by more than the spread."
    else:
        judged, worst = (outcome(after, before, metric=name) for name in (AVERAGE, WORST_CLASS))
        change = f"the repair changes average accuracy by {points(after, before, metric=AVERAGE)}"
        harm = "The repair lowers the worst class by more than the spread."
    one_seed = difference(after, before, metric=RMS if errors else AVERAGE)[1] is None
    reasons = (ONE_SEED_OF_ERRORS if errors else ONE_SEED,) * one_seed
    if worst == "below":
        reasons = (harm, *reasons)
    if risk is not None:
        reasons = (f"Risk for the worst group: {risk}.", *reasons)
    if judged == "above" and worst != "below" and risk is None:
        return Verdict(REPAIR, f"Repair it: {change}, more than the spread.", reasons)
    if reliable:
        return Verdict(LOOK, f"Look at the suspects ({', '.join(reliable)}): {change}.", reasons)
    return Verdict(LEAVE, f"Leave it: {change}, and a trivial rule makes claims as good.", reasons)


def action_of(row: Row) -> str:
    """The action that a row offers; `LEAVE` where it offers none."""
    if row["role"] == "control":
        return CONTROLS.get(row["settings"].get("controls", ""), LEAVE)
    if row["role"] != "ours":
        return LEAVE
    offsets = row["settings"].get("offsets", 0) >= 0.5
    return (BOTH if offsets else DROP) if _removes(row) else THRESHOLD if offsets else LEAVE


def outcome(row: Row, other: Row, *, metric: str = WGA, error: float = 0.0) -> str:
    """``above``, ``level`` or ``below``: the gain of ``row`` against the joint spread, or `SINGLE`, and errors.

    ``above`` is better: larger accuracies, smaller errors. ``error``: standard error of the difference by the reporting
    examples, in the unit of the metric.
    """
    better, spread = gain(row, other, metric=metric)
    limit = np.hypot(spread, ERRORS * error)
    return "level" if abs(better) <= limit else "above" if better > 0 else "below"


def sampling_error(influences: Influences, row: Row, other: Row) -> float:
    """Standard error of the difference of two numbers of the worst group, by the reporting examples they share.

    It is paired: an example that both rows get right, or wrong, equally often adds nothing.
    """
    return float(np.linalg.norm(influences[row["method"]] - influences[other["method"]]))


def explanations(row: Row, rows: Iterable[Row], judge: Judge) -> list[Row]:
    """Random removals that do as well as a row of ours that removes, or that remove less than half as much.

    None where the choice of examples matters.
    """
    if row["role"] != "ours" or not _removes(row):
        return []
    random = (other for other in rows if other["settings"].get("controls") in RANDOM)
    least = _removed(row) / 2
    return [other for other in random if _removed(other) < least or judge(row, other) != "above"]


def _reasons(rows: Sequence[Row], explained: Sequence[Row], plain: Row, judge: Judge) -> tuple[str, ...]:
    """Facts that hold whatever the verdict: few seeds, and gains that random removals reach as well."""
    seeds = num_seeds(plain)
    reasons = [ONE_SEED] * (seeds == 1) + ["Two seeds: the spread is poorly known, --seeds 5 is safer."] * (seeds == 2)
    for row in explained[:1]:
        others = " and ".join(other["method"] for other in explanations(row, rows, judge))
        text = f"{row['method']} is not above {others}, or these remove less than half as much"
        reasons.append(f"{text}: the choice of examples is not shown to matter.")
    return tuple(reasons)


def _removed(row: Row) -> float:
    """Share of the training examples that are removed, mean over seeds."""
    return float(np.mean(row["metrics"].get("removed", {}).get("per_seed", 0.0)))


def _removes(row: Row) -> bool:
    """Whether examples are removed in at least half of the seeds."""
    removed = row["metrics"].get("removed", {}).get("per_seed", [0.0])
    return sum(bool(share) for share in removed) >= len(removed) / 2


def _best(rows: Sequence[Row]) -> Row:
    measure = measures.measure_of(rows)
    return max(rows, key=lambda row: _worst(row, measure))


def _preference(row: Row) -> tuple[Any, ...]:
    return COSTS[action_of(row)], not row["settings"].get("selected", False), -_worst(row, measures.measure_of([row]))


def _worst(row: Row, measure: measures.Measure) -> float:
    """The number of the worst group, larger being better."""
    mean = row["metrics"][measure.worst]["mean"]
    return -mean if measure.errors else mean
