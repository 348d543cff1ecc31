"""Outputs of frozen networks, computed once and kept on disk by the content of weights, options and data.

    features = make_features(model, variables, directory, name="minilm", config=config, batches=tokens.by_length)
    x = features(tokens)

Rows are computed and written in blocks, each file whole or absent and checked when it is read: a run that was killed
goes on after its last block. Another value in weights, options or data is another digest, hence other files.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, PyTree

from d3mjax.data import atomic, digests
from d3mjax.types import AnyArray, Model

Batches = Callable[[PyTree[AnyArray]], Iterator[tuple[Int[np.ndarray, " b"], PyTree[AnyArray]]]]
"""``x -> (rows [b], x of these rows)`` until every row was there; more rows than ``b`` in an x are padding."""


def in_order(x: PyTree[AnyArray], *, size: int = 64) -> Iterator[tuple[Int[np.ndarray, " b"], PyTree[AnyArray]]]:
    """Batches of ``size`` rows as they come; the last row pads the last batch."""
    count = len(jax.tree.leaves(x)[0])
    for begin in range(0, count, size):
        rows = np.arange(begin, begin + size)
        yield rows[rows < count], jax.tree.map(partial(np.take, indices=np.minimum(rows, count - 1), axis=0), x)


def make_features(
    model: Model,
    variables: PyTree[AnyArray],
    directory: str | Path,
    *,
    name: str,
    config: Any,
    batches: Batches = in_order,
    block: int = 1024,
    progress: Callable[[int], object] = lambda rows: None,
) -> Callable[[PyTree[AnyArray]], Float32[np.ndarray, "n *d"]]:
    """``x -> outputs [n *d]`` of ``model`` in evaluation, from the files in ``directory`` where they are there.

    Every row must have its output by itself: batch norm in training would not do. ``config`` are the options of the
    model, a tree, functions by their names. ``name`` stands for its functions, which have no digest: another read-out
    of the same weights needs another name. ``block`` rows are in memory at once, and one file; ``progress`` counts the
    rows that are done.

    The outputs raise:
      FloatingPointError: an output that is not finite, naming its row; nothing of its block is written.
    """
    options = repr(jax.tree.map(lambda a: getattr(a, "__qualname__", a), config))
    of_network = f"{digests.digest(variables)} {options}"
    on_device, apply = jax.device_put(variables), jax.jit(lambda variables, x: model.apply(variables, x)[0])

    def compute(x: PyTree[AnyArray], first: int, count: int) -> np.ndarray:
        of_block = jax.tree.map(lambda a: np.asarray(a)[first : first + block], x)
        parts = {}
        for rows, batch in batches(of_block):
            made = np.asarray(apply(on_device, batch), np.float32)[: len(rows)]
            parts |= dict(zip(rows.tolist(), made, strict=True))
        made = np.stack([parts[row] for row in range(min(block, count - first))])
        if not (finite := np.isfinite(made.reshape(len(made), -1)).all(1)).all():
            raise FloatingPointError(f"{name}: found an output that is not finite in row {first + np.argmin(finite)}")
        return made

    def features(x: PyTree[AnyArray]) -> np.ndarray:
        count, blocks = len(jax.tree.leaves(x)[0]), []
        key = hashlib.sha256(f"{of_network} {digests.digest(x)}".encode()).hexdigest()[:16]
        run = Path(directory) / f"{name}-{key}-{block}"
        run.mkdir(parents=True, exist_ok=True)
        for first in range(0, count, block):
            path = run / f"{first:09d}.npy"
            stored = _read(path)
            blocks.append(compute(x, first, count) if stored is None else stored)
            if stored is None:
                _write(path, blocks[-1])
            progress(len(blocks[-1]))
        return np.concatenate(blocks)

    return features


def _write(path: Path, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    atomic.write_bytes(path, atomic.seal(buffer.getvalue()))


def _read(path: Path) -> np.ndarray | None:
    """The rows of a file; None if it is missing or damaged."""
    payload = atomic.unseal(path.read_bytes()) if path.exists() else None
    return None if payload is None else np.load(io.BytesIO(payload), allow_pickle=False)
