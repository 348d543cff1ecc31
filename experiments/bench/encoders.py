"""MiniLM: sentences encoded a second, and TRAK group columns of its last two blocks from states that are kept.

With the weights and SICK on this machine (`experiments.local_data`) real sentences are encoded, too, and their cosines
are set beside the relatedness that people gave them.
"""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import metrics
from d3mjax.attribution import projections, trak
from d3mjax.data import weight_files
from d3mjax.data.tokens import by_length, read_tokenizer
from d3mjax.networks import transformers
from d3mjax.types import Split
from experiments import local_data
from experiments.bench.measuring import in_own_process, peak, repeated, row, timed


@dataclass(frozen=True)
class Encode:
    """Random texts of one length, without padding: what a bucket of lengths is."""

    length: int
    batch: int = 64
    batches: int = 4
    repeats: int = 3


@dataclass(frozen=True)
class Finetuned:
    """Random states of pairs of sentences after the frozen blocks, and what their group columns take."""

    n: int = 4000
    targets: int = 500
    groups: int = 6
    length: int = 56  # tokens; the 4,500 training pairs of SICK have 55 at most, and 23 in the mean
    block: int = 4  # the first that is trained: two blocks, pooler and head have 3.7 million parameters
    p: int = 256
    microbatch: int = 8


ENCODE = (Encode(16), Encode(32), Encode(64), Encode(128, 32))


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """Rows of every length, and of the attribution, in a process of its own."""
    encode, finetuned = ENCODE, Finetuned()
    if smoke:
        encode, finetuned = (Encode(8, 2, 1, 1),), Finetuned(6, 4, 2, 5, 5, 8, 2)
    rows = [_encode(task) for task in encode]
    weights, sick = (local_data.search(name) for name in ("minilm", "sick"))
    if weights and sick and not smoke:
        rows.append(_sentences(weights, sick / "SICK_train.txt"))
    else:
        print("no real sentences: they need MiniLM and SICK (python -m experiments.local_data minilm sick)")
    name = f"TRAK of the last {transformers.MINILM.blocks - finetuned.block} blocks of MiniLM, {finetuned.n:,} examples"
    return [*rows, row(name, "d3mjax, group_columns", in_own_process("encoders", finetuned), settings=finetuned)]


def _encode(task: Encode) -> dict[str, Any]:
    model = transformers.sentence_encoder(transformers.MINILM)
    rng = np.random.default_rng(0)
    ids = rng.integers(transformers.MINILM.vocabulary, size=(task.batches, task.batch, task.length), dtype=np.int32)
    tokens = {"ids": jnp.asarray(ids), "types": jnp.zeros_like(ids), "mask": jnp.ones(ids.shape, bool)}
    variables = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda a: a[0], tokens))
    encode = jax.jit(lambda variables, tokens: model.apply(variables, tokens)[0])
    batches = [jax.tree.map(lambda a, i=i: a[i], tokens) for i in range(task.batches)]
    calls = repeated(lambda: [encode(variables, batch) for batch in batches], task.repeats)
    rates = [task.batches * task.batch / call.seconds for call in calls]
    return row("Sentences a second, MiniLM", f"d3mjax, {task.length} tokens", {"per_second": rates}, settings=task)


def _sentences(weights: Path, sick: Path) -> dict[str, Any]:
    """All sentences of SICK's training pairs: rate by buckets of lengths, and cosines of pairs and of strangers."""
    with sick.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = ([pair[f"sentence_{side}"] for pair in pairs] for side in "AB")
    rating = np.array([float(pair["relatedness_score"]) for pair in pairs])
    model = transformers.sentence_encoder(transformers.MINILM)
    variables = transformers.from_published(model, weight_files.read_safetensors(weights / "model.safetensors"))
    encode = jax.jit(lambda variables, tokens: model.apply(variables, tokens)[0])
    variables = jax.device_put(variables)

    def embed() -> np.ndarray:
        tokens = read_tokenizer(weights / "vocab.txt", 128)(first + second).tokens
        vectors = np.zeros((len(tokens["ids"]), transformers.MINILM.width), np.float32)
        for rows, batch in by_length(tokens):
            vectors[rows] = np.asarray(encode(variables, batch))[: len(rows)]
        return vectors

    calls = repeated(embed, 2)
    a, b = np.split(calls[0].value, 2)
    cosines, strangers = (a * b).sum(1), (a * np.roll(b, len(b) // 2, axis=0)).sum(1)
    figures = {
        "per_second": [2 * len(pairs) / call.seconds for call in calls],
        "cosine_of_paraphrases": cosines[rating == 5].mean(),
        "cosine_of_strangers": strangers.mean(),
        "correlation_with_relatedness": float(metrics.spearman(cosines, rating)),
    }
    settings = {"sentences": 2 * len(pairs), "paraphrases": int((rating == 5).sum()), "batch": 64}
    return row("Sentences a second, MiniLM", "d3mjax, sentences of SICK by length", figures, settings=settings)


def measure(task: Finetuned) -> dict[str, float]:
    """Seconds without compilation, parameters, and the peak memory of this process."""
    model = transformers.upper(transformers.MINILM, task.block, 3)

    def split(seed: int, n: int) -> Split:
        rng = np.random.default_rng(seed)
        states = rng.normal(size=(n, task.length, transformers.MINILM.width)).astype(np.float32)
        mask = np.arange(task.length)[None] < rng.integers(task.length // 2, task.length + 1, size=(n, 1))
        y = rng.integers(3, size=n, dtype=np.int32)
        return Split({"states": states, "mask": mask}, y, np.arange(n) % task.groups, np.arange(n))

    train, target = jax.device_put((split(0, task.n), split(1, task.targets)))
    variables = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda a: a[:1], train.x))
    options = trak.Options(projections.sjlt(task.p), microbatch=task.microbatch)

    @jax.jit
    def attribute(key, variables, train, target):
        return trak.group_columns(key, model, variables, train, target, task.groups, options=options).kernel

    inputs = (jax.random.key(0), variables, train, target)
    compiled = attribute.lower(*inputs).compile()
    run = timed(lambda: compiled(*inputs))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "parameters": count, **peak()}


if __name__ == "__main__":
    print(json.dumps(measure(Finetuned(**json.loads(sys.argv[1])))))
