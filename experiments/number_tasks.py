"""Tasks whose labels are numbers, with the groups in which the error must not be large.

Labels are standardised by those of the training examples of the seed; `Task.scale` is the way back to their unit.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Int

from d3mjax.data import label_scale, tables
from d3mjax.data.label_scale import LabelScale
from d3mjax.data.sets import number_tables
from d3mjax.data.sets.shortcut_tables import TableTask
from d3mjax.types import Data, Split, Table
from experiments import number_tables as local_tables
from experiments.tasks import Task

SIZES = {"train": 3000, "target": 600, "selection": 600, "test": 1500}
SMALL = {"train": 300, "target": 120, "selection": 120, "test": 200}
RARE = 0.05  # share of the rare side among the training examples


@lru_cache(maxsize=8)
def _read(table: TableTask, name: str) -> tuple[Table, np.ndarray]:
    del name  # tasks of one table read it once
    return table.load()


def _data(
    seed: int,
    *,
    smoke: bool,
    table: TableTask,
    group_of: Callable[[Table], Int[np.ndarray, "n"]],
    rare: Callable[[Int[np.ndarray, "n"]], np.ndarray] | None = None,
) -> Data:
    """Four splits with labels in their unit; ``rare``: of groups, the rows that the training examples have few of."""
    rows, y = _read(table, table.name)
    group = group_of(rows)
    order = np.random.default_rng(seed).permutation(len(y))
    sizes = SMALL if smoke else SIZES
    held, rest = np.split(order, [sum(sizes.values()) - sizes["train"]])
    train = rest[: sizes["train"]]
    if rare is not None:
        few = rare(group[rest])
        count = round(RARE * sizes["train"])
        train = np.concatenate([rest[~few][: sizes["train"] - count], rest[few][:count]])
    parts = dict(zip(("target", "selection", "test"), np.split(held, np.cumsum([*sizes.values()][1:-1])), strict=True))
    encoder = tables.fit_encoder(tables.take(rows, train))
    of = lambda index: Split(
        tables.encode(encoder, tables.take(rows, index)), y[index], group[index], index.astype(np.int32)
    )
    return Data(of(train), **{name: of(index) for name, index in parts.items()})


def _standardised(seed: int, *, smoke: bool = False, read: Callable[..., Data]) -> Data:
    data = read(seed, smoke=smoke)
    scale = label_scale.fit(data.train.y)
    return Data(*(part._replace(y=label_scale.standardise(scale, part.y)) for part in data))


def _scale(seed: int, *, smoke: bool = False, read: Callable[..., Data]) -> LabelScale:
    return label_scale.fit(read(seed, smoke=smoke).train.y)


def _task(name: str, about: str, table: TableTask, group_names: tuple[str, ...], **options: Any) -> Task:
    read = partial(_data, table=table, **options)
    return Task(
        name=name,
        about=about,
        load=partial(_standardised, read=read),
        class_names=(),
        group_names=group_names,
        hidden=(64,),
        rate=0.02,
        unit=table.unit,
        scale=partial(_scale, read=read),
    )


def _is(table: Table, name: str, *levels: str) -> np.ndarray:
    return tables.codes(table, name, *levels) >= 0


COMMUTING = tuple(map(str, (7, 8, 9, 16, 17, 18, 19)))
WARM = ("2", "3")


def _by_day(table: Table) -> np.ndarray:
    return 2 * _is(table, "workingday", "0") + _is(table, "hr", *COMMUTING)


def _by_season(table: Table) -> np.ndarray:
    return 2 * _is(table, "season", *WARM) + _is(table, "hr", *COMMUTING)


def _by_person(table: Table) -> np.ndarray:
    return 2 * _is(table, "gender", "Female") + _is(table, "educcat", "Bachelor", "Graduate")


def _by_air(table: Table) -> np.ndarray:
    return 2 * (table.columns["T"] >= 18) + (table.columns["RH"] >= 50)


BIKE = _task(
    "bike",
    f"Bicycles rented in an hour. The groups are working day or day off by commuting hours or others; only {RARE:.0%} "
    "of the training examples are of days off, which have other hours.",
    local_tables.BIKE,
    ("working day, other hours", "working day, commuting", "day off, other hours", "day off, commuting"),
    group_of=_by_day,
    rare=lambda group: group >= 2,
)
BIKE_SEASONS = _task(
    "bike-seasons",
    "Bicycles rented in an hour, nothing taken out. The groups are seasons by commuting hours or others.",
    local_tables.BIKE,
    ("cold, other hours", "cold, commuting", "warm, other hours", "warm, commuting"),
    group_of=_by_season,
)
WAGES = _task(
    "wages",
    "Income of a year by a social survey, nothing taken out. The groups are gender by a college degree.",
    number_tables.WAGES,
    ("men, no degree", "men, degree", "women, no degree", "women, degree"),
    group_of=_by_person,
)
AIR_QUALITY = _task(
    "air_quality",
    "Benzene in the air, nothing taken out. The groups are warm or cold by damp or dry air.",
    local_tables.AIR_QUALITY,
    ("cold, dry", "cold, damp", "warm, dry", "warm, damp"),
    group_of=_by_air,
)
TASKS = {task.name: task for task in (BIKE, BIKE_SEASONS, WAGES, AIR_QUALITY)}
