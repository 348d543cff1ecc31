"""A mesh over all local devices; the number of virtual devices is the user's where one was asked for."""

import subprocess
import sys

import jax
import pytest

from d3mjax.runtime import mesh

COUNT = """
from d3mjax.runtime import mesh
mesh.start()
import jax, os
print(len(jax.devices()), len(os.sched_getaffinity(0)))
"""


def test_the_mesh_holds_every_device_along_the_model_axis():
    assert mesh.local_mesh().shape == {"model": jax.device_count()}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, None), ({"JAX_NUM_CPU_DEVICES": "3"}, 3), ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4)],
)
def test_one_device_a_core_unless_the_user_says_otherwise(chosen, expected):
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", **chosen}
    out = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, check=True, capture_output=True, text=True
    ).stdout
    devices, cores = map(int, out.split())
    assert devices == (expected or cores)
