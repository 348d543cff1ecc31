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
from d3mjax.debiasing import alignment, baselines, heads, selection, unlearning
from d3mjax.runtime import mesh
from experiments import bias_tasks, engine, fmd
from experiments.bias_tasks import BiasTask, Loaded

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
    base, model = task.task, engine.network(task.task)
    source = engine.SMOKE[engine.Trak] if config.smoke else config.source
    columns = engine.make_trak_columns(base, mesh.local_mesh(), source, (source.damping,))
    num_classes, num_groups = len(base.class_names), len(base.group_names)
    options = {"inverse": influence.by_cg(rtol=1e-3, max_steps=300), "microbatch": 1000}

    @jax.jit
    def on_bias(variables, split, reference):
        place = (variables, split, reference)
        measures = (unlearning.counterfactual_bias, unlearning.signed_bias)
        found = [unlearning.influence_on(model, measure, *place, **options)[0] for measure in measures]
        return *found, unlearning.signed_bias(model, variables, reference)

    @jax.jit
    def dfr(variables, key, data):
        path = heads.find(variables["params"], num_classes)
        train, target = (heads.features(model, variables, s.x, path, microbatch=500) for s in (data.train, data.target))
        subsets = heads.balanced_subsets(key, data.target.group, num_groups, num_subsets=20)
        scale = heads.scale_of(train)
        head = heads.average_fits(heads.standardise(target, scale), data.target.y, num_classes, subsets)
        return heads.with_head(variables, path, head, scale)

    @jax.jit
    def group_losses(variables, target):
        return metrics.group_accuracies(outputs.losses(model, variables, target), target.group, num_groups)

    def more(loaded: Loaded, variables, root, train) -> dict[str, Any]:
        data, key = loaded.data, lambda family: jax.random.fold_in(root, family)
        group, n = jnp.asarray(data.train.group), len(data.train.y)
        (reading, *_), _, _ = columns(data, key(COLUMNS), lambda count: None)
        losses = group_losses(variables, data.target)
        alignment.check_scores(reading, losses)
        scores = alignment.scores(reading, alignment.softmax_weights(losses))
        negative = selection.guard(scores, selection.drop_negative(scores), data.train.y, num_classes)[0]
        by_bias, by_signed, signed = on_bias(variables, data.train, loaded.pairs.reference)
        few = unlearning.removal_count(by_bias, by_signed, signed)
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
