"""The same random weights in PyTorch and here: logits, one training step, and running statistics."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from d3mjax.data import weight_files
from d3mjax.networks import conv, resnets, transformers
from d3mjax.networks.adapt import starting_from
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split
from experiments.bench.measuring import in_torch, row

RATES = {"sgd": 0.01, "adamw": 2e-5}
OPTIMIZERS = {"sgd": optax.sgd(RATES["sgd"], momentum=0.9), "adamw": optax.adamw(RATES["adamw"], weight_decay=0.01)}
LARGEST = {"logits": 1e-4, "sgd_step": 1e-3, "adamw_update": 0.02, "adamw_decay": 1e-3, "statistics": 1e-3}
"""Largest differences; float32 rounds a parameter of 1 by .003 of the rate of AdamW."""
SMALLEST = 1e-4  # gradients that are compared, in units of the largest


@dataclass(frozen=True)
class Task:
    """A network by its config here and its ``published`` name, a batch of it, and the optimizers that take a step."""

    name: str
    kind: str  # resnet, bert or distilbert
    config: Any
    published: str = ""
    optimizers: tuple[str, ...] = ("sgd", "adamw")
    batch: int = 8
    pixels: int = 64
    length: int = 24

    @property
    def model(self) -> Model:
        if self.kind == "resnet":
            return resnets.classifier(self.config._replace(convolve=conv.convolve_shifted), 3)
        return transformers.classifier(self.config, 3, dropout=0.0)

    @property
    def facts(self) -> dict[str, Any]:
        """What PyTorch's side needs, and the row stores."""
        sizes = {name: value for name, value in self.config._asdict().items() if isinstance(value, (int, tuple))}
        return {**asdict(replace(self, config=None)), "sizes": sizes}

    def variables(self, tensors: Mapping[str, np.ndarray]) -> PyTree[np.ndarray]:
        published = resnets if self.kind == "resnet" else transformers
        return published.from_published(self.model, tensors)


TASKS = (
    Task("ResNet-18", "resnet", resnets.RESNET18, "resnet18", ("sgd",)),
    Task("ResNet-50", "resnet", resnets.RESNET50, "resnet50", ("sgd",)),
    Task("BERT-base", "bert", transformers.BERT_BASE),
    Task("DistilBERT", "distilbert", transformers.DISTILBERT),
    Task("MiniLM", "bert", transformers.MINILM),
)


def differences(task: Task, directory: Path) -> dict[str, float]:
    """What differs from the files of `torch_parity.py`.

    ``logits`` in units of the largest logit. ``sgd_step`` is the length of the difference in units of the length of the
    step, that is, of the gradient. ``statistics`` is the largest difference of one number after the step. For AdamW
    see `adamw_differences`.
    """
    read = lambda name: weight_files.read_safetensors(directory / f"{name}.safetensors")
    model, before, batch = task.model, task.variables(read("before")), read("batch")
    y, expected = batch.pop("y").astype(np.int32), batch.pop("logits")
    kinds = {"ids": np.int32, "types": np.int32, "mask": np.bool_}
    x = batch["x"] if task.kind == "resnet" else {name: batch[name].astype(kind) for name, kind in kinds.items()}
    logits = np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(before, x))
    errors = {"logits": float(np.abs(logits - expected).max() / np.abs(expected).max())}
    split = Split(x, y, np.zeros(len(y), np.int32), np.arange(len(y)))
    for name in task.optimizers:
        start = starting_from(model, before)
        sampler, loss = sampling.shuffled(), objectives.cross_entropy()
        trainer = make_trainer(start, loss, OPTIMIZERS[name], sampler, batch_size=len(y))

        @jax.jit
        def step(split, trainer=trainer):
            return trainer.run(trainer.init(jax.random.key(0), split.x), split, jnp.ones(len(y)), 1)[0].variables

        ours, theirs = jax.device_get(step(split)), task.variables(read(name))
        if name == "sgd":
            error, whole = (_length(v["params"], theirs["params"]) for v in (ours, before))
            errors["sgd_step"] = error / whole
        else:
            trees = [before["params"], task.variables(read("sgd"))["params"], ours["params"], theirs["params"]]
            errors |= adamw_differences(*trees)
        if "batch_stats" in ours:
            errors["statistics"] = _largest(ours["batch_stats"], theirs["batch_stats"])
    return errors


def adamw_differences(before: PyTree, after_sgd: PyTree, ours: PyTree, theirs: PyTree) -> dict[str, float]:
    """``adamw_update``: the largest difference of an update in units of the rate, of gradients well above rounding.

    AdamW divides a gradient that is rounding alone, such as that of the biases of keys, by its own size. So gradients,
    from the step of SGD, count from `SMALLEST` of the largest on: ``adamw_compared`` is their share.
    ``adamw_decay`` is the difference of decay: lost in the rounding of one number, not in a projection on all of them.
    """
    leaves = list(zip(*map(jax.tree.leaves, (before, after_sgd, ours, theirs)), strict=True))
    least = SMALLEST * max(np.abs(start - end).max() for start, end, _, _ in leaves)
    largest = inner = square = compared = 0.0
    for start, end, our_end, their_end in leaves:
        rows = np.abs(start - end) > least
        update, chosen = (our_end - their_end)[rows].astype(np.float64), start[rows].astype(np.float64)
        largest = max(largest, np.abs(update).max(initial=0))
        inner, square, compared = inner + update @ chosen, square + chosen @ chosen, compared + rows.sum()
    rate, count = RATES["adamw"], sum(leaf.size for leaf in jax.tree.leaves(before))
    decay = float(abs(inner) / square / rate) if compared else np.nan
    return {"adamw_update": float(largest / rate), "adamw_decay": decay, "adamw_compared": float(compared / count)}


def _length(a: PyTree, b: PyTree) -> float:
    squares = jax.tree.map(lambda a, b: np.square(np.subtract(a, b, dtype=np.float64)).sum(), a, b)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))


def _largest(a: PyTree, b: PyTree) -> float:
    return float(max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b))))


def check(task: Task, errors: Mapping[str, float], rounding: float) -> None:
    """Raise FloatingPointError if a difference is above `LARGEST`.

    ``rounding`` is the difference of PyTorch's own step in float32 from that in float64, in units of the step: a deep
    network with batch normalisation over few pixels enlarges rounding, and ``sgd_step`` may be three times as large.
    """
    largest = LARGEST | {"sgd_step": max(LARGEST["sgd_step"], 3 * rounding)}
    above = {name: errors[name] for name in largest.keys() & errors.keys() if not errors[name] <= largest[name]}
    if above:
        raise FloatingPointError(f"{task.name}: found differences {above}, expected at most {largest}")


def bench(torch_python: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """Rows of the differences of all networks; nothing without the environment of PyTorch, with a note."""
    if not torch_python.exists():
        print(f"{torch_python} is missing: no parity with PyTorch (make bench installs it)")
        return []
    rows = []
    for task in TASKS:
        if smoke and task.kind != "resnet":
            task = replace(task, config=task.config._replace(blocks=1, vocabulary=50), batch=2)
        with tempfile.TemporaryDirectory() as directory:
            theirs = in_torch(torch_python, "torch_parity.py", dumps(task.facts), directory)
            errors, rounding = differences(task, Path(directory)), theirs.pop("rounding")
        print(f"{task.name}: {errors}, rounding of PyTorch's step {rounding}", flush=True)
        check(task, errors, rounding)
        figures = {**errors, "rounding": rounding}
        rows.append(row("Parity with PyTorch", task.name, figures, settings={**task.facts, **theirs}))
    return rows
