"""Cells of preference pairs: models trained on dirty pairs, influence vectors, and features that do not see the sides.

As `d3mjax.diagnosis.cells`, for pairs instead of rows of a table. All that is computed is of the pair as recorded: the
preferred side first, whichever that is. The channels of `vectors` are then

    influence   - cosine of the gradients                 (as for tables)
    cosine      of the features of both sides
    agreement   1 where preferred less other points the same way in the features
    loss
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from d3mjax.attribution import outputs
from d3mjax.data import cache, prompts
from d3mjax.data.sets.preferences import Preferences
from d3mjax.diagnosis import baseline_scores, oddity, vectors
from d3mjax.diagnosis.cells import EXTRAS, Cell, trained_by_folds
from d3mjax.networks import decoders, dense, lora
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.preferences import bradley_terry, pairwise, with_reference
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split, Table, Trainer
from experiments import language_models
from experiments.language_models import LanguageModel
from experiments.preference_tasks import standardised


class Learner(NamedTuple):
    """A model of preferences, its training, and what it sees of pairs."""

    name: str
    model: Callable[[Any], Model]  # of ``shared``
    trainer: Callable[[Model, int], Trainer]  # (model, number of pairs) -> training on weighted pairs
    steps: int  # of a training, a multiple of 4
    inputs: Callable[..., Any]  # (pairs, training pairs) -> x of a `Split` for the model
    shared: Any = ()  # what all models have: an argument of programs, as it may be large
    microbatch: int = 512


REWARDS, SMOLLM2 = "rewards", "smollm2"
LENGTH = 64  # tokens of a prompt and its response, for language models
LABEL = ("loss", "margin", "path of margins", "left-out loss", "neighbours", "confident learning", "mean harm", "CNCI")
FEATURE = ("largest z", "PCID", "surprise", "far", "rare")
MINORITY = ("JTT error set", "self-influence", "left-out loss", "loss")
SIGNALS = tuple(
    f"{letter}: {name}" for letter, names in zip("LFS", (LABEL, FEATURE, MINORITY), strict=True) for name in names
)
"""Scores that need no flags, for swapped sides (L), damaged responses (F), and preference of the shorter side (S)."""


def _trainer(batch: int, model: Model, num_pairs: int) -> Trainer:
    size = min(batch, num_pairs)
    return make_trainer(model, objectives.cross_entropy(), optax.adam(1e-3), sampling.shuffled(), batch_size=size)


def rewards(features: Callable[[Preferences], dict[str, Any]], *, hidden: tuple[int, ...] = (64,)) -> Learner:
    """Bradley-Terry by an MLP on ``features`` of each side, standardised; 120 steps of Adam with 250 pairs."""
    inputs = lambda pairs, by: standardised(features(pairs), features(by))
    return Learner(REWARDS, lambda _: bradley_terry(dense.mlp(hidden, 1)), partial(_trainer, 250), 120, inputs)


def language_model(source: str) -> LanguageModel:
    """ "smollm2", or the file or folder of `language_models.read`; texts of `LENGTH` tokens at most."""
    if source == SMOLLM2:
        return language_models.smollm2(max_length=LENGTH, template=prompts.CHATML)
    return language_models.read(Path(source), max_length=LENGTH)


def dpo(
    lm: LanguageModel,
    num_pairs: int,
    directory: Path,
    *,
    top: int = 2,
    rank: int = 8,
    beta: float = 0.1,
    epochs: int = 3,
) -> Learner:
    """DPO of adapters of the ``top`` blocks of a language model, not of its first one, in batches of 16 pairs.

    States below these, and log-probabilities before training, are computed once and kept in ``directory``.
    """
    block = max(1, lm.config.blocks - top)
    below, above = decoders.divided(lm.variables, block)
    kept = {"directory": directory, "config": lm.config}
    states = cache.make_features(decoders.lower(lm.config, block), below, name=f"states-{block}", **kept)
    log_probs = decoders.log_probs(lm.config, block=block)
    before = cache.make_features(bradley_terry(log_probs), above, name=f"log-probs-{block}", **kept)
    adapted = lora.adapted(log_probs, lambda path: "kernel" in path, rank=rank, alpha=2.0 * rank)

    def side(pairs: Preferences, texts: list[str]) -> dict[str, np.ndarray]:
        tokens, cut = lm.encode(pairs.prompt, texts)
        if cut:
            print(f"{cut:,} of {len(texts):,} texts are cut to {LENGTH} tokens", file=sys.stderr)
        tokens = {name: np.pad(a, ((0, 0), (0, LENGTH - a.shape[1]))) for name, a in tokens.items()}
        language_models.check_memory(2 * len(texts), LENGTH, lm.config.width)
        return {**tokens, "states": states(tokens)}

    def inputs(pairs: Preferences, by: Preferences) -> dict[str, Any]:
        x = {"first": side(pairs, pairs.first), "second": side(pairs, pairs.second)}
        split = Split(x, pairs.y, np.zeros(len(pairs.y), np.int32), pairs.id)
        return with_reference(split, before(x)).x

    steps = -(-epochs * num_pairs // min(16, num_pairs) // 4) * 4
    model = lambda shared: pairwise(lora.with_collections(adapted, shared), beta)
    shared = {"frozen": above["params"], "lora": {"scale": np.float32(2.0)}}
    return Learner("dpo", model, partial(_trainer, 16), steps, inputs, shared, 8)


def oriented(split: Split) -> Split:
    """The same pairs with the preferred side first, hence of label 0."""
    at_first = jnp.asarray(split.y) == 0
    choose = lambda a, b: jnp.where(at_first.reshape(-1, *[1] * (jnp.ndim(a) - 1)), a, b)
    first, second = split.x["first"], split.x["second"]
    x = {"first": jax.tree.map(choose, first, second), "second": jax.tree.map(choose, second, first)}
    x |= {name: choose(a, a[:, ::-1]) for name, a in split.x.items() if name not in x}  # [n 2]
    return split._replace(x=x, y=jnp.zeros_like(split.y))


def tensor(
    model: Model, variables: Any, pairs: tuple[Split, Split], seen: tuple[Split, Split], *, microbatch: int
) -> tuple[Float[Array, "n 4 t"], Float[Array, "n t"]]:
    """The four channels of `oriented` pairs as float16, and the cosine of gradients, positive where a pair helps.

    ``pairs`` are train and validation pairs as the model sees them, ``seen`` the same with features of the sides.
    """
    train, validation = pairs
    helped = vectors.gram(model, variables, train, validation, microbatch=microbatch)
    both = [jnp.concatenate([s.x["first"], s.x["second"]], axis=1) for s in seen]
    towards = [s.x["first"] - s.x["second"] for s in seen]
    lost = vectors.losses(model, variables, train, microbatch=microbatch)
    lost = jnp.broadcast_to(lost[:, None], helped.shape)
    channels = (-helped, vectors.cosine(*both), vectors.cosine(*towards) > 0, lost)
    largest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(jnp.stack(channels, 1), -largest, largest).astype(jnp.float16), helped.astype(jnp.float16)


def make_train(learner: Learner, num_pairs: int, **spread: Any) -> Callable[..., list[Cell]]:
    """``(key, [(train, validation)], [(train, validation)], [table]) -> [Cell]`` as `cells.make_train`.

    The pairs as the model sees them, and with features of the sides. Logits are of the preferred side first.
    ``spread``: ``width`` and ``mesh`` of `ensemble.map_models`.
    """
    microbatch = learner.microbatch

    def one(shared, key, pairs: tuple[Split, Split], seen: tuple[Split, Split]):
        model = learner.model(shared)
        trainer = learner.trainer(model, num_pairs)
        train, validation = map(oriented, pairs)
        first, second = map(oriented, seen)
        variables, extras, logits, others = trained_by_folds(
            key, model, trainer, train, learner.steps, microbatch=microbatch
        )
        channels, helped = tensor(model, variables, (train, validation), (first, second), microbatch=microbatch)
        return channels, extras, logits, others, jnp.stack([helped, -helped], 1)

    @jax.jit
    def compiled(shared, key, numbers, pairs, seen):
        keys = ensemble.model_keys(key, numbers)
        return ensemble.map_models(one, shared=(shared,), **spread)(keys, pairs, seen)

    def train(key, pairs: Sequence[Any], seen: Sequence[Any], tables: Sequence[Table]) -> list[Cell]:
        stacked = [jax.tree.map(lambda *a: np.stack(a), *both) for both in (pairs, seen)]
        arrays = jax.device_get(compiled(learner.shared, key, np.arange(len(pairs)), *stacked))
        made = []
        for channels, extras, *more, table in zip(*arrays, tables, strict=True):
            made.append(Cell(channels, np.concatenate([extras, oddity.scores(table)], 1).astype(np.float32), *more))
        return made

    return train


def table_of(pairs: Preferences, x: dict[str, Any]) -> Table:
    """What a reader sees of each pair as recorded, for `oddity`: lengths, likeness, and how the responses end.

    ``x`` are the features of `preference_tasks.make_features`, before they are standardised.
    """
    columns: dict[str, np.ndarray] = {}
    width = (x["first"].shape[1] - 1) // 2
    sides = (pairs.first, pairs.second), (x["first"], x["second"])
    for name, y in (("preferred", pairs.y), ("other", 1 - pairs.y)):
        texts = [sides[0][k][i] for i, k in enumerate(y)]
        features = np.where(y[:, None] == 0, *sides[1])
        letters, words = np.array(list(map(len, texts))), np.array([len(text.split()) for text in texts])
        columns[f"{name}: letters"] = np.log(letters)
        columns[f"{name}: letters of a word"] = letters / np.maximum(words, 1)
        columns[f"{name}: like the prompt"] = features[:, width : 2 * width].sum(1).astype(float)
        columns[f"{name}: ends with"] = np.array([_ending(text) for text in texts], np.int32)
        columns[f"{name}: begins with"] = np.array([text[0].isupper() for text in texts], np.int32)
    columns["likeness"] = (x["first"][:, :width] * x["second"][:, :width]).sum(1).astype(float)
    columns["letters, difference"] = columns["preferred: letters"] - columns["other: letters"]
    levels: dict[str, tuple[str, ...]] = {
        f"{name}: ends with": ("a letter", "a stop", "other") for name in ("preferred", "other")
    }
    levels |= {f"{name}: begins with": ("a small letter", "a capital") for name in ("preferred", "other")}
    return Table(columns, levels, pairs.id)


def signals(cell: Cell, table: Table, seen: Split) -> Float[np.ndarray, "n s"]:
    """`SIGNALS` as ranks in the cell; ``seen``: the pairs as recorded, with features of the sides."""
    y = np.asarray(seen.y)
    recorded = lambda logits: np.where(y[:, None] == 0, logits, logits[:, ::-1])
    softmax = np.asarray(jax.nn.softmax(recorded(cell.left_out), axis=1))
    helped = cell.by_class[:, 0].astype(np.float32)
    zeros, own = np.zeros(len(y), np.int32), np.zeros(helped.shape[1], np.int32)
    opposed = baseline_scores.cnci(-helped, zeros, own, 1)  # the sides exchanged, which turns the gradient round
    towards = np.asarray(seen.x["first"]) - np.asarray(seen.x["second"])
    both = np.concatenate([towards, -towards]), np.concatenate([y, 1 - y])  # each pair in both orders
    neighbours = baseline_scores.knn_disagreement(*both)[: len(y)]
    numbers = np.stack([a for name, a in table.columns.items() if name not in table.levels], 1).astype(np.float32)
    extra = dict(zip(EXTRAS, cell.extras.T, strict=True))
    loss, margin = cell.vectors[:, 3, 0].astype(np.float32), outputs.hard_margin(jnp.asarray(cell.logits), zeros)
    label = (loss, -margin, -extra["path"], extra["left out"], neighbours)
    label = (*label, baseline_scores.confident_learning(softmax, y), baseline_scores.mean_harm(helped), opposed)
    pcid = baseline_scores.pcid(helped, -helped, own, 1)
    feature = (baseline_scores.outliers(numbers), pcid, extra["surprise"], extra["far"], extra["rare"])
    rare = (baseline_scores.jtt_errors(cell.logits, zeros), extra["norm"], extra["left out"], loss)
    scores = (*label, *feature, *rare)
    return np.stack([np.asarray(baseline_scores.loss_rank(np.asarray(a, np.float32))) for a in scores], 1)


def _ending(text: str) -> int:
    return 0 if text[-1].isalnum() else 1 if text[-1] in ".!?" else 2
