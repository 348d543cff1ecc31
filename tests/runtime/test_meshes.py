"""A mesh over all local devices; the number of virtual devices is the user's where one was asked for."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from d3mjax.runtime import hosts

COUNT = """
from d3mjax.runtime import hosts
hosts.start()
import jax, os
print(len(jax.devices()), len(os.sched_getaffinity(0)))
"""


def test_the_mesh_holds_every_device_along_the_model_axis():
    assert hosts.local_mesh().shape == {"model": jax.device_count()}


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


def test_models_side_by_side_are_one_on_cpus_or_what_the_user_says(monkeypatch):
    monkeypatch.delenv("D3MJAX_WIDTH", raising=False)
    assert hosts.models_at_once() == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert hosts.models_at_once() == 64
    monkeypatch.setenv("D3MJAX_WIDTH", "5")
    assert hosts.models_at_once() == 5
    for text in ("0", "-3", "many"):
        monkeypatch.setenv("D3MJAX_WIDTH", text)
        with pytest.raises(ValueError, match=f"D3MJAX_WIDTH: found '{text}', expected a number of models, at least 1"):
            hosts.models_at_once()


def test_what_lies_on_the_devices_is_not_copied_again(monkeypatch):
    devices = hosts.local_mesh()
    tree = {"x": np.arange(6.0).reshape(2, 3), "id": np.arange(2), "key": jax.random.key(1)}
    placed = hosts.place(tree, devices)
    assert all(leaf.sharding.is_fully_replicated for leaf in placed.values())
    assert all(len(leaf.sharding.device_set) == len(jax.devices()) for leaf in placed.values())
    np.testing.assert_array_equal(placed["x"], tree["x"])
    again = hosts.place(placed, devices)
    assert all(again[name] is placed[name] for name in tree)
    rows = hosts.place(placed["x"], hosts.global_mesh(data=8), None, None)  # another mesh of the same devices
    np.testing.assert_array_equal(rows, tree["x"])


def test_one_host_alone_sees_the_error_as_it_is(tmp_path):
    assert hosts.on_every_host(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        hosts.on_every_host((tmp_path / "nowhere").read_bytes)
