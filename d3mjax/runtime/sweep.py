"""Many models in blocks: bounded memory, one compilation, something to watch."""

from collections.abc import Callable
from operator import itemgetter

import jax
import numpy as np
from jaxtyping import Int, PyTree

from d3mjax.training import ensemble
from d3mjax.types import AnyArray


def sweep(
    run: Callable[[Int[AnyArray, "b"]], tuple[PyTree, AnyArray]],
    ids: Int[AnyArray, "m"],
    *,
    block: int,
    progress: Callable[[int], object] = lambda count: None,
) -> PyTree:
    """Outputs of the models ``ids``, made ``block`` at a time by ``run(ids [block]) -> (outputs, losses [block s])``.

    Only outputs are kept, on the host. The last block is filled up with repeated ids, so that ``run`` compiles once.
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
        outputs, losses = jax.device_get(run(np.pad(part, (0, block - len(part)), mode="edge")))
        ensemble.check_losses(losses[: len(part)], part)
        parts.append(jax.tree.map(itemgetter(slice(len(part))), outputs))
        progress(len(part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
