"""Sentences: sentiment and entailment, where negation or the kind of text misleads, with MiniLM and BERT.

`sentences`, `negation`, `domains` and `sick` train a small network on features of frozen MiniLM, which are computed
once and kept; `sick-blocks` trains its last two blocks, `multinli` all of BERT. Data and weights: see `local_data`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Float32

from d3mjax.data import cache as kept
from d3mjax.data import splits, tokens, weight_files
from d3mjax.data.sets import multinli, sentences, sick
from d3mjax.debiasing import d3m
from d3mjax.networks import adapt, transformers
from d3mjax.runtime import encoders
from d3mjax.types import Data, Model
from experiments import local_data
from experiments.tasks import Task, first_of_groups, in_parts

FEW = 40  # examples of a group in smoke runs


class Encoder(NamedTuple):
    """A pretrained encoder of text: a source of `local_data`, with weights, ``vocab.txt`` and ``config.json``."""

    source: str = "minilm"
    config: transformers.BertConfig = transformers.MINILM
    max_length: int = 128
    made: Path = local_data.FILLED / "made" / "features"


MINILM = Encoder()
BERT = Encoder("bert", transformers.BERT_BASE)


def tensors(encoder: Encoder) -> dict[str, np.ndarray]:
    """Published weights by name. Raises ``ValueError`` that says how to get them."""
    return weight_files.read_safetensors(local_data.find(encoder.source) / "model.safetensors")


def encode(encoder: Encoder, first: Sequence[str], second: Sequence[str] | None = None) -> tokens.Tokens:
    """Tokens of sentences, or of pairs; prints how many were cut."""
    read = tokens.read_tokenizer(local_data.find(encoder.source) / "vocab.txt", encoder.max_length)
    encoded, cut = read(first, second)
    _note(cut, len(first), encoder)
    return encoded


def _note(cut: int, count: int, encoder: Encoder) -> None:
    if cut:
        print(f"{cut:,} of {count:,} texts are cut to {encoder.max_length} tokens", file=sys.stderr)


def vectors(encoder: Encoder, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of sentences by a frozen sentence encoder, each sentence encoded once."""
    frozen = encoders.read_text_encoder(local_data.find(encoder.source), longest=encoder.max_length)
    of_texts, cut = encoders.encode(frozen, texts, directory=encoder.made)
    _note(cut, len(set(texts)), encoder)
    return of_texts


def differences(encoder: Encoder, first: Sequence[str], second: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """``[|u - v|, u v]`` of the vectors of the two sentences."""
    u, v = np.split(vectors(encoder, [*first, *second]), 2)
    return np.concatenate([np.abs(u - v), u * v], axis=1)


def both(encoder: Encoder, first: Sequence[str], second: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """``[u, v, |u - v|, u v]`` of the vectors of the two sentences, which tell their order."""
    u, v = np.split(vectors(encoder, [*first, *second]), 2)
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def standardised(data: Data) -> Data:
    """Features less their mean over the training set, over its standard deviation; those that hardly vary become 0."""
    x = np.asarray(data.train.x)
    mean, std = x.mean(0), x.std(0)
    scale = np.where(std > 1e-3 * np.median(std), std, np.inf)
    return Data(*(split._replace(x=((split.x - mean) / scale).astype(np.float32)) for split in data))


def fine_tuned(encoder: Encoder, num_classes: int, block: int = 0) -> Model:
    """The classifier of the published weights from ``block`` on, with a new head; at block 0 the whole network."""
    whole = transformers.classifier(encoder.config, num_classes)
    published = transformers.from_published(whole, tensors(encoder), fresh=("head",))
    upper = transformers.upper(encoder.config, block, num_classes)
    return in_parts(adapt.starting_from(upper, transformers.divided(published, block)[1]))


def states(encoder: Encoder, block: int, first: Sequence[str], second: Sequence[str]) -> dict[str, np.ndarray]:
    """``{"states": Float32[n T d], "mask": Bool[n T]}`` of pairs after ``block`` frozen blocks, kept on disk."""
    whole = transformers.from_published(transformers.encoder(encoder.config), tensors(encoder))
    weights, encoded = transformers.divided(whole, block)[0], encode(encoder, first, second)
    model, name = transformers.lower(encoder.config, block), f"{encoder.source}-{block}"
    after = kept.make_features(model, weights, encoder.made, name=name, config=encoder.config)(encoded)
    return {"states": after, "mask": encoded["mask"]}


def adamw(rate: optax.ScalarOrSchedule, decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW, gradients clipped to norm 1; decay is apart from the gradient."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=decay))


def _small(data: Data, smoke: bool) -> Data:
    return Data(*(first_of_groups(split, FEW) for split in data)) if smoke else data


def _sentences(
    seed: int, *, load: Callable[..., Data], smoke: bool = False, encoder: Encoder = MINILM, **options: Any
) -> Data:
    data = load(seed, path=local_data.find("vader"), encode=partial(vectors, encoder), **options)
    return standardised(_small(data, smoke))


@lru_cache(maxsize=len(sentences.DOMAINS))
def _of_domain(encoder: Encoder, domain: str) -> Float32[np.ndarray, "n d"]:
    """Vectors of the `sentences.MOST` sentences of a domain: every draw of every study has the same."""
    return vectors(encoder, sentences.read_ratings(local_data.find("vader"), domain, counts=None).rated.text)


def _rated_once(seed: int, *, domain: str, smoke: bool = False, encoder: Encoder = MINILM) -> tuple[Data, np.ndarray]:
    options: dict[str, Any] = {"encode": lambda _: _of_domain(encoder, domain), "domain": domain}
    options |= {"sizes": (400, 100, 100)} if smoke else {}
    data, wrong = sentences.load_rated_once(seed, path=local_data.find("vader"), **options)
    return standardised(data), wrong


def _sick(seed: int, *, features: Callable, smoke: bool = False, encoder: Encoder = MINILM, **options: Any) -> Data:
    encode = partial(features, encoder)
    return _small(sick.load_sick(seed, source_dir=local_data.find("sick"), encode=encode, **options), smoke)


def _sick_standardised(seed: int, **options: Any) -> Data:
    return standardised(_sick(seed, **options))


def _multinli(seed: int, *, smoke: bool = False, encoder: Encoder = BERT, **options: Any) -> Data:
    source = local_data.find("multinli")
    return _small(multinli.load_multinli(seed, source_dir=source, encode=partial(encode, encoder), **options), smoke)


def _show_rated(_seed: int, ids: np.ndarray) -> list[str]:
    rated = sentences.read_rated(local_data.find("vader"), counts=None)
    return [rated.text[row] for row in splits.rows_of(ids, rated.id)]


def _show_sick(_seed: int, ids: np.ndarray) -> list[str]:
    pairs = sick.read_sick(local_data.find("sick"))
    return [f"{pairs.first[row]} / {pairs.second[row]}" for row in splits.rows_of(ids, pairs.id)]


SENTENCES = Task(
    name="sentences",
    about="Sentiment of 19,000 sentences of film and product reviews, editorials and tweets, by a small network on "
    "features of frozen MiniLM. The groups are label by negation: a negation goes with a negative sentence.",
    load=partial(_sentences, load=sentences.load_sentences),
    class_names=sentences.LABELS,
    group_names=sentences.NEGATION_NAMES,
    hidden=(64,),
    steps=400,
    rate=0.01,
    decay=0.03,
    beta=2.0,
    betas=(1.0, 4.0),
    show=_show_rated,
)

DOMAINS = replace(
    SENTENCES,
    name="domains",
    about="Sentiment of 19,000 sentences by a small network on features of frozen MiniLM. The groups are label by kind "
    "of text: film reviews, product reviews, editorials, tweets.",
    load=partial(_sentences, load=sentences.load_sentences, groups=sentences.label_by_domain),
    group_names=sentences.DOMAIN_NAMES,
)

NEGATION = replace(
    SENTENCES,
    name="negation",
    about="Sentiment of sentences on films by a small network on features of frozen MiniLM. Training sentences are "
    "chosen so that negation goes with a negative label for 95 %. The groups are label by negation; there are 50 "
    "targets of each, and the test set has all four equally.",
    load=partial(_sentences, load=sentences.load_planted_negation),
    steps=300,
    beta=1.0,
    betas=(2.0,),
)

SICK = Task(
    name="sick",
    about="SICK: does one sentence entail or contradict the other? By a small network on features of frozen MiniLM. "
    "The groups are label by negation in either sentence, entailment being one; contradictions without a negation are "
    "41 of 3,000 training pairs. A part of the official test pairs are training pairs, too.",
    load=partial(_sick_standardised, features=differences),
    class_names=sick.LABELS,
    group_names=sick.GROUP_NAMES,
    hidden=(64,),
    steps=400,
    rate=0.01,
    decay=0.1,
    beta=2.0,
    betas=(1.0, 4.0),
    shares=(0.1, 0.3, 0.5, 0.7),
    show=_show_sick,
)

SICK_HYPOTHESIS = replace(
    SICK,
    name="sick-hypothesis",
    about="SICK with groups label by negation in the second sentence: plain training treats them alike, and there is "
    "nothing to repair.",
    load=partial(_sick_standardised, features=both, negated=sick.in_second, counts=sick.COUNTS_BY_SECOND),
    beta=1.0,
    betas=(),
    shares=d3m.SHARES,
)

SICK_BLOCKS = replace(
    SICK,
    name="sick-blocks",
    about=f"{SICK.about} Here the last two blocks of MiniLM are fine-tuned on both sentences as one text.",
    load=partial(_sick, features=lambda encoder, *pairs: states(encoder, 4, *pairs)),
    make_model=partial(fine_tuned, MINILM, len(sick.LABELS), 4),
    optimizer=adamw,
    hidden=(),
    steps=5 * 3000 // 32,
    batch=32,
    rate=1e-4,
    decay=0.01,
    head="head",
    at_once=1,
)

MULTINLI = Task(
    name="multinli",
    about="MultiNLI: does the first sentence entail or contradict the second? By BERT, fine-tuned. The groups are "
    "label by negation in the second sentence.",
    load=_multinli,
    class_names=multinli.LABELS,
    group_names=multinli.GROUP_NAMES,
    make_model=partial(fine_tuned, BERT, len(multinli.LABELS)),
    optimizer=adamw,
    steps=5 * sum(multinli.COUNTS["train"]) // 32,
    batch=32,
    rate=2e-5,
    decay=0.0,
    head="head",
    at_once=1,
)


def _rated(domain: str) -> Task:
    return replace(
        SENTENCES,
        name=f"rated-{domain}",
        about=f"Sentiment of {domain}, sentence by sentence, by a small network on features of frozen MiniLM. The "
        "label of a training sentence is the sign of the rating of one person, drawn at random among those that are "
        "not 0. It is wrong where the mean of all ratings has the other sign. Sentences of mean 0 are left out.",
        load=lambda seed, *, smoke=False: _rated_once(seed, domain=domain, smoke=smoke)[0],
        wrong=lambda seed, *, smoke=False: _rated_once(seed, domain=domain, smoke=smoke)[1],
        group_names=sentences.LABELS,
        steps=400,
        beta=1.0,
        betas=(),
    )


RATED = {task.name: task for task in map(_rated, sentences.DOMAINS)}
"""Natural label errors of known truth: the task of each domain."""

TASKS = {task.name: task for task in (SENTENCES, NEGATION, DOMAINS, SICK, SICK_HYPOTHESIS, SICK_BLOCKS, MULTINLI)}
