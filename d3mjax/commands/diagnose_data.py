"""The user's tables for `d3mjax-diagnose`: columns by the law of `data.columns`, as a `Table` of numbers and levels.

Everything that can be wrong is a ``ValueError`` that names the option of the command, what was found and what is
expected. `UserTable.card` holds what became of every column, `UserTable.notes` the warnings.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportArgumentType=false

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import tyro
from jaxtyping import Bool

from d3mjax.commands import command, encoders, inputs
from d3mjax.commands.command import Categorical, Drop, Id, Label, Regression, Text, TextEncoder
from d3mjax.data import columns, features, labels
from d3mjax.data import files as readers
from d3mjax.data import tables as encoding
from d3mjax.data.columns import CATEGORY, DATE, DROPPED, TEXT, Column
from d3mjax.data.planted import corruptions
from d3mjax.types import Table

LEAST_TRAIN = 100
LEAST, FEW = 64, 256  # validation rows: fewer are refused, or warned of
LOOKED_AT = 512  # validation rows that vectors are made with
MOST_CLASSES = 50
TEXT_WIDTH = 10  # components of free text: each is a column to look for errors in


@dataclass(frozen=True)
class Files:
    """The files of the user, tables or .npz, one row an example. Entries of features may be missing."""

    # Rows to look for errors in.
    train: str
    # Rows of the same kind that nothing is trained on. They may have errors of their own; 64 at least, better 512.
    validation: Annotated[str, tyro.conf.arg(aliases=["--target"])]
    label: Label
    regression: Regression = False
    id: Id = None
    drop: Drop = ""
    categorical: Categorical = ""
    text: Text = ""
    text_encoder: TextEncoder = None


class UserTable(NamedTuple):
    """The user's data, checked."""

    train: Table  # ids are ranks of the names, so the order of rows changes nothing
    y: np.ndarray  # Int[n], or Float[n] with --regression
    validation: Table
    validation_y: np.ndarray  # Int[v], or Float[v]
    names: np.ndarray  # [n], the user's names of the rows
    class_names: tuple[str, ...]  # none with --regression
    raw: pd.DataFrame  # all of --train, as read
    columns: tuple[Column, ...]  # of ``raw``
    origins: Mapping[str, pd.Timestamp]  # of the columns of dates, which are days since then
    notes: tuple[str, ...]  # warnings
    card: Mapping[str, Any] = MappingProxyType({})  # of `inputs.card`


def read(files: Files, *, tables: Mapping[str, pd.DataFrame] | None = None) -> UserTable:
    """Both files, checked; ``tables``: frames ``train`` and ``validation`` instead of files."""
    raw, notes = _frames(files, tables)
    _check(files, raw)
    coded, free = command.names(files.categorical), command.names(files.text)
    of_label = {option: frame[files.label] for option, frame in raw.items()}
    classes = _labels(files, of_label, categorical=files.label in coded)
    names = {option: inputs.names_of(frame, files.id, option) for option, frame in raw.items()}
    reasons = dict.fromkeys(command.names(files.drop), "--drop") | ({files.id: "id"} if files.id else {})
    kinds = columns.infer(raw, categorical=coded, text=free, dropped=reasons | {files.label: "label"})
    typed = {option: columns.typed(frame, kinds) for option, frame in raw.items()}
    kinds = inputs.without_copies(kinds, typed, classes.y, files.label)
    kinds, vectors = encoders.of_texts(files.text_encoder, kinds, typed) if files.text_encoder else (kinds, None)
    made, origins = _columns(kinds, typed, vectors)
    if not made["--train"]:
        raise ValueError(f"--train: found columns {list(raw['--train'])}, expected features that vary beside label, id")
    examples = {option: frame.assign(**{files.label: classes.y[option]}) for option, frame in typed.items()}
    used, more = inputs.unseen(examples["--train"], {"--validation": examples["--validation"]})
    rows = np.flatnonzero(used["--validation"])
    if len(rows) < LEAST:
        raise ValueError(f"--validation: found {len(rows)} rows that --train does not have, expected at least {LEAST}")
    notes = [*notes, *classes.notes, *more, *([_few(len(rows))] if len(rows) < FEW else [])]

    known = {c.name: c.levels for c in kinds if c.kind == CATEGORY}
    parts = {o: encoding.from_columns(a, id=inputs.ranks(names[o]), levels=known) for o, a in made.items()}
    sizes = {option: len(frame) for option, frame in raw.items()}
    facts: dict[str, Any] = {"label": files.label}
    if not files.regression:
        counts = np.bincount(classes.y["--validation"][rows], minlength=len(classes.names)).tolist()
        facts["classes"] = dict(zip(classes.names, counts, strict=True))
    return UserTable(
        parts["--train"],
        classes.y["--train"],
        encoding.take(parts["--validation"], rows),
        classes.y["--validation"][rows],
        names["--train"],
        classes.names,
        raw["--train"],
        kinds,
        origins,
        tuple(notes),
        inputs.card(sizes, kinds, facts, notes),
    )


def _labels(files: Files, columns: Mapping[str, pd.Series], *, categorical: bool) -> labels.Labels:
    """Classes, not too many, or with --regression numbers."""
    classes = inputs.read_labels(columns, files.label, regression=files.regression, categorical=categorical)
    if len(classes.names) > MOST_CLASSES:
        raise ValueError(
            f"--label: found {len(classes.names)} different values in {files.label!r}, expected at most {MOST_CLASSES} "
            "classes; --regression predicts numbers"
        )
    return classes


def looked_at(data: UserTable) -> Bool[np.ndarray, "v"]:
    """The validation rows that vectors are made with: up to `LOOKED_AT`, drawn by id."""
    return corruptions.choose(jax.random.key(0), data.validation.id, min(LOOKED_AT, len(data.validation_y)))


def _frames(files: Files, tables: Mapping[str, pd.DataFrame] | None) -> tuple[inputs.Frames, tuple[str, ...]]:
    """Both sources as frames by option, and notes of the readers; of arrays, those with one number or text a row."""
    sources = {"--train": files.train, "--validation": files.validation}
    if tables is not None or all(readers.is_table(source) for source in sources.values()):
        read = inputs.read(sources, "", tables=tables)
        return read.frames, read.notes
    made = {}
    for option, source in sources.items():
        try:
            arrays = readers.read_arrays(source)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error
        for name, a in arrays.items():
            if a.ndim != 1 and name not in command.names(files.drop):
                raise ValueError(
                    f"{option}: found {a.dtype}{list(a.shape)} in {name!r}, expected one number or text for each row; "
                    f"--drop {name} leaves it out"
                )
        flat = {name: a for name, a in arrays.items() if a.ndim == 1}
        if len(lengths := {len(a) for a in flat.values()}) > 1:
            raise ValueError(f"{option}: found lengths {sorted(lengths)} in {source}, expected one row an example")
        made[option] = pd.DataFrame(flat)
    return made, ()


def _check(files: Files, frames: inputs.Frames) -> None:
    """Every column that an option names is there, and there are enough rows."""
    options = {f"--{name}": command.names(getattr(files, name)) for name in ("drop", "categorical", "text")}
    needed = {"--label": [files.label]}
    inputs.check_named(frames, {"--train": needed | {"--id": [files.id]} | options, "--validation": needed})
    if files.label in {files.id, *options["--drop"], *options["--text"]}:
        raise ValueError(f"--label: found {files.label!r} in --id, --drop or --text, too, expected it in none")
    for (option, frame), least in zip(frames.items(), (LEAST_TRAIN, LEAST), strict=True):
        if len(frame) < least:
            raise ValueError(f"{option}: found {len(frame)} rows, expected at least {least}")


def _columns(
    kinds: tuple[Column, ...], typed: Mapping[str, pd.DataFrame], vectors: encoders.Vectors | None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, pd.Timestamp]]:
    """Columns of every source, and the origins of dates.

    A date becomes days since the first of the training rows, and its month, weekday and hour; free text its first
    components, of n-grams or of ``vectors``, fitted on the training rows. Those that are the same in all training rows
    are left out.
    """
    made: dict[str, dict[str, np.ndarray]] = {option: {} for option in typed}
    origins, train = {}, typed["--train"]
    for column in kinds:
        if column.kind == DROPPED:
            continue
        if column.kind == DATE:
            origins[column.name] = train[column.name].min()
            expand = lambda a, origin=origins[column.name]: _date_parts(a, origin)
        elif column.kind == TEXT:
            texts = train[column.name].tolist()
            reduced = None if vectors is None else encoders.principal(vectors, texts, TEXT_WIDTH)
            (part,) = features.fit([column], train, texts=reduced)
            expand = lambda a, part=part: _components(part, a)
        else:
            expand = lambda a: {str(a.name): a.to_numpy() if a.dtype == np.float64 else a.to_numpy(str)}
        varying = [name for name, a in expand(train[column.name]).items() if pd.Series(a).nunique() > 1]
        for option, frame in typed.items():
            made[option] |= {name: a for name, a in expand(frame[column.name]).items() if name in varying}
    return made, origins


def _date_parts(dates: pd.Series, origin: pd.Timestamp) -> dict[str, np.ndarray]:
    named = {"month": dates.dt.month, "weekday": dates.dt.day_of_week, "hour": dates.dt.hour}
    parts = {f"{dates.name} {name}": part for name, part in named.items()}
    parts = {str(dates.name): (dates - origin) / pd.Timedelta(days=1)} | parts
    return {name: a.to_numpy(np.float64, na_value=np.nan) for name, a in parts.items()}


def _components(part: features.Part, texts: pd.Series) -> dict[str, np.ndarray]:
    x = features.encode((part,), texts.to_frame()).astype(np.float64)
    return dict(zip(part.features[:TEXT_WIDTH], x.T, strict=False))


def _few(size: int) -> str:
    return (
        f"--validation has {size} rows: few. More rows make the diagnosis better, up to {LOOKED_AT}; below {FEW} "
        "expect more missed errors and more false alarms than the figures below."
    )
