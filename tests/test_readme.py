"""The README's examples run as printed, and help."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from d3mjax.data.sets import adult, digits
from d3mjax.networks import dense
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer

EXAMPLES = re.findall(r"```python\n(.*?)```", Path(__file__).parents[1].joinpath("README.md").read_text(), re.DOTALL)


def test_the_first_example_lifts_the_worst_group_of_coloured_digits():
    code = EXAMPLES[0]
    data = digits.load_coloured_digits(seed=0, aligned=0.97)
    training = data.train._replace(group=np.full_like(data.train.group, -1))  # it must not look at these
    network = linen.Sequential([linen.Dense(32), linen.relu, linen.Dense(2)])
    names = {"training": training, "target": data.target, "test": data.test, "network": network, "num_groups": 4}
    exec(compile(code, "README.md", "exec"), names)
    before, after = np.asarray(names["rounds"].metrics.mean(1))
    print(before, after)
    assert after > before + 0.1


def test_the_second_example_takes_away_bias_of_adult():
    data = adult.load_adult(0, num_train=2000, num_targets=400, num_selection=100)
    model = dense.mlp((16,), 2)
    run = make_trainer(model, objectives.cross_entropy(), optax.sgd(0.05, 0.9), sampling.shuffled(), batch_size=50)
    state = run.init(jax.random.key(0), data.train.x[:1])
    state, _ = run.run(state, data.train, jnp.ones(2000), 200)
    names = {"model": model, "variables": state.variables, "training": data.train, "target": data.target}
    exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    assert 0 < names["few"] < 60
    assert names["after"].absolute < 0.8 * names["before"].absolute
    assert len(EXAMPLES) == 2
