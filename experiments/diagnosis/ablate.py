"""What matters in influence vectors: the influence channel, curvature, scale, validation rows, the diagnoser.

Claim:    beside channels 1 to 3 all forms of channel 0 are worth the same; alone, the published one is worth most.
          More validation rows help throughout. Trees do as well as a set transformer on the same rows, and better
          under a task network that neither has seen.
Command:  python -m experiments demix_ablate
Expected: macro-F1 on Adult, new draw, clean ratio 0.5: cosine and channels 1-3 0.589 ± 0.024, channels 1-3 alone
          0.583 ± 0.027, cosine alone 0.565 ± 0.027. The metagradient was added after the last full run.
Device:   two CPU cores, an hour, most of it the set transformer, then metagradients; any JAX device works.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import ekfac, gradients, influence, metagradient, projections, trak
from d3mjax.data import tables
from d3mjax.data.sets import shortcut_tables
from d3mjax.data.sets.shortcut_tables import TABLES, TableTask, divide, select_rules
from d3mjax.diagnosis import claims, row_features, set_network, vectors
from d3mjax.diagnosis.cells import MLP2, NETWORKS, Network, trainer_of
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.runtime import runs
from d3mjax.training import ensemble
from d3mjax.types import Split
from experiments.diagnosis import diagnose
from experiments.diagnosis.corpus import Stored, kind_of, plan
from experiments.study import Study
from experiments.tasks import smooth_adam, spread


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
    # Of them, those that trees are fitted on, by so many trees; networks predict as many.
    rows: int = 200
    rounds: int = 60
    sizes: tuple[int, ...] = (32, 64, 128, 256)  # validation rows, beside all
    # The metagradient is that of the first of `sizes`: its cost grows with validation rows.
    # Training of the networks: so many rows of the cells of all these task networks but the last, which they never
    # see, with the first of `sizes` validation rows, and how many epochs.
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

    def __post_init__(self) -> None:
        for name, known in (("networks", DIAGNOSERS), ("models", NETWORKS)):
            if unknown := set(getattr(self, name)) - known.keys():
                raise ValueError(f"{name}: found {sorted(unknown)}, expected names among {sorted(known)}")
        if len(self.models) < 2:
            raise ValueError(f"models: found {self.models}, expected two at least: the last is never seen")


def smoke(config: Config) -> Config:
    """Two draws of the planted table, a mean pool for one epoch."""
    config = replace(config, tasks=("planted",), rules=(0, 1), seeds=2, train=120, rounds=5, sizes=(16,), epochs=1)
    return replace(config, fitted=40, networks=("mean pool",), models=config.models[:2])


NEW, UNSEEN_RULE, UNSEEN_MODEL = "new draw", "unseen balanced rule", "unseen task network"
CHANNELS = ("cosine", "product", "curvature", "TRAK")
"""Channel 0 as published; not normalised; with the inverse of EK-FAC between; TRAK's of one checkpoint."""
METAGRADIENT = "metagradient, t = {}"
SMOOTH = MLP2._replace(tx=smooth_adam(1e-3, 0.0))  # differentiable where a gradient is 0
TRANSFORMER = set_network.SetTransformer()
DIAGNOSERS: dict[str, tuple[Any, Callable[[int], Callable]]] = {
    "set transformer": (TRANSFORMER, set_network.demix),
    "set transformer, as coded": (set_network.SetTransformer(as_coded=True), set_network.demix),
    "set transformer, no contrast": (TRANSFORMER, partial(set_network.demix, contrast_weight=0.0)),
    "set transformer, models not tied": (TRANSFORMER, partial(set_network.demix, invariance_weight=0.0)),
    "set transformer, V-REx": (TRANSFORMER, partial(set_network.demix, invariance=set_network.vrex)),
    "mean pool": (set_network.MeanPool(), set_network.demix),
}


def make_channels(task: TableTask, network: Network, columns: Any, *, forms: int = 0) -> Callable[..., tuple]:
    """``(key, splits) -> tensor [m n 4 t]``, channel 0 in all its forms ``[m k n t]``, and by metagradients.

    The latter for the first ``forms`` validation rows, with the diagnostics of `metagradient`; 0: the tensor alone.
    """
    model = network.make(columns, task.classes)
    trainer, smooth = (trainer_of(model, of, task.train) for of in (network, SMOOTH))

    def look(variables, key, train, validation):
        tensor = vectors.tensor(model, variables, train, validation)
        if not forms:
            return (tensor,)
        product = vectors.gram(model, variables, train, validation, normalise=False)
        options = influence.Options(target_output=gradients.negative_loss_output, inverse=ekfac.by_ekfac())
        checkpoint = jax.tree.map(lambda a: a[None], variables)
        curved, _ = influence.scores(key, model, checkpoint, train, validation, options=options)
        options = trak.Options(projections.sjlt(min(512, task.train // 4)), damping=0.01)
        traced = trak.scores(key, model, checkpoint, train, validation, options=options)
        others = [vectors.from_attribution(tau) for tau in (product.T, curved, traced.tau)]
        options = metagradient.Options(target_output=gradients.negative_loss_output)
        few = jax.tree.map(lambda a: a[:forms], validation)
        exact, info = metagradient.scores(key[None], model, smooth, train, few, SMOOTH.steps, options=options)
        stacked = jnp.stack([tensor[:, 0], *others]).astype(jnp.float16)
        return tensor, stacked, vectors.from_attribution(exact).astype(jnp.float16), info

    @jax.jit
    def channels(key, trains: Split, validations: Split):
        keys = ensemble.model_keys(key, jnp.arange(len(trains.y)))
        options = {"look": look, "each": (keys, trains, validations), **spread()}
        return ensemble.train_many(trainer, keys, trains, jnp.ones(task.train), network.steps, **options)[0]

    return lambda key, splits: jax.device_get(channels(key, *jax.tree.map(lambda *a: np.stack(a), *splits)))


def collect(task: TableTask, config: Config, seed: int, progress: Callable[[int], object]) -> runs.Unit:
    """Features of every variant at every cell of one draw."""
    parts = divide(task)
    columns = list(tables.slices(parts.train[0]).values())
    cells = [(k, clean) for k in select_rules(task, config.rules) for clean in config.cleans]
    planned = [plan(task, parts, task.rules[k], clean, 100 * seed + k) for k, clean in cells]
    key, splits = jax.random.key(seed), [p.splits for p in planned]
    few = config.sizes[0]
    tensors, forms, exact, info = make_channels(task, MLP2, columns, forms=few)(key, splits)
    metagradient.check(jax.tree.map(np.concatenate, info))
    each = [make_channels(task, NETWORKS[name], columns)(key, splits)[0] for name in config.models]
    first = np.stack(each, axis=1)[..., :few]  # [m models n 4 t]
    stored = []
    for p, tensor, channel, derived, of_models in zip(planned, tensors, forms, exact, first, strict=True):
        described = lambda v, p=p: np.asarray(row_features.order_statistics(v, p.train.labels, task.classes))
        of_cell = {
            name: described(np.concatenate([form[:, None], tensor[:, 1:]], 1))
            for name, form in zip(CHANNELS, channel, strict=True)
        }
        of_cell |= {f"t = {t}": described(tensor[:, :, :t]) for t in config.sizes}
        of_cell[METAGRADIENT.format(few)] = described(np.concatenate([derived[:, None], tensor[:, 1:, :few]], 1))
        of_cell |= {"vectors": of_models, "described": np.stack([described(v) for v in of_models])}
        stored.append(of_cell | {"flags": p.train.flags})
    progress(len(cells))
    facts = {"kinds": list(map(kind_of, planned)), "rules": [k for k, _ in cells], "cleans": [c for _, c in cells]}
    return facts, {name: np.stack([of_cell[name] for of_cell in stored]) for name in stored[0]}


def cells_of(task: TableTask, seed: int, unit: runs.Unit, variant: str) -> list[Stored]:
    """The cells of a draw, with the features of a variant."""
    facts, arrays = unit
    parts = zip(facts["rules"], facts["cleans"], facts["kinds"], arrays[variant], arrays["flags"], strict=True)
    return [Stored(task.name, seed, k, task.rules[k].balanced, *part) for k, *part in parts]


def selected(variant: str) -> dict[str, np.ndarray]:
    """The features of trees, by method, that a variant is tried with."""
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
    """The first ``rows`` of cells under the k-th task network, whose features are ``[models n ...]``."""
    return [c._replace(features=c.features[k][:rows], flags=c.flags[:rows]) for c in cells]


def by_network(name: str, config: Config, train: Sequence[Sequence[Stored]], tests: Sequence[Stored], seed: int):
    """Probabilities and claims by a network for the rows of every test cell; ``train``: cells of each task network."""
    network, objective = DIAGNOSERS[name]
    stacked = np.concatenate([c.features for cells in train for c in cells])
    flags = np.concatenate([c.flags for cells in train for c in cells])
    ids = np.repeat(np.arange(len(train), dtype=np.int32), [sum(len(c.flags) for c in cells) for cells in train])
    options = set_network.Options(epochs=config.epochs)
    fit = lambda key, v, f, m: set_network.fit(key, network, v, f, m, objective(len(train)), options=options)
    fitted = jax.jit(fit)(jax.random.key(seed), stacked, flags, ids)
    ensemble.check_losses(fitted.loss[None], np.array([seed]))
    variables, thresholds = fitted.diagnoser
    probabilities = [np.asarray(set_network.predict(network, variables, c.features)) for c in tests]
    return [(p, np.asarray(claims.flag(p, thresholds))) for p in probabilities]


def beside_networks(task: TableTask, config: Config, units: dict[int, runs.Unit], seed: int) -> Iterator[tuple]:
    """``(split, method, cells, [(probabilities, claims)])``: trees and networks fitted on the same rows."""
    described, raw = (
        {s: cells_of(task, s, unit, form) for s, unit in units.items()} for form in ("described", "vectors")
    )
    last = len(config.models) - 1
    splits = ((NEW, 0), (UNSEEN_MODEL, last))
    train = [c for s in described if s != seed for k in range(last) for c in of_model(described[s], k)]
    everything = np.ones(train[0].features.shape[1], bool)
    for split, k in splits:
        test = of_model(described[seed], k, config.rows)
        name = f"trees: t = {config.sizes[0]}, {config.fitted} rows of each cell of {last} task networks"
        yield split, name, test, diagnose.diagnosed(train, test, everything, config.fitted, config.rounds)
    learnt = [[c for s in raw if s != seed for c in of_model(raw[s], k, config.fitted)] for k in range(last)]
    tests = {split: of_model(raw[seed], k, config.rows) for split, k in splits}
    for name in config.networks:
        pairs = by_network(name, config, learnt, [c for each in tests.values() for c in each], seed)
        for i, (split, cells) in enumerate(tests.items()):
            yield split, f"{name}: the same", cells, pairs[i * len(cells) : (i + 1) * len(cells)]


def by_trees(task: TableTask, config: Config, units: dict[int, runs.Unit], seed: int) -> Iterator[tuple]:
    """``(split, method, cells, [(probabilities, claims)])`` of every variant of the features."""
    for variant in (*CHANNELS, METAGRADIENT.format(config.sizes[0]), *(f"t = {t}" for t in config.sizes)):
        cells = {s: cells_of(task, s, unit, variant) for s, unit in units.items()}
        train, test = [c for s in cells if s != seed for c in cells[s]], cells[seed]
        balanced = sorted({c.rule for c in test if c.balanced}) if variant in CHANNELS else []
        for method, columns in selected(variant).items():
            parts = [(NEW, train, test)]
            for rule in balanced if "alone" not in method and "loss" not in method else ():
                parts.append((UNSEEN_RULE, [c for c in train if c.rule != rule], [c for c in test if c.rule == rule]))
            for split, fitted, asked in parts:
                pairs = diagnose.diagnosed(fitted, asked, columns, config.rows, config.rounds)
                yield split, f"trees: {method}", asked, pairs


def prepare(task: TableTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)``: figures by split at one draw, fitted on the others, whose cells are units, too."""
    task = task._replace(train=config.train)
    seeds = range(config.first_seed, config.first_seed + config.seeds)

    def cells() -> dict[int, runs.Unit]:
        run_dir = runs.open_run(results, "demix_ablate", asdict(config))
        count = len(select_rules(task, config.rules)) * len(config.cleans)
        units = runs.run_units(run_dir, f"cells-{task.name}", seeds, partial(collect, task, config), models=count)
        return dict(zip(seeds, units, strict=True))

    def measure(seed, progress):
        splits: dict[str, list] = {}
        units = cells()
        for results_of in (by_trees, beside_networks):
            for split, method, tests, pairs in results_of(task, config, units, seed):
                each = [{method: {str(c.clean): diagnose.measured(c, *p)}} for c, p in zip(tests, pairs, strict=True)]
                splits.setdefault(split, []).extend(each)
        progress(1)
        return {split: diagnose.averaged(each) for split, each in splits.items()}, {}

    return measure


def describe(task: TableTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """Rows, and a figure for each split and clean ratio."""
    kind_of = lambda method: Kind("rival" if method.split(":")[0] in DIAGNOSERS else "ours")
    rows = diagnose.rows_of(task.name, [facts for facts, _ in units], kind_of)
    sections = {}
    for name in dict.fromkeys(row["task"] for row in rows):
        of = lambda row, kind: row["metrics"][f"{kind}_auprc"]["per_seed"]
        points = {r["method"]: (of(r, "label"), of(r, "feature")) for r in rows if r["task"] == name}
        text = "Fitted on other draws, networks on fewer rows than trees but for the tree beside them."
        figure = plots.tradeoff(points, xlabel="AUPRC of label errors", ylabel="AUPRC of feature errors")
        sections[name] = Section(text, {"Label errors and feature errors.": figure})
    return rows, sections


STUDY = Study(
    "demix_ablate",
    claim="Beside channels 1 to 3 all forms of the influence channel are worth the same; trees do as well as a set "
    "transformer.",
    config=Config(),
    tasks=TABLES,
    prepare=prepare,
    describe=describe,
    minutes=60,
    headline=("adult, new draw, clean ratio 0.5", "trees: cosine and channels 1-3", "macro_f1"),
    smoke=smoke,
    small=shortcut_tables.small,
)
