"""The user's files as splits: what is read, how groups are crossed, and what is refused.

Everything that can be wrong is a ``ValueError`` that names the option of the command, what was found and what is
expected, raised before any training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import tyro

from d3mjax.commands import command, encoders, inputs
from d3mjax.commands.command import Categorical, Drop, Id, Label, Regression, Text, TextEncoder
from d3mjax.data import columns, features, images, label_scale, labels, memberships, splits
from d3mjax.data.columns import TEXT, Column
from d3mjax.data.label_scale import LabelScale
from d3mjax.types import Split

CHUNK = 10_000  # rows standardised at once
SIZE, ENCODED_SIZE = 64, 224  # of images, and of those that a pretrained network reads


@dataclass(frozen=True)
class Files:
    """What is read: tables (.csv .tsv .parquet .feather .xlsx .jsonl ...), .npz files, or tfds:NAME:SPLIT."""

    # Training examples. Their groups are not needed; if they are there, one plot shows them.
    train: str
    # Examples apart from --train, as in a validation set, with known groups unless --auto. Every seed divides
    # them anew, evenly in groups and classes: half is scored on, a quarter selects how many examples go, and a quarter
    # reports.
    target: Annotated[str, tyro.conf.arg(name="validation", aliases=["--target"])]
    label: Label
    regression: Regression = False
    # Column that holds the group in which the classifier must not fail. Several, as in sex,race, are crossed; the
    # label may be one of them. Numbers, a label that is one too, are cut into quantiles by age:4. No feature unless
    # --group-as-feature.
    group: str | None = None
    # Columns of yes and no that may overlap, as in black,muslim: whether any is yes is crossed with --group.
    any_of: str = ""
    # Groups of fewer targets are merged into "other"; where that leaves fewer still, the command stops.
    min_group: int = 10
    # Train on the columns of --group and --any-of, too.
    group_as_feature: bool = False
    # Instead of --group, where the groups are unknown: every class of the targets is split in two by what the trained
    # models get wrong, and the two sides are the groups (AUTO-D3M). Where no split can be relied on, nothing is
    # removed, and the advice gives the reason. Selection and report then go by the worst class, because the true groups
    # stay unknown. Group labels for a few dozen targets of each group are better. Takes memory for a number for every
    # pair of target and training example.
    auto: bool = False
    # Examples for the report alone, with groups as in --validation; two thirds of the targets then score and a third
    # selects.
    test: str | None = None
    id: Id = None
    drop: Drop = ""
    categorical: Categorical = ""
    text: Text = ""
    text_encoder: TextEncoder = None
    # Array of an .npz file, or feature of TFDS, with the features: [n, d], or images [n, h, w] or [n, h, w, c]. Of
    # tables, all other columns are features.
    feature: str = "x"
    # Folder of images, named by a column of the tables. They are the features then, and the other columns are not.
    images: str | None = None
    # File of ResNet weights in safetensors, as torchvision and timm name them, or OWNER/NAME@REVISION of the Hugging
    # Face hub. The images become its features, which stay as they are, instead of their pixels. Needs the extra hub.
    image_encoder: str | None = None
    # Side of the square to which images are resized. If not given: 64, with --image-encoder 224.
    image_size: int | None = None
    # Leave numbers as they are, instead of standardising them by mean and deviation of the training examples.
    raw: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The terms to be crossed, as they are given."""
        return command.names(self.group or "")

    @property
    def pixels(self) -> bool:
        """Whether features are the pixels of a folder of images."""
        return self.images is not None and self.image_encoder is None

    @property
    def sources(self) -> dict[str, str]:
        """Source by option."""
        return {"--train": self.train, "--validation": self.target} | ({"--test": self.test} if self.test else {})


class UserData(NamedTuple):
    """The user's data, checked. Ids are row numbers over training examples, then targets, then test examples.

    With ``--auto`` the groups are the classes. With ``--regression`` labels are floats, standardised by ``scale``.
    """

    train: Split
    target: Split
    test: Split | None
    names: np.ndarray  # [n], ids of the training examples in the user's file
    target_names: np.ndarray  # [t], and of the targets
    class_names: tuple[str, ...]  # none with --regression
    group_names: tuple[str, ...]
    card: Mapping[str, Any] = MappingProxyType({})  # of `inputs.card`
    examples: Callable[[Sequence[int]], Any] | None = None  # rows of train -> texts, or pictures [k h w 3], for people
    scale: LabelScale | None = None  # of the labels of a regression

    @property
    def num_classes(self) -> int | None:
        """None for a regression."""
        return None if self.scale else len(self.class_names)


class Features(NamedTuple):
    """Features of every source by option, and what the report shows of them."""

    x: dict[str, np.ndarray]
    columns: tuple[Column, ...]  # none of images and arrays
    used: dict[str, np.ndarray]  # the rows of the targets that score and report
    notes: list[str]
    examples: Callable[[Sequence[int]], Any] | None


def read(files: Files, *, tables: Mapping[str, pd.DataFrame] | None = None) -> UserData:
    """All sources, checked, as features; ``tables``: frames ``train``, ``validation``, ``test`` instead of files."""
    _check_groups_asked(files)
    sources = inputs.read(files.sources, files.feature, tables=tables)
    if sources.arrays is not None and files.images:
        raise ValueError("--images: found arrays, expected tables of which a column names the images")
    if files.image_encoder and not files.images:
        raise ValueError("--image-encoder: found no --images, expected the folder of the images")
    if files.group_as_feature and (sources.arrays is not None or files.images):
        raise ValueError("--group-as-feature: found no columns that are features, expected tables without --images")
    frames, sizes = sources.frames, {option: len(frame) for option, frame in sources.frames.items()}
    group_columns = _check_columns(files, frames)
    coded = command.names(files.categorical)
    of_label: dict[str, Any] = {option: frame[files.label] for option, frame in frames.items()}
    classes = inputs.read_labels(of_label, files.label, regression=files.regression, categorical=files.label in coded)
    groups = _classes_as_groups(classes) if files.auto else _groups(files, frames, group_columns, sizes)
    names = {option: inputs.names_of(frame, files.id, option) for option, frame in frames.items()}
    if files.images is None and sources.arrays is None:
        made = _table_features(files, frames, classes.y, set(group_columns))
    else:
        made = _other_features(files, frames, sources.arrays)

    y, scale = _standardised(classes.y) if files.regression else (classes.y, None)
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    whole = {
        option: Split(made.x[option], y[option], groups.group[option], first[option] + np.arange(size, dtype=np.int32))
        for option, size in sizes.items()
    }
    used = made.used
    parts = {o: splits.take(part, np.flatnonzero(used[o])) if o in used else part for o, part in whole.items()}
    for option, part in parts.items():
        splits.check_split(part, name=option)
        if option != "--train":
            _check_sizes(option, part, groups.names, len(parts), "classes" if files.auto else "groups")
    counts = lambda codes, known: dict(zip(known, np.bincount(codes, minlength=len(known)).tolist(), strict=True))
    target = parts["--validation"]
    facts: dict[str, Any] = {"label": files.label}
    facts |= {} if scale else {"classes": counts(target.y, classes.names)}
    facts |= {} if files.auto else {"groups": counts(target.group, groups.names)}
    notes = [*sources.notes, *classes.notes, *groups.notes, *made.notes]
    notes += [_group_note(files, group_columns)] if made.columns else []
    return UserData(
        parts["--train"],
        target,
        parts.get("--test"),
        names["--train"],
        names["--validation"][used["--validation"]],
        classes.names,
        groups.names,
        inputs.card(sizes, made.columns, facts, list(filter(None, notes))),
        made.examples,
        scale,
    )


def flat(data: UserData) -> UserData:
    """Features as ``[n, d]``, of which an MLP can be made."""
    return data._replace(**{k: part._replace(x=part.x.reshape(len(part.y), -1)) for k, part in _parts(data).items()})


def arrays(data: UserData) -> dict[str, np.ndarray]:
    """All arrays of the splits by name, for their digest."""
    return {f"{k}.{name}": a for k, part in _parts(data).items() for name, a in part._asdict().items()}


def _parts(data: UserData) -> dict[str, Split]:
    parts = {"train": data.train, "target": data.target, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def _check_groups_asked(files: Files) -> None:
    """Groups are given, or are to be found, and not both."""
    if files.auto and files.regression:
        raise ValueError(
            "--auto: found --regression, expected classes: groups that are searched for are judged by the worst class, "
            f"and numbers have none; give --group, such as quantiles of the label, --group '{files.label}:4'"
        )
    given = files.groups or command.names(files.any_of)
    if files.auto and given:
        raise ValueError("--group, --auto: found both, expected --group, or --auto if the groups are unknown")
    if not files.auto and not given:
        raise ValueError(
            "--group: found none, expected the column of --validation that holds the group of an example, as in "
            "--group sex, or several to be crossed, as in --group sex,race; or --auto, if the groups are unknown"
        )


def _standardised(y: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], LabelScale]:
    """Labels by option, standardised by those of --train, and their scale."""
    try:
        scale = label_scale.fit(y["--train"])
    except ValueError as error:
        raise ValueError(f"--label: {error}, in --train") from error
    return {option: label_scale.standardise(scale, a) for option, a in y.items()}, scale


def _check_columns(files: Files, frames: inputs.Frames) -> dict[str, int | None]:
    """Every column that an option names is there; returns those of --group with their numbers of quantiles."""
    group_columns = memberships.columns_of(files.group or "", list(frames["--validation"]))
    for_all, any_of = {"--label": [files.label]}, command.names(files.any_of)
    for_groups = {"--group": list(group_columns), "--any-of": any_of}
    options = {f"--{name}": command.names(getattr(files, name)) for name in ("drop", "categorical", "text")}
    inputs.check_named(
        frames,
        {
            "--train": for_all | {"--id": [files.id]} | options,
            "--validation": for_all | for_groups,
            "--test": for_all | for_groups,
        },
    )
    if files.label in {files.id, *options["--drop"]}:
        raise ValueError(f"--label: found {files.label!r} in --id or --drop, too, expected it in none")
    return group_columns | dict.fromkeys(any_of)


def _classes_as_groups(classes: labels.Labels) -> memberships.Groups:
    return memberships.Groups(classes.y, classes.names, ())


def _groups(
    files: Files, frames: inputs.Frames, columns: Mapping[str, int | None], sizes: Mapping[str, int]
) -> memberships.Groups:
    any_of = command.names(files.any_of)
    factors = [memberships.factor(frames, name, bins) for name, bins in columns.items() if name not in any_of]
    factors += [memberships.any_of(frames, any_of)] if any_of else []
    return memberships.cross(factors, sizes, min_group=files.min_group)


def _table_features(
    files: Files, frames: inputs.Frames, y: Mapping[str, np.ndarray], group_columns: set[str]
) -> Features:
    """Features of the columns; empties ``frames``."""
    reasons = dict.fromkeys(command.names(files.drop), "--drop")
    reasons |= {} if files.group_as_feature else dict.fromkeys(group_columns, "group")
    reasons |= {files.label: "label"} | ({files.id: "id"} if files.id else {})
    coded, free = command.names(files.categorical), command.names(files.text)
    kinds = columns.infer(frames, categorical=coded, text=free, dropped=reasons)
    typed = {option: columns.typed(frames.pop(option), kinds) for option in list(frames)}  # text is the larger
    train = typed["--train"]
    kinds = inputs.without_copies(kinds, typed, y, files.label)
    if all(column.kind == "dropped" for column in kinds):
        raise ValueError(
            f"--train: found columns {[c.name for c in kinds]}, expected features beside label, groups and id"
        )
    used, notes = inputs.unseen(train, {option: frame for option, frame in typed.items() if option != "--train"})
    kinds, vectors = encoders.of_texts(files.text_encoder, kinds, typed) if files.text_encoder else (kinds, None)
    encoder = features.fit(kinds, train, standardise=not files.raw, texts=vectors)
    x = {option: features.encode(encoder, typed[option]) for option in typed}
    free = train[[column.name for column in kinds if column.kind == TEXT]]
    texts = lambda rows: [" | ".join(texts) for texts in free.iloc[list(rows)].itertuples(index=False, name=None)]
    return Features(x, kinds, used, notes, texts if free.shape[1] else None)


def _other_features(files: Files, frames: inputs.Frames, arrays: Mapping[str, np.ndarray] | None) -> Features:
    """Features of arrays, or of images."""
    notes, examples = [], None
    if arrays is None:
        arrays, notes, examples = _images(files, frames)
    x = _array_features(arrays, raw=files.raw)
    flat = {option: pd.DataFrame(a.reshape(len(a), -1)) for option, a in x.items()}
    used, more = inputs.unseen(flat.pop("--train"), flat)
    return Features(x, (), used, [*notes, *more], examples)


def _images(
    files: Files, frames: inputs.Frames
) -> tuple[dict[str, np.ndarray], list[str], Callable[[Sequence[int]], Any] | None]:
    """Pixels in [0, 1], [n, h, w, 3], of every source; or features, a note on them, and what shows the images."""
    directory, size = files.images or "", files.image_size or (SIZE if files.pixels else ENCODED_SIZE)
    if size < 8:
        raise ValueError(f"--image-size: found {size}, expected at least 8")
    column = images.name_column(frames["--train"], directory)
    inputs.check_named(frames, {option: {"--images": [column]} for option in frames})
    names = {option: frame[column].tolist() for option, frame in frames.items()}
    try:
        if files.image_encoder is None:
            return {option: images.read(directory, part, size=size) for option, part in names.items()}, [], None
        x, note = encoders.of_images(files.image_encoder, directory, names, size=size)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("--") else f"--images: {error}") from error
    show = lambda rows: images.read(directory, [names["--train"][i] for i in rows], size=SIZE)
    return x, [note], show


def _array_features(arrays: Mapping[str, np.ndarray], *, raw: bool) -> dict[str, np.ndarray]:
    """float32 [n, ...], less the training mean, over the training deviation: per column, or over all pixels of images.

    Columns that are constant in training become zero, whatever they are elsewhere.
    """
    for option, a in arrays.items():
        if not np.isfinite(a).all():
            row = np.argwhere(~np.isfinite(a))[0, 0]
            raise ValueError(f"{option}: found NaN or infinity in the features, first in row {row}, expected numbers")
    train = arrays["--train"]
    axes = tuple(range(train.ndim)) if train.ndim > 2 else (0,)
    mean, std = train.mean(axes, np.float64), train.std(axes, np.float64)
    scale = np.where(train.min(axes) < train.max(axes), std, np.inf)
    mean, scale = (0.0, 1.0) if raw else (mean, scale)
    standardised = {}
    for option, a in arrays.items():
        x = np.empty(a.shape, np.float32)
        for rows in (slice(i, i + CHUNK) for i in range(0, len(a), CHUNK)):
            x[rows] = (a[rows] - mean) / scale  # in float64
        standardised[option] = x
    return standardised


def _check_sizes(option: str, part: Split, names: Sequence[str], num_sources: int, kind: str) -> None:
    """Every group is in every part that scores, selects or reports."""
    parts, least = ("score and select", 2) if num_sources > 2 else ("score, select and report", 3)
    sizes = dict(zip(names, splits.group_sizes(part, len(names)).tolist(), strict=True))
    if few := {name: size for name, size in sizes.items() if size < (least if option == "--validation" else 1)}:
        raise ValueError(f"{option}: found so few examples of {kind}: {few}; expected at least {least}, to {parts}")


def _group_note(files: Files, columns: Mapping[str, int | None]) -> str:
    if not columns:
        return ""
    names = ", ".join(name for name in columns if name != files.label)
    outcome = (
        "features, too" if files.group_as_feature else "left out of the features; --group-as-feature trains on them"
    )
    return f"The columns of the groups ({names}) are {outcome}." if names else ""
