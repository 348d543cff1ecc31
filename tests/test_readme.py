"""The README's example runs as printed, and helps."""

import re
from pathlib import Path

import numpy as np
from flax import linen

from d3mjax.data import digits


def test_the_example_lifts_the_worst_group_of_coloured_digits():
    (code,) = re.findall(r"```python\n(.*?)```", Path(__file__).parents[1].joinpath("README.md").read_text(), re.DOTALL)
    data = digits.load_coloured_digits(seed=0, aligned=0.97)
    training = data.train._replace(group=np.full_like(data.train.group, -1))  # it must not look at these
    network = linen.Sequential([linen.Dense(32), linen.relu, linen.Dense(2)])
    names = {"training": training, "target": data.target, "test": data.test, "network": network, "num_groups": 4}
    exec(compile(code, "README.md", "exec"), names)
    before, after = np.asarray(names["rounds"].metrics.mean(1))
    print(before, after)
    assert after > before + 0.1
