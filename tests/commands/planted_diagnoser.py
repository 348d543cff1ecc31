"""Small tables with planted errors, and a diagnoser fitted on planted features, for the tests of `d3mjax-diagnose`."""

import numpy as np
from planted_files import write_csv

from d3mjax.commands import diagnose
from d3mjax.commands.diagnose_data import Files
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import taught, trees
from d3mjax.diagnosis.cells import FEATURES, MLP2
from experiments.diagnosis import pretrain
from experiments.diagnosis.corpus import SIGNALS

NETWORK = MLP2._replace(steps=80)
SIGNS = ("left out in the cell", "far", "norm in the cell")
CUTS = (1.0, 6.0, 1.5)


def planted_features(seed, n):
    """Features of which one shows each kind of error, and the flags."""
    features = np.random.default_rng(seed).normal(size=(n, len(FEATURES))).astype(np.float32)
    at = [FEATURES.index(name) for name in SIGNS]
    features[:, at[1]] = np.abs(features[:, at[1]]) * 5
    return features, features[:, at] > np.array(CUTS)[None]


def planted_diagnoser():
    """Trees and the manifest that goes with them; one flag in eight is wrong."""
    features, flags = planted_features(0, 900)
    table = np.repeat(["one", "two", "three"], 300)
    flags ^= np.random.default_rng(1).random(flags.shape) < 0.05
    options = trees.Options(folds=3, rounds=8, leaves=4)
    odds = trees.out_of_fold(features, flags, table, options=options)
    probabilities, claimed = pretrain.out_of_table(odds, flags, table)
    signals = np.random.default_rng(2).random((900, len(SIGNALS))).astype(np.float32)
    simple = signals[:, [SIGNALS.index(name) for name in pretrain.SORT.trivial]]
    rows = pretrain.rows_of(probabilities, claimed, flags, simple, table, np.zeros(900, int))
    rules = tuple(pretrain.SORT.trivial.values())
    manifest = {
        "channels": list(FEATURES),
        "kinds": list(KINDS),
        "sizes": {"trees": 8},
        "cells": ["made"],
        "evaluation": pretrain.evaluation(rows, probabilities, claimed, flags, np.full(900, 0.8), rules),
    }
    return trees.fit(features, flags, table, options=options, odds=odds), manifest


def planted(seed, n, wrong, broken):
    """Columns of n rows of which the first ``wrong`` have another label and the next ``broken`` a number far off."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    columns = {"a": np.round(4.0 * y + rng.normal(size=n), 3), "b": np.round(rng.normal(size=n), 3)}
    columns["b"][wrong : wrong + broken] = 40.0
    columns["job"] = np.where(y == 1, rng.choice(["cook", "clerk"], n), rng.choice(["clerk", "smith"], n))
    columns["age"] = rng.integers(20, 60, n)
    columns = {name: a.astype(str) for name, a in columns.items()} | {"same": np.full(n, "1"), "none": np.full(n, "")}
    columns["age"][-4:] = ""
    columns["job"][-9:-7] = "NA"
    columns["income"] = np.array(["low", "high"])[y ^ (np.arange(n) < wrong)]
    columns["row"] = np.array([f"r{seed}-{i}" for i in range(n)])
    return columns


def make_files(path):
    write_csv(path / "train.csv", planted(0, 240, 24, 8))
    held = planted(1, 96, 6, 0)
    held["job"][:2] = "pilot"
    write_csv(path / "val.csv", held)
    return Files(str(path / "train.csv"), str(path / "val.csv"), "income", id="row")


def write_diagnoser(path):
    """The planted diagnoser as a file."""
    taught.save(path / "made.npz", *planted_diagnoser())
    return path / "made.npz"


def smoke(path):
    """A run of the command on the planted files, by a planted diagnoser; returns its directory."""
    write_diagnoser(path)
    config = diagnose.Config(make_files(path), diagnoser=str(path / "made.npz"), networks=2, repair="change", seeds=2)
    return diagnose.main(config, path / "results", network=NETWORK)
