"""A function of one checkpoint, mapped over many: one block on disk each, so that a killed run can resume.

A block is named by the digest of its manifest: hashes of the variables, of all other arrays, and of the *compiled
program's text*, which holds the model, output, projection, damping and every other number that the function closes
over. A stale block is therefore never read; the same command run again reads the finished blocks and computes the
others. A damaged block is computed again. One checkpoint is in memory at a time, and the program compiles once.

    def columns(id, variables, arrays):
        key, train, target = arrays
        return trak.group_columns(jax.random.fold_in(key, id), model, variables, train, target, 4)

    kernel, factor, info = map_checkpoints(run, "trak", columns, load, ids, (key, train, target))
    scores = per_checkpoint.combine(kernel, factor)           # as `trak.group_scores` of all checkpoints stacked
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from d3mjax.runtime import runs, store
from d3mjax.runtime.store import digest


def map_checkpoints(
    run: Path,
    name: str,
    compute: Callable[[Any, Any, Any], PyTree],
    load: Callable[[int], PyTree],
    ids: Sequence[int],
    arrays: PyTree,
    *,
    settings: Mapping[str, Any] | None = None,
    check: Callable[[int, PyTree], None] = lambda id, result: None,
    progress: Callable[[int], None] = lambda id: None,
) -> PyTree:
    """``compute(id, variables, arrays)`` for ``variables = load(id)`` of every checkpoint, stacked on a leading axis.

    ``compute`` is traceable and returns a tree of arrays; data, weights and keys are in ``arrays``. Blocks lie under
    ``run / "units"`` as ``name-id-digest``. ``settings`` (plain JSON) are stored in the manifest; a change of them
    makes new blocks, too. ``check(id, result)`` raises before a block is written, so that no invalid block is reused.
    ``progress`` is called with every finished id.

    Raises:
      ValueError: if ids repeat or there are none, or a checkpoint differs from the first in structure, shape or dtype.
    """
    ids = [int(id) for id in ids]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"ids: found {ids}, expected distinct checkpoints, at least one")
    variables, blocks = load(ids[0]), []
    first = _facts(variables)
    lowered = jax.jit(compute).lower(jnp.int32(0), variables, arrays)
    compiled = functools.cache(lowered.compile)  # only if needed: all blocks may exist
    program = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    common = {"program": program, "arrays": digest(arrays), "settings": dict(settings or {})}

    for id in ids:
        variables = variables if id == ids[0] else load(id)
        differ = sorted({path for path, _, _ in first ^ _facts(variables)})
        if differ:
            raise ValueError(f"checkpoints: number {id} differs from number {ids[0]} in {differ[:5]}")
        manifest = {"checkpoint": id, "variables": digest(variables), **common}

        def make(id=id, variables=variables, manifest=manifest):
            result = compiled()(jnp.int32(id), variables, arrays)
            check(id, result)
            return manifest, {f"leaf-{i}": leaf for i, leaf in enumerate(jax.tree.leaves(result))}

        text = store.json_text(manifest, sort_keys=True)
        unit = f"{name}-{id:05d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        blocks.append(runs.unit(run, unit, make)[1])
        progress(id)
    leaves = [jnp.asarray(np.stack([block[leaf] for block in blocks])) for leaf in blocks[0]]
    return jax.tree.unflatten(jax.tree.structure(lowered.out_info), leaves)


def _facts(variables):
    leaves = jax.tree.leaves_with_path(variables)
    return {(jax.tree_util.keystr(path), jnp.shape(a), str(jnp.result_type(a))) for path, a in leaves}
