"""One of the processes of a multi-host test: ``python two_hosts.py DIRECTORY TASK...``, its place in the environment.

The same file runs on one process, with any number of devices; what a task leaves in DIRECTORY must not differ.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d3mjax.attribution import projections, trak
from d3mjax.data import splits
from d3mjax.debiasing import group_weighting, selection
from d3mjax.linalg import lasso
from d3mjax.networks import dense
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.runtime import bank, hosts, long_training, preemption, runs, sharded, store
from d3mjax.runtime.sweep import shared_sweep
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Split
from experiments import study

N, T, GROUPS = 45, 10, 2
KEY = jax.random.key
MODEL = dense.mlp((5,), 2)


def problem():
    """A small asymmetric problem: two groups, of which the second is rare and has its label from another feature."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N + T, 4)).astype(np.float32)
    group = (rng.random(N + T) < 0.3).astype(np.int32)
    y = (x[np.arange(N + T), group] > 0.2).astype(np.int32)
    every = Split(x, y, group, np.arange(N + T, dtype=np.int32))
    return splits.take(every, np.arange(N)), splits.take(every, np.arange(N, N + T))


TRAIN, TARGET = problem()


def trainer(**options):
    return make_trainer(
        MODEL, objectives.cross_entropy(), optax.sgd(0.2, 0.9), sampling.shuffled(), batch_size=8, **options
    )


def program(devices, traced=lambda: None):
    """``(keys [b], masks [b n]) -> (margins [b t], losses [b s])`` with models spread over ``devices``."""
    run = trainer()

    @jax.jit
    def many(keys, chosen):
        traced()

        def one(key, mask):
            state, info = run.run(run.init(key, TRAIN.x[:1]), TRAIN, mask.astype(jnp.float32), 20)
            logits, _ = MODEL.apply(state.variables, TARGET.x)
            return logits[:, 1] - logits[:, 0], info.loss

        return ensemble.map_models(one, width=1, mesh=devices)(keys, chosen)

    return many


def outputs_of(devices):
    """The same for ids in place of keys."""
    many = program(devices)
    return lambda ids, chosen: many(ensemble.model_keys(KEY(1), ids), chosen)


def subsets(ids):
    return masks.fixed_size(KEY(0), jnp.asarray(ids), N, N // 2)


def run_ensemble(directory):
    """Models over all devices of all hosts."""
    ids = np.arange(21)
    chosen = subsets(ids)
    outputs, losses = hosts.gather(outputs_of(hosts.global_mesh())(ids, chosen))
    return {"masks": np.asarray(chosen), "outputs": outputs, "losses": losses}


def run_bank(directory):
    """A bank that all hosts fill; DIE_AFTER blocks this process is killed in the middle of the next one."""
    run, made, die = outputs_of(hosts.local_mesh()), [], int(os.environ.get("DIE_AFTER", -1))

    def watched(ids, chosen):
        if len(made) == die:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(ids)
        return run(ids, chosen)

    facts = bank.manifest(KEY(0), subsets, {"train": TRAIN}, {"steps": 20}, num_targets=T)
    found = bank.fill(directory / "bank", facts, subsets, watched, np.arange(26), block=4)
    return {"masks": bank.masks(found), "outputs": bank.outputs(found), "ids": found.ids}


def run_sweep(directory):
    """Models that hosts share out among themselves, a part of a block too few for equal shares."""
    run, made = outputs_of(hosts.local_mesh()), []
    watched = lambda ids: (made.append(ids), run(ids, subsets(ids)))[1]
    outputs = shared_sweep(watched, np.arange(21), block=4)
    assert len(np.unique(made)) == len(np.array_split(np.arange(21), jax.process_count())[jax.process_index()])
    return {"outputs": outputs}


def run_attribution(directory):
    """Group scores over shared-out examples, kept examples, and datamodels over shared-out targets."""
    everywhere = hosts.global_mesh(data=jax.device_count())
    run = trainer()
    states = jax.vmap(lambda k: run.run(run.init(k, TRAIN.x[:1]), TRAIN, jnp.ones(N), 30)[0])(
        jax.random.split(KEY(2), 3)
    )
    variables = jax.tree.map(np.asarray, states.variables)
    options = trak.Options(projections.rademacher(12), damping=0.1, microbatch=2)
    found = sharded.group_scores(KEY(5), MODEL, variables, TRAIN, TARGET, GROUPS, mesh=everywhere, options=options)
    columns = hosts.gather(found.columns)
    scores = group_weighting.scores(jnp.asarray(columns), jnp.array([0.2, 0.8]))
    rng = np.random.default_rng(0)
    chosen = np.asarray(subsets(np.arange(90)))
    y = (chosen @ rng.normal(size=(N, 7)) * (rng.random(7) < 0.9) + rng.normal(size=(90, 7))).astype(np.float32)
    linear, info = sharded.fit_lasso(
        chosen, y, np.arange(9), mesh=hosts.global_mesh(), options=lasso.Options(tolerance=1e-6)
    )
    ridge = sharded.fit_ridge(chosen, y, np.array([0.01, 0.1]), mesh=hosts.global_mesh())
    linear, ridge, chosen = hosts.gather((linear, ridge, info.chosen))
    keep = np.asarray(selection.drop_negative(scores))
    found = {"columns": columns, "keep": keep, "weight": linear.weight, "bias": linear.bias, "chosen": chosen}
    return found | {"ridge": ridge.weight, "ridge bias": ridge.bias}


def run_large(directory):
    """One model on all devices: parameters shared out by a rule, and checkpoints on the way."""
    everywhere = hosts.global_mesh(data=jax.device_count())
    run = make_trainer(
        dense.mlp((16,), 2),
        objectives.cross_entropy(),
        optax.sgd(0.1, 0.9),
        sampling.shuffled(),
        batch_size=16,
        constrain=sharded.by_example(everywhere),
    )
    rule = lambda path, leaf: (
        jax.P(None, "data") if "Dense_0" in path and "kernel" in path and jnp.ndim(leaf) == 2 else jax.P()
    )
    state = sharded.spread(run.init(KEY(4), TRAIN.x[:1]), everywhere, rule)
    split, weights = hosts.place((TRAIN, np.ones(N, np.float32)), everywhere)
    ask = os.environ.get("TERM_AT")
    progress = lambda step: os.kill(os.getpid(), signal.SIGTERM) if str(step) == ask else None
    state, losses = long_training.train(
        directory / "large", {"steps": 40}, run, state, split, weights, 40, every=8, progress=progress
    )
    kernel = state.variables["params"]["Dense_0"]["kernel"]
    share = np.asarray(kernel.addressable_shards[0].data.shape[1])
    return {"kernel": hosts.gather(kernel), "losses": losses, "share": share}


@dataclass(frozen=True)
class Config:
    """Of an experiment that does nothing."""

    tasks: tuple[str, ...] = ("task",)
    seeds: int = 3
    first_seed: int = 5
    rate: float = 0.1


class Task(NamedTuple):
    """A task whose data can be other on one host."""

    offset: int = 0

    def read(self, seed):
        """The data of one seed."""
        return np.arange(4) + seed + self.offset


CONFIG, TASK = Config(), Task()


def run_experiment(results, name, *, config=CONFIG, task=TASK, **options):
    """Units that say which host made them."""
    measure = lambda seed, progress: ({"host": jax.process_index(), "seed": seed}, {})
    rows = lambda task, config, found: [
        row("task", "ours", {"seed": [facts["seed"] for facts, _ in found]}, role="ours")
    ]
    describe = lambda *at: (rows(*at), Section("", {}))
    arguments = ("nothing", config, {"task": task}, lambda task, config: measure, describe)
    return study.run_experiment(*arguments, models=1, results=results, run=name, **options)


def run_leave(directory):
    """One host is told to go while it waits for the other, which is told a little later, in Python."""
    threading.Timer(1 + jax.process_index(), lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with preemption.at_once(grace=2):
        if jax.process_index():
            time.sleep(60)
        hosts.wait("never")
    return {}


def run_unwritable(directory):
    """What both hosts are told where one cannot write, whatever they are about to do."""
    (directory / "file").touch()
    write, blocked = store.write_bytes, directory / "file" / "in it"

    def fail(path, content):
        raise OSError(f"no space for {path.name}")

    facts = bank.manifest(KEY(0), subsets, {"train": TRAIN}, {"steps": 20}, num_targets=T)
    run, never = trainer(), outputs_of(hosts.local_mesh())
    arguments = (run, run.init(KEY(4), TRAIN.x[:1]), TRAIN, jnp.ones(N), 40)
    said = {}
    for name, (host, work) in {
        "shared": (None, lambda: hosts.check_shared(blocked if hosts.leads() else directory)),
        "bank": (1, lambda: bank.fill(directory / "bank", facts, subsets, never, np.arange(4), block=4)),
        "checkpoint": (1, lambda: long_training.train(directory / "large", {}, *arguments, every=8)),
        "experiment": (1, lambda: hosts.on_every_host(lambda: runs.open_run(directory, "nothing", {}))),
    }.items():
        store.write_bytes = runs.write_bytes = fail if jax.process_index() == host else write
        try:
            work()
        except OSError as error:
            said[name] = str(error)
    store.write_bytes = runs.write_bytes = write
    print(json.dumps(said))
    return {}


def run_refusals(directory):
    """What hosts that do not belong together are told, and which units each of two that do is given."""
    said = {}
    for name, check in {
        "agree": lambda: hosts.agree({"config": {"lr": 0.1 + jax.process_index()}}),
        "shared": lambda: hosts.check_shared(directory / f"host-{jax.process_index()}"),
        "divide": lambda: hosts.global_mesh(data=3),
        "asked": lambda: hosts.global_mesh(devices=16),
        "data": lambda: run_experiment(directory / "results", "data", task=Task(jax.process_index())),
        "config": lambda: run_experiment(
            directory / "results", "config", config=Config(rate=0.1 + jax.process_index())
        ),
    }.items():
        try:
            check()
        except ValueError as error:
            said[name] = str(error)
    for together in (False, True):
        run = run_experiment(directory / "results", f"together-{together}", together=together)
        found = [runs.read_unit(run, f"task-{seed}") for seed in range(5, 8)]
        said[f"together-{together}"] = [unit[0]["host"] for unit in found if unit]
        document = store.read_json(run / "metrics.json")
        said["mean"] = document["rows"][0]["metrics"]["seed"]["mean"]
    print(json.dumps(said))
    return {}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    hosts.start(timeout=60, silence=10)
    for task in sys.argv[2:]:
        arrays = globals()[f"run_{task}"](directory)
        digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays.values())).hexdigest()
        hosts.agree({task: digest})  # every host holds the same
        if hosts.leads():
            store.write_arrays(directory / f"{task}.npz", arrays)
    hosts.wait("done")
