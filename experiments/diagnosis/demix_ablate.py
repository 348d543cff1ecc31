"""What of the influence vectors matters: the channel itself, curvature, scale, validation rows, the diagnoser.

Claim:    beside channels 1 to 3 no form of channel 0 is worth more than another; alone, the published one is worth
          most. More validation rows help throughout. A set transformer is no better than trees on the same rows, and
          worse under a task network that it has not seen.
Command:  python -m experiments.demix_ablate            (`--config.smoke` takes a minute)
Expected: the tables in experiments/README.md, which this command wrote.
Device:   two CPU cores, about three quarters of an hour, most of it the set transformer; any JAX device works.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from d3mjax.attribution import ekfac, gradients, influence, projections, trak
from d3mjax.data import tables
from d3mjax.diagnosis import claim_metrics, network_losses, row_features, set_network, set_transformer, vectors
from d3mjax.reports import page, plots
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble
from experiments import study
from experiments.diagnosis import demix_corpus, demix_diagnose, demix_report
from experiments.diagnosis.demix_cells import MLP2, NETWORKS, Network, plan, trainer_of
from experiments.diagnosis.demix_corpus import Stored, kind_of
from experiments.diagnosis.demix_tables import TABLES, TableTask, divide


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("adult",)
    rules: tuple[int, ...] = (0, 2, -2, -1)
    cleans: tuple[float, ...] = (0.5, 0.8)
    seeds: int = 5
    first_seed: int = 0
    # Rows of each cell.
    train: int = 1500
    # Of them, those that trees are fitted on, by so many trees; networks are asked about as many.
    rows: int = 200
    rounds: int = 60
    sizes: tuple[int, ...] = (32, 64, 128, 256)  # validation rows, beside all
    # What networks learn from: so many rows of the cells of all these task networks but the last, which they never
    # see, the first of `sizes` validation rows, and how often.
    models: tuple[str, ...] = ("mlp 64-32", "mlp 256-128-64", "over-fitted mlp 128-128-128")
    fitted: int = 60
    epochs: int = 12
    networks: tuple[str, ...] = (
        "set transformer",
        "set transformer, no contrast",
        "set transformer, models not tied",
        "mean pool",
    )
    smoke: bool = False


NEW, UNSEEN_RULE, UNSEEN_MODEL = "new draw", "unseen balanced rule", "unseen task network"
CHANNELS = ("cosine", "product", "curvature", "TRAK")
"""Channel 0 as published; not normalised; with the inverse of EK-FAC between; TRAK's of one checkpoint."""
DIAGNOSERS: dict[str, tuple[Any, Callable[[int], Callable]]] = {
    "set transformer": (set_transformer.SetTransformer(), network_losses.demix),
    "set transformer, as coded": (set_transformer.SetTransformer(as_coded=True), network_losses.demix),
    "set transformer, no contrast": (
        set_transformer.SetTransformer(),
        partial(network_losses.demix, contrast_weight=0.0),
    ),
    "set transformer, models not tied": (
        set_transformer.SetTransformer(),
        partial(network_losses.demix, invariance_weight=0.0),
    ),
    "set transformer, V-REx": (
        set_transformer.SetTransformer(),
        partial(network_losses.demix, invariance=network_losses.vrex),
    ),
    "mean pool": (set_transformer.MeanPool(), network_losses.demix),
}


def make_channels(task: TableTask, network: Network, columns: Any, devices: Mesh, *, forms: bool) -> Callable:
    """``(key, splits) -> tensor [m n 4 t]`` and, if asked for, channel 0 in all its ``forms [m k n t]``: one training
    of every cell."""
    model = network.make(columns, task.num_classes)
    trainer = trainer_of(model, network, task.train)

    def one(key, train, validation):
        state = trainer.init(key, train.x[:1])
        state, _ = trainer.run(state, train, jnp.ones(task.train), network.steps)
        tensor = vectors.tensor(model, state.variables, train, validation)
        if not forms:
            return (tensor,)
        product = vectors.gram(model, state.variables, train, validation, normalise=False)
        options = influence.Options(target_output=gradients.negative_loss_output, inverse=ekfac.by_ekfac())
        curved, _ = influence.scores(model, state.variables, train, validation, options=options)
        checkpoint = jax.tree.map(lambda a: a[None], state.variables)
        options = trak.Options(projections.sjlt(min(512, task.train // 4)), damping=0.01)
        traced = trak.scores(key, model, checkpoint, train, validation, options=options)
        others = [vectors.from_attribution(tau) for tau in (product.T, curved, traced.tau)]
        return tensor, jnp.stack([tensor[:, 0], *others]).astype(jnp.float16)

    @jax.jit
    def compiled(key, numbers, trains, validations):
        return ensemble.map_models(one, width=models_at_once(), mesh=devices)(
            ensemble.model_keys(key, numbers), trains, validations
        )

    def channels(key, splits):
        stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
        return jax.device_get(compiled(key, np.arange(len(splits)), *stacked))

    return channels


def collect(task: TableTask, config: Config, seed: int, progress) -> study.Unit:
    """Features of every variant at every cell of one draw."""
    parts = divide(task)
    columns = list(tables.slices(parts.train[0]).values())
    cells = [(k, clean) for k in demix_corpus.chosen(task, config.rules) for clean in config.cleans]
    planned = [plan(task, parts, task.rules[k], clean, 100 * seed + k) for k, clean in cells]
    key, splits, devices = jax.random.key(seed), [p.splits for p in planned], hosts.local_mesh()
    tensors, forms = make_channels(task, MLP2, columns, devices, forms=True)(key, splits)
    each = [
        make_channels(task, NETWORKS[name], columns, devices, forms=False)(key, splits)[0] for name in config.models
    ]
    first = np.stack(each, axis=1)[..., : config.sizes[0]]  # [m models n 4 t]
    arrays: dict[str, list[np.ndarray]] = {}
    for p, tensor, channel, of_models in zip(planned, tensors, forms, first, strict=True):
        described = partial(row_features.order_statistics, y=p.train.labels, num_classes=task.num_classes)
        for name, form in zip(CHANNELS, channel, strict=True):
            arrays.setdefault(name, []).append(np.asarray(described(np.concatenate([form[:, None], tensor[:, 1:]], 1))))
        for t in config.sizes:
            arrays.setdefault(f"t = {t}", []).append(np.asarray(described(tensor[:, :, :t])))
        arrays.setdefault("vectors", []).append(of_models)
        arrays.setdefault("described", []).append(np.stack([described(v) for v in of_models]))
        arrays.setdefault("flags", []).append(p.train.flags)
    progress(len(cells))
    facts = {"kinds": [kind_of(p) for p in planned], "rules": [k for k, _ in cells], "cleans": [c for _, c in cells]}
    return facts, {name: np.stack(each) for name, each in arrays.items()}


def cells_of(task: TableTask, seed: int, unit: study.Unit, variant: str) -> list[Stored]:
    """The cells of a draw, with the features of a variant."""
    facts, arrays = unit
    parts = zip(facts["rules"], facts["cleans"], facts["kinds"], arrays[variant], arrays["flags"], strict=True)
    return [Stored(task.name, seed, k, task.rules[k].balanced, *part) for k, *part in parts]


def selected(variant: str) -> dict[str, np.ndarray]:
    """Which features the trees of a variant are given."""
    names = np.array(row_features.feature_names())
    channel = np.array([name.startswith("influence") for name in names])
    loss, ranked = names == "loss", np.isin(names, ["loss in the cell", "loss in the class"])
    everything = np.ones(len(names), bool)
    if variant != CHANNELS[0]:
        alone = {f"{variant} alone": channel} if variant in CHANNELS else {}
        return {f"{variant} and channels 1-3": everything, **alone}
    return {
        "cosine and channels 1-3": everything,
        "cosine alone": channel,
        "channels 1-3": ~channel,
        "cosine and channels 1-3, loss as it is": ~ranked,
        "cosine and channels 1-3, loss as normal scores": ~loss,
        "loss alone": loss,
        "normal scores of the loss alone": ranked,
    }


def of_model(cells: Sequence[Stored], k: int, rows: int | None = None) -> list[Stored]:
    """Cells under the k-th task network, whose features are ``[models n ...]``; the first ``rows`` of them."""
    return [c._replace(features=c.features[k][:rows], flags=c.flags[:rows]) for c in cells]


def network_tells(name: str, config: Config, train: Sequence[Sequence[Stored]], tests: Sequence[Stored], seed: int):
    """Probabilities and flags of a network, whose features are the vectors themselves, for the rows of every cell.

    ``train`` holds the cells of each task network.
    """
    network, objective = DIAGNOSERS[name]
    stacked = np.concatenate([c.features for cells in train for c in cells])
    flags = np.concatenate([c.flags for cells in train for c in cells])
    ids = np.repeat(np.arange(len(train), dtype=np.int32), [sum(len(c.flags) for c in cells) for cells in train])
    fit = partial(set_network.fit, network=network, objective=objective(len(train)), epochs=config.epochs)
    run = jax.jit(lambda key, v, f, m: fit(key, vectors=v, flags=f, model_ids=m))
    fitted = run(jax.random.key(seed), stacked, flags, ids)
    ensemble.check_losses(fitted.loss[None], np.array([seed]))
    d = fitted.diagnoser
    found = [np.asarray(set_network.predict(network, d, c.features)) for c in tests]
    return found, [np.asarray(claim_metrics.flag(p, d.thresholds)) for p in found]


def beside_networks(task: TableTask, config: Config, stored: dict[int, study.Unit], seed: int):
    """``(split, method, (probabilities, flags), cells)``: trees and networks fitted on the same rows."""
    described, raw = (
        {s: cells_of(task, s, unit, form) for s, unit in stored.items()} for form in ("described", "vectors")
    )
    last = len(config.models) - 1
    train = [c for s in described if s != seed for k in range(last) for c in of_model(described[s], k)]
    options = demix_diagnose.Config(cleans=config.cleans, fitted=config.fitted, rounds=config.rounds)
    for split, k in ((NEW, 0), (UNSEEN_MODEL, last)):
        asked, everything = of_model(described[seed], k, config.rows), np.ones(train[0].features.shape[1], bool)
        name = f"trees: t = {config.sizes[0]}, {config.fitted} rows of each cell of {last} task networks"
        yield split, name, demix_diagnose.told(train, asked, everything, options), asked
    learnt = [[c for s in raw if s != seed for c in of_model(raw[s], k, config.fitted)] for k in range(last)]
    asked = {split: of_model(raw[seed], k, config.rows) for split, k in ((NEW, 0), (UNSEEN_MODEL, last))}
    for name in config.networks:
        found, claimed = network_tells(name, config, learnt, [c for each in asked.values() for c in each], seed)
        for i, (split, cells) in enumerate(asked.items()):
            part = slice(i * len(cells), (i + 1) * len(cells))
            yield split, f"{name}: the same", (found[part], claimed[part]), cells


def measure_draw(task: TableTask, config: Config, stored: dict[int, study.Unit], seed: int, progress) -> study.Unit:
    """``split -> method -> clean ratio -> figures`` at one draw, fitted on the others."""
    options = demix_diagnose.Config(cleans=config.cleans, fitted=config.rows, rounds=config.rounds)
    found: dict[str, Any] = {}

    def judge(split, method, told, test):
        for c, values, claimed in zip(test, *told, strict=True):
            figures = demix_diagnose.measured(c, values, claimed)
            for key, value in figures.items():
                place = found.setdefault(split, {}).setdefault(method, {}).setdefault(str(c.clean), {})
                place.setdefault(key, []).append(value)

    def parted(variant, method):
        cells = {s: cells_of(task, s, unit, variant) for s, unit in stored.items()}
        train, test = [c for s in cells if s != seed for c in cells[s]], cells[seed]
        yield NEW, train, test
        if variant not in CHANNELS or "alone" in method or "loss" in method:
            return
        for rule in sorted({c.rule for c in test if c.balanced}):
            yield UNSEEN_RULE, [c for c in train if c.rule != rule], [c for c in test if c.rule == rule]

    for variant in (*CHANNELS, *(f"t = {t}" for t in config.sizes)):
        for method, columns in selected(variant).items():
            for split, train, test in parted(variant, method):
                judge(split, f"trees: {method}", demix_diagnose.told(train, test, columns, options), test)
    for split, method, told, test in beside_networks(task, config, stored, seed):
        judge(split, method, told, test)
    progress(1)
    return demix_report.averaged(found), {}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run or resume; returns the directory of results."""
    if config.smoke:
        config = replace(config, tasks=("planted",), rules=(0, 1), seeds=2, train=120, rounds=5, sizes=(16,), epochs=1)
        config = replace(config, fitted=40, networks=("mean pool",), models=config.models[:2])
    for name, known in (("tasks", TABLES), ("networks", DIAGNOSERS), ("models", NETWORKS)):
        if unknown := set(getattr(config, name)) - known.keys():
            raise ValueError(f"{name}: found {sorted(unknown)}, expected names among {sorted(known)}")
    if len(config.models) < 2:
        raise ValueError(f"models: found {config.models}, expected two at least: the last is never seen")
    begin = perf_counter()
    hosts.start()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with preemption.at_once():
        directory = runs.open_run(results, "demix_ablate", asdict(config), run)
        rows, sections = [], {}
        for name in config.tasks:
            task = demix_corpus.small(TABLES[name], smoke=config.smoke)._replace(train=config.train)
            count = len(demix_corpus.chosen(task, config.rules)) * len(config.cleans)
            made = study.run_units(directory, f"cells-{name}", seeds, partial(collect, task, config), models=count)
            stored = dict(zip(seeds, made, strict=True))
            found = study.run_units(directory, name, seeds, partial(measure_draw, task, config, stored), models=1)
            own = demix_report.rows_of(name, [facts for facts, _ in found], None)
            for part in dict.fromkeys(row["task"] for row in own):
                of = lambda row, kind: row["metrics"][f"{kind}_auprc"]["per_seed"]
                points = {r["method"]: (of(r, "label"), of(r, "feature")) for r in own if r["task"] == part}
                text = "Fitted on other draws, networks on fewer rows than trees but for the tree beside them."
                figure = plots.tradeoff(points, xlabel="AUPRC of label errors", ylabel="AUPRC of feature errors")
                sections[part] = page.Section(text, {"Label errors and feature errors.": figure})
            rows += own
        page.finish(directory, "demix_ablate", asdict(config), rows, sections, perf_counter() - begin)
    return directory


if __name__ == "__main__":
    tyro.cli(main)
