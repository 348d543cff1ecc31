"""Llama and GPT-2 beside transformers, and SmolLM2: equal values, tokens and logits, perplexity, sentences a second."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3mjax.data import gguf, weight_files
from d3mjax.data.tokens import by_length
from d3mjax.networks import decoder_files, decoders
from experiments import language_models, local_data
from experiments.bench.measuring import in_torch, repeated, row

LARGEST = {"logits": 1e-4, "log_probs": 1e-4, "gradient": 1e-3, "other_values": 0, "other_tokens": 0}
"""Largest differences, in units of the largest number, or of the length of the gradient; numbers of tensors, texts."""
TEXT = (
    "The house stood at the end of a long road, with a garden on one side and a field on the other.",
    "In the evening the children came home from school, put down their books, and asked what there was to eat.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
    "She opened the letter slowly, read it twice, and then gave it back without saying a word.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "If the price of bread rises by 10 percent, a family with little money spends less on other things.",
)
"""A fixed text for the perplexity of SmolLM2, written for this purpose."""


@dataclass(frozen=True)
class Task:
    """A decoder with random weights, and random texts of it; the one of the GGUF file if there is a path."""

    name: str
    kind: str
    config: decoders.Config
    batch: int = 8
    length: int = 24
    rotary: Mapping[str, Any] = field(default_factory=dict)  # scaling of positions, as config.json has it
    gguf: str = ""
    texts: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What PyTorch's side needs, and the row stores."""
        sizes = {name: value for name, value in self.config._asdict().items() if name not in ("dtype", "stretch")}
        return {**asdict(replace(self, config=None)), "sizes": sizes}  # pyright: ignore[reportArgumentType]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 100_000.0}
TASKS = (
    Task("Llama, sizes of SmolLM2", "llama", decoders.SMOLLM2_135M),
    Task("Llama, untied, stretched", "llama", decoders.SMOLLM2_135M._replace(blocks=4, tied=False), rotary=LLAMA3),
    Task("GPT-2", "gpt2", decoders.GPT2),
)


def differences(directory: Path) -> dict[str, float]:
    """What differs from the files of `torch_decoders.py`, of random weights."""
    read = lambda name: weight_files.read_safetensors(directory / f"{name}.safetensors")
    config = decoder_files.config_of_json(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    model, batch = decoders.log_probs(config), read("batch")
    variables, gradient = (
        decoder_files.from_published(model, read(name), config)["params"] for name in ("before", "gradient")
    )
    tokens = _tokens(batch)
    ours = jax.jit(jax.grad(lambda params: model.apply({"params": params}, tokens)[0].mean()))(variables)
    squares = lambda a: sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(a))
    apart = squares(jax.tree.map(np.subtract, ours, gradient)) / squares(gradient)
    return {**outputs_apart(config, {"params": variables}, batch), "gradient": float(np.sqrt(apart))}


def outputs_apart(config: decoders.Config, variables: Any, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Differences of logits of real tokens and of log-probabilities, in units of the largest."""
    tokens, real = _tokens(batch), batch["mask"].astype(bool)
    apply = lambda model: np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(variables, tokens))
    of = lambda ours, theirs: float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    logits = of(apply(decoders.logits(config))[real], batch["logits"][real])
    return {"logits": logits, "log_probs": of(apply(decoders.log_probs(config)), batch["sums"])}


def _tokens(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kinds = {"ids": np.int32, "mask": np.bool_, "response": np.bool_}
    return {name: batch[name].astype(kind) for name, kind in kinds.items()}


def check(name: str, errors: Mapping[str, float]) -> None:
    """Raise FloatingPointError if a difference is above `LARGEST`."""
    above = {key: errors[key] for key in LARGEST.keys() & errors.keys() if not errors[key] <= LARGEST[key]}
    if above:
        raise FloatingPointError(f"{name}: found differences {above}, expected at most {LARGEST}")


def bench(torch_python: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """Rows of the differences, and of SmolLM2 where its file is on this machine."""
    if smoke:
        shrink = lambda task: replace(task, config=task.config._replace(blocks=1, vocabulary=50), batch=2)
        tasks, path = [shrink(task) for task in TASKS], None
    else:
        tasks, path = list(TASKS), local_data.search("smollm2")
    made = []
    if torch_python.exists():
        made += [_beside_torch(task, torch_python) for task in tasks]
    else:
        print(f"{torch_python} is missing: no parity with PyTorch (make bench installs it)")
    if path is None:
        print("no SmolLM2: make data downloads it (python -m experiments.local_data smollm2)")
        return made
    if torch_python.exists():
        file = next(path.glob("*.gguf"))
        real = Task("SmolLM2", "llama", decoders.SMOLLM2_135M, gguf=str(file), texts=TEXT)
        made.append(_beside_torch(real, torch_python))
    return [*made, row("SmolLM2", "d3mjax", measured(), settings={"texts": len(TEXT), "length": 32, "batch": 64})]


def _beside_torch(task: Task, torch_python: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        versions = in_torch(torch_python, "torch_decoders.py", json.dumps(task.facts), directory)
        errors = of_file(task, Path(directory)) if task.gguf else differences(Path(directory))
    print(f"{task.name}: {errors}", flush=True)
    check(task.name, errors)
    return row("Parity of decoders with PyTorch", task.name, errors, settings={**task.facts, **versions})


def of_file(task: Task, directory: Path) -> dict[str, float]:
    """What differs for a GGUF file: tensors whose values, and texts whose tokens are others, and outputs."""
    theirs = json.loads((directory / "digests.json").read_text(encoding="utf-8"))
    tensors, _ = gguf.read_gguf(task.gguf)
    other = {name for name, a in tensors.items() if hashlib.sha256(a.tobytes()).hexdigest() != theirs.pop(name, None)}
    batch = weight_files.read_safetensors(directory / "batch.safetensors")
    read = language_models.read(Path(task.gguf))
    tokens, _ = read.encode([""] * len(task.texts), task.texts)
    pairs = zip(tokens["ids"], tokens["mask"], batch["ids"], batch["mask"].astype(bool), strict=True)
    texts = sum(not np.array_equal(ours[a], ids[b]) for ours, a, ids, b in pairs)
    errors = {"other_values": float(len(other) + len(theirs)), "other_tokens": float(texts)}
    return errors | outputs_apart(read.config, read.variables, batch)


def measured() -> dict[str, Any]:
    """Perplexity of SmolLM2 on `TEXT`, each sentence by itself, and sentences of 32 random tokens a second."""
    read = language_models.smollm2()
    apply, variables = jax.jit(lambda v, x: read.model.apply(v, x)[0]), jax.device_put(read.variables)
    tokens, _ = read.encode([""] * len(TEXT), TEXT)
    total = sum(float(apply(variables, x)[: len(rows)].sum()) for rows, x in by_length(tokens, size=8))
    ids = np.random.default_rng(0).integers(read.config.vocabulary, size=(64, 32), dtype=np.int32)
    batch = {"ids": ids, "mask": np.ones(ids.shape, bool), "response": np.ones(ids.shape, bool)}
    rates = [len(ids) / call.seconds for call in repeated(lambda: apply(variables, batch), 3)]
    return {"perplexity": exp(-total / tokens["response"].sum()), "sentences_per_second": rates}
