"""Devices: how many there are, and the mesh that models are spread over."""

import os

import jax
from jax.sharding import AxisType, Mesh


def start() -> None:
    """One virtual CPU device per core, for machines without an accelerator; call it before anything touches JAX.

    Small networks keep one core busy and no more, so models are spread over devices, not over threads. A number of
    devices that the user asked for (through JAX's configuration or XLA_FLAGS) is left alone.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.values["jax_num_cpu_devices"] in (None, -1):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def local_mesh() -> Mesh:
    """A mesh of all devices of this host along the axis ``model``."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("model",), axis_types=(AxisType.Auto,), devices=devices)
