"""Many models in blocks: bounded memory, one compilation, progress after each; a `bank` keeps its blocks on disk."""

from collections.abc import Callable
from operator import itemgetter

import jax
import numpy as np
from jaxtyping import Int, PyTree

from d3mjax.runtime import hosts
from d3mjax.training import ensemble
from d3mjax.types import AnyArray

Run = Callable[[Int[AnyArray, "b"]], tuple[PyTree, AnyArray]]
"""``run(ids [b]) -> (outputs, losses [b s])``: models by their ids, with any tree of outputs."""


def sweep(
    run: Run,
    ids: Int[AnyArray, "m"],
    *,
    block: int,
    progress: Callable[[int], object] = lambda count: None,
) -> PyTree:
    """Outputs of the models ``ids``, made ``block`` at a time and kept in memory on the host.

    ``progress`` is called with the number of models finished after each block.

    Raises:
      ValueError: if ``block`` is below 1 or there are no ids.
      FloatingPointError: naming the models and steps of a training that diverged, before the next block starts.
    """
    ids = np.asarray(ids)
    if block < 1 or not len(ids):
        raise ValueError(f"block, ids: found a block of {block} for {len(ids)} models, expected at least 1 of each")
    parts = []
    for first in range(0, len(ids), block):
        part = ids[first : first + block]
        parts.append(run_block(run, part, block=block)[0])
        progress(len(part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def shared_sweep(
    run: Run,
    ids: Int[AnyArray, "m"],
    *,
    block: int,
    progress: Callable[[int], object] = lambda count: None,
) -> PyTree:
    """`sweep` with equal shares of the ids for all hosts; all must call it, and all get the outputs of all models.

    ``run`` must keep to the devices of its host. Where shares are not equal, the last model is made again to fill up.
    """
    ids, num_hosts = np.asarray(ids), jax.process_count()
    if not len(ids):
        return sweep(run, ids, block=block)
    shares = np.pad(ids, (0, -len(ids) % num_hosts), mode="edge").reshape(num_hosts, -1)
    outputs = sweep(run, shares[jax.process_index()], block=min(block, shares.shape[1]), progress=progress)
    return jax.tree.map(itemgetter(slice(len(ids))), hosts.concatenate(outputs))


def run_block(run: Run, ids: Int[AnyArray, "b"], *, block: int) -> tuple[PyTree, AnyArray]:
    """``run`` of at most ``block`` models, filled up with repeated ids so that it compiles once; outputs and losses.

    Raises:
      FloatingPointError: naming the models and steps of a training that diverged.
    """
    outputs, losses = jax.device_get(run(np.pad(ids, (0, block - len(ids)), mode="edge")))
    outputs, losses = jax.tree.map(itemgetter(slice(len(ids))), (outputs, losses))
    ensemble.check_losses(losses, ids)
    return outputs, losses
