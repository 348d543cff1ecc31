"""Sentences of four kinds of text, with sentiment rated by twenty people each.

The file is the source distribution of the package vaderSentiment 3.3.2, which holds the corpora of Hutto, Gilbert,
"VADER: a parsimonious rule-based model for sentiment analysis of social media text", ICWSM 2014 (MIT licence): snippets
of film and product reviews, sentences of editorials, and tweets. A negation goes with a negative rating.
"""

import codecs
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d3mjax.data import splits
from d3mjax.data.sets.negation import is_negated
from d3mjax.types import Data, Split

LABELS = ("negative", "positive")
DOMAINS = ("films", "products", "editorials", "tweets")
NEGATION_NAMES = tuple(f"{label}, {negation}" for label in LABELS for negation in ("no negation", "negation"))
"""``group = 2 * y + negation``."""
DOMAIN_NAMES = tuple(f"{label}, {domain}" for label in LABELS for domain in DOMAINS)
"""``group = 4 * y + domain``."""

_CORPORA = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
COUNTS = {"films": 10_605, "products": 3_708, "editorials": 5_190, "tweets": 4_200}
"""Published numbers of sentences."""

MOST = 5200  # sentences of a domain whose single ratings are read
CLEAR = 0.5  # of 4: sentences of ratings up to here, on either side of 0, have no label

Encode = Callable[[Sequence[str]], Any]
"""Sentences to features, any pytree of arrays ``[n ...]``."""


class Rated(NamedTuple):
    """Sentences without repetitions, up to case."""

    text: list[str]
    rating: Float[np.ndarray, " n"]  # mean of twenty, -4 (most negative) to 4
    domain: Int[np.ndarray, " n"]  # indexes DOMAINS
    id: Int[np.ndarray, " n"]  # row in the four files, one after the other


class Ratings(NamedTuple):
    """Sentences of one domain, and the ratings of each; ``rated.rating`` is their mean."""

    rated: Rated
    ratings: list[Int[np.ndarray, " _"]]  # 14 to 99 whole numbers, -4 to 4; raters have no names


class Sizes(NamedTuple):
    """Sentences of each group in the splits of the planted shortcut, in the order of `NEGATION_NAMES`."""

    train: tuple[int, ...] = (47, 900, 900, 47)  # a negation, or its absence, agrees with the label for 95 %
    target: tuple[int, ...] = (50,) * 4
    selection: tuple[int, ...] = (100,) * 4
    test: tuple[int, ...] = (300,) * 4


def read_rated(path: str | Path, *, counts: dict[str, int] | None = COUNTS) -> Rated:
    """All sentences of the package's source distribution.

    Raises:
      ValueError: a file that is missing or damaged; numbers of sentences other than ``counts`` (None: any).
    """
    with _intact(path):
        lines = _lines(path, "GroundTruth")
        rows = [(text.strip(), float(rating), d) for d, part in enumerate(lines) for _, rating, text in part]
    sizes = dict(zip(DOMAINS, map(len, lines), strict=True))
    if counts is not None and sizes != counts:
        raise ValueError(f"{path}: found {sizes} sentences, expected the published {counts}; counts=None takes any")
    firsts = {text.casefold(): i for i, (text, *_) in reversed(list(enumerate(rows)))}
    index = np.array(sorted(firsts.values()), np.int32)
    text, rating, domain = zip(*(rows[i] for i in index), strict=True)
    return Rated(list(text), np.array(rating), np.array(domain, np.int32), index)


def read_ratings(path: str | Path, domain: str, *, counts: dict[str, int] | None = COUNTS) -> Ratings:
    """Every rating of `MOST` sentences of one of `DOMAINS`, at even distances: positive films come first.

    Joined by name, as rows of the two files differ in places.

    Raises as `read_rated`.
    """
    rated, d = read_rated(path, counts=counts), DOMAINS.index(domain)
    with _intact(path):
        names = [name for part in _lines(path, "GroundTruth") for name, *_ in part]
        each = {name: json.loads(numbers) for name, *_, numbers in _lines(path, "anonDataRatings")[d]}
        rows = np.flatnonzero(rated.domain == d)
        rows = rows[np.arange(min(MOST, len(rows))) * len(rows) // min(MOST, len(rows))]
        ratings = [np.array(each[names[i]], np.int32) for i in rated.id[rows]]
    means = np.array([of.mean() for of in ratings])
    return Ratings(Rated([rated.text[i] for i in rows], means, rated.domain[rows], rated.id[rows]), ratings)


def label_by_negation(rated: Rated, y: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Groups `NEGATION_NAMES`."""
    return 2 * y + np.array([is_negated(text) for text in rated.text], np.int32)


def label_by_domain(rated: Rated, y: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Groups `DOMAIN_NAMES`."""
    return 4 * y + rated.domain


def load_sentences(
    seed: int = 0,
    *,
    path: str | Path,
    encode: Encode,
    groups: Callable[[Rated, Int[np.ndarray, " n"]], Int[np.ndarray, " n"]] = label_by_negation,
    sizes: tuple[int, int, int] = (4000, 1000, 2000),
    counts: dict[str, int] | None = COUNTS,
) -> Data:
    """Random training, target and selection sentences of these ``sizes``; all others are the test.

    x is ``encode(sentences)``, y whether the mean rating is positive; sentences without a clear rating are left out.
    Raises as `read_rated`.
    """
    whole = _labelled(read_rated(path, counts=counts), encode, groups)
    rest = len(whole.y) - sum(sizes)
    return Data(*splits.divide(whole, seed, (*sizes, rest)))


def load_planted_negation(
    seed: int = 0,
    *,
    path: str | Path,
    encode: Encode,
    sizes: Sizes = Sizes(),
    counts: dict[str, int] | None = COUNTS,
) -> Data:
    """Sentences on films, chosen so that a negation goes with a negative rating in the training set.

    Otherwise as `load_sentences`. The test and the selection of a seed do not depend on the other sizes.

    Raises:
      ValueError: as `read_rated`; more sentences of a group than there are.
    """
    rated = read_rated(path, counts=counts)
    whole = _labelled(rated, encode, label_by_negation)
    films = np.isin(whole.id, rated.id[rated.domain == 0])
    by_group = [splits.take(whole, np.flatnonzero(films & (whole.group == g))) for g in range(len(NEGATION_NAMES))]
    order = ("test", "selection", "target", "train")
    drawn = [splits.divide(part, seed, [getattr(sizes, name)[g] for name in order]) for g, part in enumerate(by_group)]
    parts = {
        name: splits.concatenate(*of_groups) for name, of_groups in zip(order, zip(*drawn, strict=True), strict=True)
    }
    return Data(**parts)


def load_rated_once(
    seed: int = 0,
    *,
    path: str | Path,
    encode: Encode,
    domain: str = "films",
    sizes: tuple[int, int, int] = (2000, 500, 500),
    counts: dict[str, int] | None = COUNTS,
) -> tuple[Data, Int[np.ndarray, " k"]]:
    """Sentences of one domain with the labels of one person, and the ids of the training examples that are wrong.

    The label of training and selection sentences is the sign of one of their ratings, drawn at random among those that
    are not 0; the right one is the sign of the mean of all ratings, which target and test sentences have. Sentences of
    mean 0 are left out. Groups are the labels. Raises as `read_rated`.
    """
    rated, ratings = read_ratings(path, domain, counts=counts)
    signed = np.flatnonzero(rated.rating != 0)
    right = (rated.rating[signed] > 0).astype(np.int32)
    rng = np.random.default_rng(seed)
    once = np.array([rng.choice(of[of != 0]) > 0 for of in (ratings[i] for i in signed)], np.int32)
    whole = Split(encode(rated.text)[signed], right, right, rated.id[signed])
    data = Data(*splits.divide(whole, seed, (*sizes, len(signed) - sum(sizes))))
    as_rated = lambda split: once[splits.rows_of(split.id, whole.id)]
    y, chosen = as_rated(data.train), as_rated(data.selection)
    wrong = data.train.id[y != data.train.y]
    train, selection = data.train._replace(y=y, group=y), data.selection._replace(y=chosen, group=chosen)
    return data._replace(train=train, selection=selection), np.asarray(wrong)


def _lines(path: str | Path, kind: str) -> list[list[list[str]]]:
    """Fields of all lines of the four files of a kind, of which the first is the name of the sentence."""
    with tarfile.open(path) as outer, tarfile.open(fileobj=_member(outer, _CORPORA)) as inner:
        raw = [_member(inner, f"hutto_ICWSM_2014/{name}_{kind}.txt").read() for name in _FILES]
    texts = (text.removeprefix(codecs.BOM_UTF8).decode("latin-1") for text in raw)
    return [[line.strip("\r").split("\t") for line in text.split("\n") if line.strip()] for text in texts]


@contextmanager
def _intact(path: str | Path) -> Iterator[None]:
    """Whatever a damaged file raises, as ``ValueError`` that names it."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected vaderSentiment-3.3.2.tar.gz") from error


def _labelled(rated: Rated, encode: Encode, groups: Callable) -> Split:
    clear = np.flatnonzero(np.abs(rated.rating) > CLEAR)
    rated = Rated([rated.text[i] for i in clear], rated.rating[clear], rated.domain[clear], rated.id[clear])
    y = (rated.rating > 0).astype(np.int32)
    return Split(encode(rated.text), y, groups(rated, y), rated.id)


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file  # pyright: ignore[reportReturnType]  # a buffered reader, whatever the stubs say
