"""FMD, D3M and plain controls side by side, on worst-group accuracy and on counterfactual bias.

Claim:    the two goals are different: D3M lifts the worst group most, edits on pairs take away bias and cost nothing in
          average accuracy; where the attribute can be left out, that takes away all bias.
Command:  python -m experiments.fmd_against_d3m        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, about a minute a task and seed; any JAX device works.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax import metrics
from d3mjax.attribution import influence, outputs
from d3mjax.debiasing import baselines, group_weighting, last_layer, selection
from d3mjax.runtime import hosts
from d3mjax.unlearning import edits
from experiments import bias_tasks
from experiments.bias import fmd
from experiments.bias_tasks import BiasTask, Loaded
from experiments.d3m import engine

SGD: dict[str, Any] = {"hidden": (32,), "steps": 800, "batch": 50, "rate": 0.05, "decay": 1e-3, "adam": False}
ADULT = bias_tasks.adult_task("sex", "Male", "Female", train=4000, **SGD)
TASKS = {task.name: task for task in (ADULT, bias_tasks.PATCH_PAIRS)}
RETRAINED, DRAW, COLUMNS = fmd.MORE, fmd.MORE + 1, fmd.MORE + 2  # families of keys


@dataclass(frozen=True)
class Config(fmd.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    source: engine.Trak = field(default_factory=engine.Trak)  # of D3M's group columns


def make_more(task: BiasTask, config: Config) -> fmd.More:
    """D3M, removal by influence on bias, and controls, each trained again; DFR on the targets."""
    base, model = task.task, task.task.network()
    source = engine.SMOKE[engine.Trak] if config.smoke else config.source
    columns = engine.make_trak_columns(base, hosts.local_mesh(), source, (source.damping,))
    num_classes, num_groups = len(base.class_names), len(base.group_names)
    options = influence.Options(inverse=influence.by_cg(rtol=1e-3, max_steps=300), microbatch=1000)

    @jax.jit
    def on_bias(variables, split, reference):
        place = (variables, split, reference)
        measures = (edits.counterfactual_bias, edits.signed_bias)
        found = [edits.influence_on(model, measure, *place, options=options)[0] for measure in measures]
        return *found, edits.signed_bias(model, variables, reference)

    @jax.jit
    def dfr(variables, key, data):
        path = last_layer.find(variables["params"], num_classes)
        train, target = (
            last_layer.features(model, variables, s.x, path, microbatch=500) for s in (data.train, data.target)
        )
        subsets = last_layer.balanced_subsets(key, data.target.group, num_groups, num_subsets=20)
        scale = last_layer.scale_of(train)
        head = last_layer.average_fits(last_layer.standardise(target, scale), data.target.y, num_classes, subsets)
        return last_layer.with_head(variables, path, head, scale)

    @jax.jit
    def group_losses(variables, target):
        return metrics.group_means(outputs.losses(model, variables, target), target.group, num_groups)

    def more(loaded: Loaded, variables, root, train) -> dict[str, Any]:
        data, key = loaded.data, lambda family: jax.random.fold_in(root, family)
        group, n = jnp.asarray(data.train.group), len(data.train.y)
        (reading, *_), _, _ = columns(data, key(COLUMNS), lambda count: None)
        losses = group_losses(variables, data.target)
        group_weighting.check_scores(reading, losses)
        scores = group_weighting.scores(reading, group_weighting.softmax_weights(losses))
        negative = selection.guard(scores, selection.drop_negative(scores), data.train.y, num_classes)[0]
        by_bias, by_signed, signed = on_bias(variables, data.train, loaded.pairs.reference)
        few = edits.removal_count(by_bias, by_signed, signed)
        keep = {
            "D3M": negative,
            "D3M, 10 % removed": selection.drop_lowest(scores, n // 10),
            "removed by influence on bias": selection.drop_lowest(-by_bias, few),
            "as many as D3M at random": selection.drop_random_like(key(DRAW), negative, np.zeros(n, np.int32), 1),
            "SUBG": baselines.subsample_balanced(key(DRAW), group, num_groups),
        }
        found = {name: train(data.train, RETRAINED, rows) for name, rows in keep.items()}
        return {**found, "DFR on the targets": dfr(variables, key(DRAW), data)}

    return more


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all methods, print a table for each task, and write ``results/fmd_against_d3m/<run>``."""
    return fmd.run("fmd_against_d3m", TASKS, config, results=results, run=run, more=make_more)


if __name__ == "__main__":
    tyro.cli(main)
