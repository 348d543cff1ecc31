"""Metagradients of one long training: its states on disk, those of one segment in memory; resumes after a kill.

    forward    state-000000.npz, state-000100.npz, ...     one file a segment, which is read again on the way back
    backward   adjoints.npz                                the step reached, adjoints, and derivatives so far

Files are written whole or not at all, so the same call goes on where the last one stopped, with equal results to the
last bit. On the way back each segment is computed again by the program that computed it first, and must end in the
state on disk.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from d3mjax.attribution import metagradient, replay
from d3mjax.runtime import runs, store
from d3mjax.training import ensemble
from d3mjax.types import AnyArray, Split, Trainer, TrainState


def derivatives(
    directory: str | Path,
    facts: Mapping[str, Any],
    trainer: Trainer,
    state: TrainState,
    split: Split,
    num_steps: int,
    grads: Callable[[Any], PyTree[Float[Array, "k ..."]]],
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: metagradient.Options = metagradient.Options(),
    progress: Callable[[int], object] = lambda step: None,
) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, "s"]]:
    """`metagradient.derivatives` of k functions, and the loss of every step, with the states of segments on disk.

    ``state``: before the first step, of ``trainer.init``, with its layout on devices. ``facts`` (plain JSON): whatever
    else determines the result, such as the recipe and the functions; arrays are in the manifest by their digest.
    ``options``: ``segments``, None for the root of the number of steps, and ``width``; the others are not read. Memory:
    the states of one segment, and k adjoints as large as one state.

    Raises:
      ValueError: ``options.segments`` is not from 1 to ``num_steps``; the directory belongs to other facts; the trainer
        has no derivative (`metagradient.check_trainer`), or a segment computed again ends in another state (names its
        steps).
      FloatingPointError: the training diverged, or an adjoint is not finite; names the step.
    """
    metagradient.check_segments(options, num_steps)
    every = -(-num_steps // (options.segments or math.isqrt(num_steps)))
    metagradient.check_trainer(trainer, split)
    weights = jnp.ones(len(split.y)) if weights is None else jnp.asarray(weights)
    directory, split = Path(directory), jax.tree.map(jnp.asarray, split)
    arrays = store.digest((state, split, weights))
    bound = {**facts, "num_steps": num_steps, "every": every, "arrays": arrays}
    runs.bind(directory, bound, "manifest.json", results="*.npz")
    draws = _drawn(trainer, state, weights, num_steps)
    starts = list(range(0, num_steps, every))
    ends = [*starts[1:], num_steps]

    at = lambda step: _load(_state_file(directory, step), state)[0] if step else state

    losses = np.zeros(num_steps, np.float32)
    for start, end in zip(starts, ends, strict=True):
        if not _state_file(directory, end).exists():
            after, _, losses[start:end] = _kept(trainer, at(start), split, _cut(draws, start, end))
            ensemble.check_losses(losses[None, :end], np.zeros(1, int))
            _save(_state_file(directory, end), after, losses=losses[:end])
            progress(end)
        losses[:end] = _load(_state_file(directory, end), state)[1]["losses"]
    adjoints = _begun(at(num_steps), grads, len(split.y))
    step, path = num_steps, directory / "adjoints.npz"
    if path.exists():
        adjoints, found = _load(path, adjoints)
        step = int(found["step"])
    for start, end in zip(reversed(starts), reversed(ends), strict=True):
        if end > step:
            continue
        batches = _cut(draws, start, end)
        after, states, _ = _kept(trainer, at(start), split, batches)
        if store.digest(after) != store.digest(at(end)):
            raise ValueError(
                f"trainer: steps {start} to {end} computed again end in another state; expected a training that "
                "depends on its key alone, on the kind of device that it began on"
            )
        adjoints, finite = _pulled(trainer, states, split, batches, adjoints, options.width)
        if not (finite := np.asarray(finite)).all():
            bad = start + np.flatnonzero(~finite).max()
            raise FloatingPointError(f"the derivative by the state after step {bad} is not finite")
        _save(path, adjoints, step=start)
        progress(start)
    return np.asarray(adjoints.factors), losses


# Compiled once for one trainer: the same program computes a segment the first and the second time.
_kept = jax.jit(replay.kept, static_argnums=0)
_drawn = jax.jit(lambda trainer, *arguments: trainer.draw(*arguments), static_argnums=(0, 3))


@partial(jax.jit, static_argnums=(1, 2))
def _begun(last, grads, num_train):
    return replay.first_adjoints(last, grads(last.variables), num_train)


@partial(jax.jit, static_argnums=(0, 5))
def _pulled(trainer, states, split, draws, adjoints, width):
    return replay.pull(trainer, states, split, draws, adjoints, width=width)


def _state_file(directory: Path, step: int) -> Path:
    return directory / f"state-{step:06d}.npz"


def _cut(draws, start: int, end: int):
    return jax.tree.map(lambda a: a[start:end], draws)


def _save(path: Path, tree: PyTree, **extra: Any) -> None:
    leaves = [jax.random.key_data(a) if _is_key(a) else a for a in jax.tree.leaves(tree)]
    store.write_arrays(path, {**{f"leaf {i}": np.asarray(a) for i, a in enumerate(leaves)}, **extra})


def _load(path: Path, like: PyTree) -> tuple[Any, dict[str, np.ndarray]]:
    """A tree as ``like`` with its layout on devices, and what else was saved with it."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    leaves, tree = jax.tree.flatten(like)
    stored = [arrays.pop(f"leaf {i}") for i in range(len(leaves))]
    put = lambda a, leaf: jax.device_put(
        jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else a, leaf.sharding
    )
    return tree.unflatten(map(put, stored, leaves)), arrays


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)
