"""One long training with checkpoints: stopped at any moment, the same call resumes from the last of them.

Orbax writes them atomically while training continues, from all hosts at once. A step derives from the model's key and
its number, so interruptions and the number of devices change the result only through the order of sums.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Float

from d3mjax.runtime import hosts, preemption, runs
from d3mjax.training import ensemble
from d3mjax.types import Split, Trainer, TrainState


def train(
    directory: str | Path,
    facts: Mapping[str, Any],
    trainer: Trainer,
    state: TrainState,
    split: Split,
    weights: Float[Array, "n"],
    num_steps: int,
    *,
    every: int,
    keep: int = 2,
    progress: Callable[[int], object] = lambda step: None,
) -> tuple[TrainState, Float[np.ndarray, "s"]]:
    """``trainer.run`` up to step ``num_steps``, with a checkpoint after ``every`` steps; the last ``keep`` stay.

    ``state`` is the first one, with the layout on devices for the whole training. ``facts`` (plain JSON) determine the
    result. SIGTERM on any host saves a checkpoint on all hosts after the current steps, and exits
    with `preemption.STATUS`. Returns the last state and the loss of every step.

    Raises:
      ValueError: if ``every`` or ``keep`` is below 1; a directory of other facts, naming the fields, or one that
        not all hosts see.
      OSError: on every host, naming those that cannot write there.
      FloatingPointError: naming the step at which the loss was not finite; the checkpoint before it stays.
    """
    if every < 1 or keep < 1:
        raise ValueError(f"every, keep: found {every}, {keep}, expected at least 1 of each")
    directory = Path(directory).absolute()
    facts = {**facts, "num_steps": num_steps}
    hosts.agree({**facts, "every": every})
    hosts.check_shared(directory)
    hosts.on_every_host(lambda: runs.bind(directory, facts, "manifest.json", results="[0-9]*"))
    run = jax.jit(trainer.run, static_argnums=3, donate_argnums=0)
    # Donated below, and the caller's own must live on.
    state, losses = jax.tree.map(jnp.copy, state), np.full(num_steps, np.nan, np.float32)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    with ocp.CheckpointManager(directory, options=options) as manager, preemption.deferred() as asked:
        if (latest := manager.latest_step()) is not None:
            stored = manager.restore(latest, args=ocp.args.StandardRestore(_plain(state, losses)))
            state, losses = _typed(stored["state"], state), np.array(stored["losses"])
        stop = False
        while (step := int(state.step)) < num_steps and not stop:
            count = min(every, num_steps - step)
            state, info = run(state, split, weights, count)
            losses[step : step + count] = hosts.gather(info.loss)
            ensemble.check_losses(losses[None, : step + count], np.zeros(1, int))
            manager.save(step + count, args=ocp.args.StandardSave(_plain(state, losses)))
            progress(step + count)
            stop = hosts.any_host(asked())
        manager.wait_until_finished()
        if stop:
            raise SystemExit(preemption.STATUS)
    return state, losses


def _plain(state: TrainState, losses):
    """A tree that Orbax can store: keys as their data."""
    return {"state": state._replace(key=jax.random.key_data(state.key)), "losses": losses}


def _typed(stored, like: TrainState) -> TrainState:
    return stored._replace(key=jax.random.wrap_key_data(stored.key, impl=jax.random.key_impl(like.key)))
