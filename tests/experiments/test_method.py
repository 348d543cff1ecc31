"""The row "D3M, by selection" of the study is what `d3mjax.debias` does."""

import jax
import numpy as np
import pytest

import d3mjax
from d3mjax.attribution import projections, trak
from d3mjax.debiasing import d3m, sources
from d3mjax.runtime import runs
from experiments.__main__ import studies
from experiments.study import run
from experiments.tasks import TASKS


@pytest.mark.slow
def test_debias_gives_the_numbers_of_the_study(tmp_path):
    study = studies()["d3m"]
    config = d3m_config(study)
    directory = run(study, config, tmp_path)
    task = study.small(TASKS["patch"])
    trainer = task.trainer(task.steps, d3mjax.shuffled())
    options = trak.Options(projection=projections.sjlt(32), damping=0.01, microbatch=20)
    options = d3m.Options(attribution=sources.by_trak(options, dampings=(10.0,)), retrains=2)
    for seed in (10, 11):
        unit = runs.read_unit(directory, f"patch-{seed}")
        assert unit is not None
        facts, arrays = unit
        data = task.read(seed, smoke=True)
        result = d3mjax.debias(
            *(jax.random.key(seed), task.network(), trainer, data, len(task.group_names)),
            num_steps=task.steps,
            checkpoints=2,
            options=options,
        )
        assert result.chosen._asdict() == facts["chosen"]["D3M, by selection"]
        np.testing.assert_array_equal(result.weights, arrays["weights_by_selection"])
        # Other batches of models are other shapes, whose kernels may round otherwise.
        np.testing.assert_allclose(result.after.test, arrays["test/D3M, by selection"], atol=0.01)
        np.testing.assert_allclose(result.before.test, arrays["test/ERM"], atol=0.01)
        assert result.control is not None
        np.testing.assert_allclose(result.control.test, arrays["test/ERM, class offsets"], atol=0.02)


def d3m_config(study):
    return type(study.config)(tasks=("patch",), smoke=True)
