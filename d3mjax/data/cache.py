"""Outputs of frozen networks, computed once and kept on disk by the content of weights and data.

    x = features(model, variables, tokens, directory, name="minilm", batches=tokens.by_length)

Rows are computed and written in blocks, each file whole or absent and checked when it is read: a run that was killed
goes on after its last block. Another value in the weights or the data is another digest, hence other files.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

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
        yield rows[rows < count], jax.tree.map(lambda a: np.asarray(a)[np.minimum(rows, count - 1)], x)  # noqa: B023


def features(
    model: Model,
    variables: PyTree[AnyArray],
    x: PyTree[AnyArray],
    directory: str | Path,
    *,
    name: str,
    batches: Batches = in_order,
    block: int = 1024,
    progress: Callable[[int], object] = lambda rows: None,
) -> Float32[np.ndarray, "n *d"]:
    """Outputs ``[n *d]`` of ``model`` in evaluation, from the files in ``directory`` where they are there.

    Every row must have its output by itself: batch norm in training would not do. ``name`` stands for the functions of
    the model, which have no digest: another read-out of the same weights needs another name. ``block`` rows are in
    memory at once, and one file; ``progress`` counts the rows that are done.

    Raises:
      FloatingPointError: an output that is not finite, naming its row; nothing of its block is written.
    """
    count = len(jax.tree.leaves(x)[0])
    run = Path(directory) / f"{name}-{digests.digest({'variables': variables, 'x': x})[:16]}-{block}"
    run.mkdir(parents=True, exist_ok=True)
    on_device, apply = jax.device_put(variables), jax.jit(lambda variables, x: model.apply(variables, x)[0])

    def compute(first: int) -> np.ndarray:
        of_block = jax.tree.map(lambda a: np.asarray(a)[first : first + block], x)
        parts = {}
        for rows, batch in batches(of_block):
            made = np.asarray(apply(on_device, batch), np.float32)[: len(rows)]
            parts |= dict(zip(rows.tolist(), made, strict=True))
        made = np.stack([parts[row] for row in range(min(block, count - first))])
        if not (finite := np.isfinite(made.reshape(len(made), -1)).all(1)).all():
            raise FloatingPointError(f"{name}: found an output that is not finite in row {first + np.argmin(finite)}")
        return made

    blocks = []
    for first in range(0, count, block):
        path = run / f"{first:09d}.npy"
        stored = _read(path)
        blocks.append(compute(first) if stored is None else stored)
        if stored is None:
            _write(path, blocks[-1])
        progress(len(blocks[-1]))
    return np.concatenate(blocks)


def _write(path: Path, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    atomic.write_bytes(path, atomic.seal(buffer.getvalue()))


def _read(path: Path) -> np.ndarray | None:
    """None where there is no file, or a damaged one."""
    payload = atomic.unseal(path.read_bytes()) if path.exists() else None
    return None if payload is None else np.load(io.BytesIO(payload), allow_pickle=False)
