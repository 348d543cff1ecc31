"""One block of a bank: a checked table of some models, in one file that holds the manifest of its bank.

The file is a `.npy` of records (``id``, ``mask_id``, ``loss``, ``outputs [t]``, ``masks`` as packed bits), which NumPy
reads without this package, followed by the manifest as JSON and a checksum (`store.seal`).
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from d3mjax.runtime import store
from d3mjax.runtime.sweep import run_block
from d3mjax.types import AnyArray

PATTERN = "block-*.npy"


def train(
    manifest: Mapping[str, Any], subsets: Callable, run: Callable, ids: Int[np.ndarray, "b"], *, block: int
) -> np.ndarray:
    """Records of at most ``block`` models; arguments and errors are those of `bank.fill`."""

    def both(ids):
        chosen = subsets(ids // manifest["repeats"])
        made, losses = run(ids, chosen)
        return (chosen, made), losses

    (chosen, made), losses = run_block(both, ids, block=block)
    for name, found, width in (("masks", chosen, manifest["n"]), ("outputs", made, manifest["t"])):
        if found.shape != (len(ids), width):
            raise ValueError(f"{name}: found shape {found.shape}, expected {(len(ids), width)}")
    if chosen.dtype != bool:
        raise ValueError(f"masks: found {chosen.dtype}, expected booleans")
    sizes = chosen.sum(1)
    if (trivial := (sizes == 0) | (sizes == manifest["n"])).any():
        raise ValueError(f"masks: found all or no examples kept for ids {ranges(ids[trivial])}, expected a subset")
    with np.errstate(over="ignore"):
        made = made.astype(manifest["dtype"])
    if (bad := ~np.isfinite(made).all(1)).any():
        raise FloatingPointError(f"outputs: found values not finite in {made.dtype} for ids {ranges(ids[bad])}")
    fields = {"id": ids, "mask_id": ids // manifest["repeats"], "loss": losses[:, -1].astype(np.float32)}
    fields |= {"outputs": made, "masks": np.packbits(chosen, axis=1)}
    layout = [(name, value.dtype, value.shape[1:]) for name, value in fields.items()]
    table = np.zeros(len(ids), np.dtype(layout, align=True))
    for name, value in fields.items():
        table[name] = value
    return table


def write(directory: Path, manifest: Mapping[str, Any], table: np.ndarray) -> None:
    """Write the records of a block, whole or not at all, under a name made of the first and the last id."""
    buffer = io.BytesIO()
    np.save(buffer, table)
    payload = buffer.getvalue() + store.json_text(manifest, sort_keys=True).encode()
    first, last = table["id"][[0, -1]]
    store.write_bytes(directory / f"block-{first:09d}-{last:09d}.npy", store.seal(payload))


def scan(directory: Path, manifest: Mapping[str, Any]) -> tuple[dict[Path, tuple[np.ndarray, ...]], list[Path]]:
    """Ids, mask ids and losses of every whole block by path, and the paths of damaged blocks; reads every byte once.

    Raises:
      ValueError: if a block belongs to another manifest, naming what differs.
    """
    good, damaged = {}, []
    for path in sorted(directory.glob(PATTERN)):
        payload = store.unseal(path.read_bytes())
        if payload is None:
            damaged.append(path)
            continue
        table = np.load(path, mmap_mode="r")
        if differ := store.differences(json.loads(payload[table.offset + table.nbytes :]), manifest):
            raise ValueError(f"{path} belongs to another bank: {differ}")
        good[path] = tuple(np.array(table[name]) for name in ("id", "mask_id", "loss"))
    return good, damaged


def open_block(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Packed masks and outputs of a block, mapped into memory."""
    table = np.load(path, mmap_mode="r")
    return table["masks"], table["outputs"]


def ids_in_name(path: Path) -> Int[np.ndarray, "b"]:
    """The ids that a block holds by its name, for blocks that cannot be read."""
    first, last = map(int, path.stem.split("-")[1:])
    return np.arange(first, last + 1)


def runs(ids: Int[np.ndarray, "m"], block: int) -> list[Int[np.ndarray, "_"]]:
    """Ascending ids cut where they leave a gap and at multiples of ``block``."""
    cuts = (np.diff(ids) != 1) | (np.diff(ids // block) != 0)
    return [run for run in np.split(ids, np.flatnonzero(cuts) + 1) if len(run)]


def ranges(ids: Shaped[AnyArray, "k"] | Sequence[int]) -> str:
    """Ids as text, such as ``3-7, 9``; empty if there are none."""
    found = runs(np.unique(np.asarray(ids, np.int64)), 2**62)
    return named([f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found])


def named(values: Sequence[Any]) -> str:
    """The first few, and how many more there are."""
    show = 5
    more = f" and {len(values) - show} more" if len(values) > show else ""
    return ", ".join(map(str, values[:show])) + more
