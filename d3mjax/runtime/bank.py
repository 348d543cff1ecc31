"""A bank: masks, seeds and outputs of many trained models on disk, made once and read many times.

Everything about model ``j`` derives from its id, and so does its mask: mask id ``j // repeats``, so ``repeats`` seeds
share one. A bank is a directory with ``manifest.json``, on which all its numbers depend, and blocks, one atomic file of
consecutive models each. The hosts of one run fill one directory together; `read` joins banks of several runs.

    subsets = jax.jit(lambda ids: masks.fixed_size(mask_key, ids, n, n // 2))
    run = jax.jit(lambda ids, chosen: trained(ensemble.model_keys(model_key, ids), chosen))
    data = {"train": train, "target": target}
    facts = bank.manifest(key, subsets, data, asdict(config), num_targets=t, repeats=20)
    found = bank.fill(directory, facts, subsets, run, np.arange(4000), block=200)  # again: resumes; more ids: extends
    linear, info = datamodels.fit_lasso(bank.masks(found), bank.outputs(found), heldout)

Every block holds the manifest and a checksum (`d3mjax.runtime.blocks`): damaged blocks and blocks of another bank are
recognised.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from d3mjax.runtime import blocks, hosts, runs, store
from d3mjax.runtime.store import digest
from d3mjax.types import AnyArray

_MANIFEST = "manifest.json"


class Bank(NamedTuple):
    """Models by id; their masks and outputs stay on disk until asked for."""

    manifest: Mapping[str, Any]
    ids: np.ndarray  # Int[m], distinct
    mask_ids: np.ndarray  # Int[m]; models of one mask id were trained on the same subset
    losses: np.ndarray  # Float[m], of the last step; NaN where unknown
    place: np.ndarray  # Int[m 2], part and row in it
    parts: tuple[Callable[[], tuple[np.ndarray, np.ndarray]], ...]  # masks (booleans or packed bits) and outputs


def manifest(
    key: Key[Array, ""],
    subsets: Callable[[Int[AnyArray, "b"]], Bool[AnyArray, "b n"]],
    data: Mapping[str, PyTree],
    recipe: Mapping[str, Any],
    *,
    num_targets: int,
    repeats: int = 1,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The facts that a bank depends on, as plain JSON: key, ``recipe``, hashes of ``data`` and of the first masks.

    ``subsets(mask_ids)`` are the masks; ``repeats`` models share each. ``dtype`` of the stored outputs: float32, or
    float16 with three digits in half the space.

    Raises:
      ValueError: if ``repeats`` is below 1 or ``dtype`` is neither.
    """
    if repeats < 1 or dtype not in ("float32", "float16"):
        raise ValueError(f"repeats, dtype: found {repeats}, {dtype}, expected at least 1, and float32 or float16")
    first = np.asarray(subsets(np.arange(8)))
    facts = {
        "key": {"data": jax.random.key_data(key), "impl": str(jax.random.key_impl(key))},
        "data": {name: digest(tree) for name, tree in data.items()},
        "masks": digest(first),
        "n": first.shape[1],
        "t": num_targets,
        "repeats": repeats,
        "dtype": dtype,
        "recipe": recipe,
    }
    return json.loads(store.json_text(facts))


def fill(
    directory: str | Path,
    manifest: Mapping[str, Any],
    subsets: Callable[[Int[AnyArray, "b"]], Bool[AnyArray, "b n"]],
    run: Callable[[Int[AnyArray, "b"], Bool[AnyArray, "b n"]], tuple[AnyArray, AnyArray]],
    ids: Int[AnyArray, "m"],
    *,
    block: int,
    progress: Callable[[int], object] = lambda count: None,
) -> Bank:
    """The models ``ids``, read if ``directory`` has them, otherwise made by ``run``.

    ``run(ids [b], masks [b n]) -> (outputs [b t], losses [b s])``; ``subsets`` are those of the manifest.
    ``run`` always sees ``block`` ids: a part of a block is filled up by repeating its last. Blocks begin at multiples
    of ``block``. Where there are several hosts all call this, missing blocks are dealt out, and all return when all are
    done; ``run`` must keep to the devices of its host. A kill loses the current block; damaged blocks are made again.
    ``progress`` is called with the number of models read, then with that of each block made by this host.

    Raises:
      ValueError: ids that repeat, are negative or none at all; ``block`` below 1; a directory of another manifest,
        naming the fields; masks or outputs of wrong shape; masks that keep all or nothing; hosts whose manifests
        differ, or that do not share the directory.
      FloatingPointError: naming models that diverged, or whose outputs are not finite as stored.
      OSError: on every host, if one cannot write there, before any work starts.
    """
    directory, ids = Path(directory), _distinct(ids)
    if block < 1 or not len(ids):
        raise ValueError(f"block, ids: found a block of {block} for {len(ids)} models, expected at least 1 of each")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"ids: found {ids.min()}..{ids.max()}, expected 0..{2**31 - 1}, which keys can tell apart")
    hosts.agree({"manifest": manifest, "ids": digest(ids), "block": block})
    hosts.check_shared(directory)
    hosts.on_every_host(lambda: runs.bind(directory, manifest, _MANIFEST, results=blocks.PATTERN))
    good, damaged = hosts.on_every_host(lambda: blocks.scan(directory, manifest))

    def mend():
        for path in damaged:  # block sizes may have changed, and with them the name it will have
            if hosts.leads() and np.isin(blocks.ids_in_name(path), ids).all():
                path.unlink()

    hosts.on_every_host(mend)  # before anybody writes a block of the name of a damaged one
    missing = np.setdiff1d(ids, np.concatenate([np.zeros(0, int), *(head[0] for head in good.values())]))
    progress(len(ids) - len(missing))
    hosts.agree({"missing": digest(missing)})  # a slow file server could show hosts different files
    for number, part in enumerate(blocks.runs(missing, block)):
        if number % jax.process_count() == jax.process_index():
            blocks.write(directory, manifest, blocks.train(manifest, subsets, run, part, block=block))
            progress(len(part))
    hosts.wait("bank-filled")
    return take(read(directory, skip_damaged=True), ids)


def read(*directories: str | Path, skip_damaged: bool = False) -> Bank:
    """All models of banks with one manifest, ordered by id; checks every block. A model found twice counts once.

    Raises:
      ValueError: different manifests, naming the fields; damaged blocks, naming them, unless ``skip_damaged``; an id
        whose models differ; no models at all.
    """
    found, damaged = _collect(directories)
    if damaged and not skip_damaged:
        raise ValueError(
            f"damaged blocks: {blocks.named(damaged)}; `fill` makes them anew, skip_damaged reads the rest"
        )
    if not len(found.ids):
        raise ValueError(f"directories: found no models in {blocks.named(directories)}")
    again, differ = _duplicates(found)
    if len(differ):
        raise ValueError(f"ids: found different models with the ids {blocks.ranges(differ)}")
    return _rows(found, np.delete(np.arange(len(found.ids)), again))


def read_published(masks: str | Path, outputs: str | Path, *, completed: str | Path | None = None) -> Bank:
    """Published matrices, rows numbered from 0: ``masks`` Bool[m n] and ``outputs`` Float[m t], in `.npy` files.

    Layouts: ``train_masks_50pct.npy`` and ``test_margins_50pct.npy`` of `MadryLab/datamodels-data`; ``masks.npy``,
    ``margins.npy`` and, saying which rows were ever written, ``_completed.npy`` of a `MadryLab/datamodels` store.

    Raises:
      ValueError: if the files do not hold such matrices with equally many rows.
    """
    part = partial(_open_matrices, masks, outputs)
    x, y = part()
    if x.ndim != 2 or x.dtype != bool or y.ndim != 2 or y.dtype.kind != "f" or len(x) != len(y):
        found = f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
        raise ValueError(f"masks, outputs: found {found}, expected bool[m, n] and float[m, t]")
    ids = np.arange(len(x)) if completed is None else np.flatnonzero(np.load(completed))
    facts = {"n": x.shape[1], "t": y.shape[1], "dtype": str(y.dtype), "masks": str(masks), "outputs": str(outputs)}
    place = np.stack([np.zeros_like(ids), ids], 1)
    return Bank(facts, ids, ids, np.full(len(ids), np.nan, np.float32), place, (part,))


def take(bank: Bank, ids: Int[AnyArray, "k"]) -> Bank:
    """The models ``ids``, in that order. Raises ValueError naming ids that repeat or that the bank does not have."""
    ids, order = _distinct(ids), np.argsort(bank.ids)
    missing = np.setdiff1d(ids, bank.ids)
    if len(missing):
        raise ValueError(f"ids: found {blocks.ranges(missing)}, which the bank does not have")
    return _rows(bank, order[np.searchsorted(bank.ids, ids, sorter=order)])


def batches(bank: Bank, *, size: int) -> Iterator[Bank]:
    """The bank in pieces of at most ``size`` models, in order, to be read one after the other."""
    for first in range(0, len(bank.ids), size):
        yield _rows(bank, slice(first, first + size))


def masks(bank: Bank) -> Bool[np.ndarray, "m n"]:
    """The masks of all models of a bank, in memory: one byte an entry."""
    stored = _gather(bank, 0)
    return stored if stored.dtype == bool else np.unpackbits(stored, axis=1, count=bank.manifest["n"]).view(bool)


def outputs(bank: Bank) -> Float[np.ndarray, "m t"]:
    """The outputs of all models of a bank, in memory, in their stored dtype."""
    return _gather(bank, 1)


def verify(*directories: str | Path, ids: Sequence[int] | Int[AnyArray, "k"] | None = None) -> list[str]:
    """The faults of a bank, one sentence each; empty if there are none.

    Checks for damaged blocks, missing ids (of ``ids``, or between the first and the last there is), ids found twice,
    outputs that are not finite or, for a target, constant, and masks that keep all or nothing. Never holds more than
    a thousand models. Raises ValueError for different manifests, naming the fields.
    """
    found, damaged = _collect(directories)
    again, differ = _duplicates(found)
    expected = np.asarray(ids if ids is not None else range(found.ids[0], found.ids[-1] + 1) if len(found.ids) else [])
    low, high, bad, trivial = np.inf, -np.inf, [], []
    for batch in batches(found, size=1000):
        y, sizes = outputs(batch), masks(batch).sum(1)
        low, high = np.minimum(low, y.min(0)), np.maximum(high, y.max(0))
        bad += batch.ids[~np.isfinite(y).all(1)].tolist()
        trivial += batch.ids[(sizes == 0) | (sizes == found.manifest["n"])].tolist()
    findings = {
        "damaged blocks: {}": blocks.named(damaged),
        "models: {}": "" if len(found.ids) else "none at all",
        "missing ids: {}": blocks.ranges(np.setdiff1d(expected, found.ids)),
        "ids found twice, the same: {}": blocks.ranges(np.setdiff1d(found.ids[again], differ)),
        "ids found twice, different: {}": blocks.ranges(differ),
        "outputs not finite for ids: {}": blocks.ranges(bad),
        "targets constant over models: {}": blocks.ranges(np.flatnonzero(low == high)) if len(found.ids) > 1 else "",
        "masks that keep all or nothing for ids: {}": blocks.ranges(trivial),
    }
    return [sentence.format(where) for sentence, where in findings.items() if where]


def _collect(directories):
    """All whole blocks as one bank ordered by id, which may have ids twice; and the paths of damaged blocks."""
    directories = [Path(directory) for directory in directories]
    common = store.read_json(directories[0] / _MANIFEST)
    good, damaged = {}, []
    for directory in directories:
        if differ := store.differences(common, store.read_json(directory / _MANIFEST)):
            raise ValueError(f"{directories[0]} holds another bank than {directory}: {differ}")
        more, broken = blocks.scan(directory, common)
        good, damaged = good | more, damaged + broken
    nothing = (np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))
    ids, mask_ids, losses = (np.concatenate(column) for column in zip(nothing, *good.values(), strict=True))
    place = [(part, row) for part, head in enumerate(good.values()) for row in range(len(head[0]))]
    parts = tuple(partial(blocks.open_block, path) for path in good)
    found = Bank(common, ids, mask_ids, losses, np.array(place, int).reshape(-1, 2), parts)
    return _rows(found, np.argsort(ids, kind="stable")), damaged


def _open_matrices(masks, outputs):
    return np.load(masks, mmap_mode="r"), np.load(outputs, mmap_mode="r")


def _rows(bank, rows):
    return bank._replace(**{name: getattr(bank, name)[rows] for name in ("ids", "mask_ids", "losses", "place")})


def _gather(bank, which) -> np.ndarray:
    """One kind of array of all models; files are open only while they are read, for there may be thousands."""
    like = bank.parts[0]()[which]
    out = np.empty((len(bank.ids), like.shape[1]), like.dtype)
    part, row = bank.place.T
    order = np.argsort(part, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        if len(rows):
            out[rows] = bank.parts[part[rows[0]]]()[which][row[rows]]
    return out


def _duplicates(bank):
    """Rows of a bank ordered by id that repeat the id before, and the ids where they differ from it in any bit."""
    first = np.flatnonzero(bank.ids[1:] == bank.ids[:-1])
    differ = [np.zeros(0, int)]
    for a, b in zip(*(batches(_rows(bank, rows), size=1000) for rows in (first, first + 1)), strict=True):
        pairs = ((f(a), f(b)) for f in (masks, outputs, lambda bank: bank.losses[:, None]))
        same = [(x.view(np.uint8) == y.view(np.uint8)).all(1) for x, y in pairs]
        differ.append(a.ids[~np.all(same, axis=0)])
    return first + 1, np.concatenate(differ)


def _distinct(ids):
    ids = np.asarray(ids, np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"ids: found {blocks.ranges(values[counts > 1])} more than once, expected distinct ids")
    return ids
