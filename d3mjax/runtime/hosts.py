"""Devices and hosts: how processes meet, the meshes they share, and the facts on which they must agree.

JAX's own multi-controller runtime: every host runs the same program, and `start` is its first line. Models are spread
over the axis ``model``; the axis ``data`` is for one model that several devices work on.
"""

import json
import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from d3mjax.runtime import store

T = TypeVar("T")


def start(*, timeout: int = 300, silence: int = 100) -> None:
    """Join the other processes of this run, if it has any; call it before anything touches JAX's devices.

    The environment names them: ``D3MJAX_DISTRIBUTED=auto`` lets JAX find them (Cloud TPU, Slurm, GKE, MPI);
    ``JAX_COORDINATOR_ADDRESS=host:port``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` do so explicitly; with
    neither this process is alone. On CPUs there is one virtual device per core unless a number was asked for (through
    JAX's configuration or XLA_FLAGS): a small network keeps only one core busy, so models are spread over devices.
    When a process has sent no heartbeat for ``silence`` seconds, JAX ends the others.

    Raises:
      ValueError: naming what is missing or wrong in the environment.
      TimeoutError: if the coordinator's address does not answer for ``timeout`` seconds.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.values["jax_num_cpu_devices"] in (None, -1):
        jax.config.update("jax_num_cpu_devices", cores())
    if jax.distributed.is_initialized():
        return
    address, way = os.environ.get("JAX_COORDINATOR_ADDRESS", ""), os.environ.get("D3MJAX_DISTRIBUTED", "")
    if way not in ("", "auto"):
        raise ValueError(f"D3MJAX_DISTRIBUTED: found {way!r}, expected 'auto', or nothing for this process alone")
    if not (address or way):
        return
    # The service would take SIGTERM for itself; `preemption` decides what happens then.
    jax.config.update("jax_enable_preemption_service", False)
    if way:
        print(
            f"looking for the other hosts of this run, for at most {timeout} s: each must run this command, with "
            "D3MJAX_DISTRIBUTED=auto, and be able to reach the first one",
            file=sys.stderr,
        )
        jax.distributed.initialize(initialization_timeout=timeout, heartbeat_timeout_seconds=silence)
        return
    count, index = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if not 0 <= index < count:
        raise ValueError(f"JAX_PROCESS_ID: found {index} of JAX_NUM_PROCESSES={count}, expected 0 to {count - 1}")
    print(f"process {index} of {count}: meeting at {address}, for at most {timeout} s", file=sys.stderr)
    if index:
        _wait_for(address, timeout)
    jax.distributed.initialize(address, count, index, initialization_timeout=timeout, heartbeat_timeout_seconds=silence)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_mesh() -> Mesh:
    """A mesh of all devices of this host along the axis ``model``."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("model",), axis_types=(AxisType.Auto,), devices=devices)


def models_at_once() -> int:
    """Models that a device trains side by side, for `ensemble.map_models`: one on CPUs, 64 on accelerators.

    The environment variable ``D3MJAX_WIDTH`` sets another number; results do not depend on it. Raises ``ValueError`` if
    it is not a positive integer.
    """
    text = os.environ.get("D3MJAX_WIDTH") or str(1 if jax.default_backend() == "cpu" else 64)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"D3MJAX_WIDTH: found {text!r}, expected a number of models, at least 1")
    return int(text)


def global_mesh(*, data: int = 1, devices: int | None = None) -> Mesh:
    """A mesh of all devices of all hosts, ``[model data]``: ``data`` neighbouring devices work on one model.

    Raises:
      ValueError: if ``data`` does not divide their number, or it is not that of ``devices``.
    """
    count = jax.device_count()
    if devices not in (None, count):
        raise ValueError(f"devices: asked for {devices}, found {count} on {jax.process_count()} hosts")
    if data < 1 or count % data:
        raise ValueError(f"data: found {data} devices for each model, expected a divisor of all {count} devices")
    return jax.make_mesh((count // data, data), ("model", "data"), axis_types=(AxisType.Auto,) * 2)


def leads() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def gather(tree: PyTree) -> PyTree:
    """Arrays that are spread over devices and hosts, whole in the memory of every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    whole = lambda a: multihost_utils.process_allgather(a, tiled=True)

    def one(a):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        return whole(a) if isinstance(a, jax.Array) and not a.is_fully_addressable else np.asarray(a)

    return jax.tree.map(one, tree)


def place(tree: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """Arrays that every host has, spread over ``mesh``: leading axes over ``axes``, copied to all devices if none.

    Arrays that have this layout already are returned as they are, so a caller may place them once for many calls.

    Raises:
      ValueError: if an axis of an array is not a multiple of the devices that it is spread over.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def one(a):
        for size, axis in zip(a.shape, axes, strict=False):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"tree: found {size} rows for {mesh.shape[axis]} devices along {axis}, expected a multiple"
                )
        return put(a, sharding)

    return jax.tree.map(one, tree)


def put(a: Any, sharding: NamedSharding) -> jax.Array:
    """An array or key that every host has, laid out over the devices of all hosts; itself if it lies so already."""
    if isinstance(a, jax.Array) and a.sharding == sharding:
        return a
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(a), sharding), impl=jax.random.key_impl(a))
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])


def concatenate(tree: PyTree) -> PyTree:
    """Host arrays of one shape on every host, one host's after the other's along their first axis, on all of them."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def wait(name: str) -> None:
    """Return when all processes have called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_host(flag: bool) -> bool:
    """Whether ``flag`` is true on at least one host; all must ask."""
    return bool(flag) if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def agree(facts: Mapping[str, Any]) -> None:
    """Raise where ``facts`` (plain JSON: configuration, revision, hashes of data) differ between hosts.

    Raises:
      ValueError: on every host, naming the hosts and fields that differ from the first one.
    """
    texts = _exchange(store.json_text(facts))
    first, differ = json.loads(texts[0]), []
    for host, text in enumerate(texts[1:], 1):
        if fields := store.differences(json.loads(text), first):
            differ.append(f"host {host} differs from host 0: {fields}")
    if differ:
        raise ValueError("; ".join(differ))


def on_every_host(action: Callable[[], T]) -> T:
    """``action()``, which may read and write files; all hosts must call this, and none goes on where one could not.

    Raises:
      OSError: on every host, naming those on which ``action`` raised it; other errors stay with their host.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except OSError as raised:
        error = raised
    errors = map(json.loads, _exchange(json.dumps(error and str(error))))
    if failed := [f"host {host}: {text}" for host, text in enumerate(errors) if text is not None]:
        raise OSError("; ".join(failed)) from error
    return cast(T, result)


def check_shared(directory: str | Path) -> None:
    """Raise if not all hosts see a directory, before anything is written to it.

    Raises:
      ValueError: on every host, naming those that do not see a file of the first one.
      OSError: on every host, if the first one cannot write there.
    """
    if jax.process_count() == 1:
        return
    token = Path(directory) / f".shared-{_exchange(uuid.uuid4().hex)[0]}"

    def write():
        if leads():
            token.parent.mkdir(parents=True, exist_ok=True)
            token.touch()

    on_every_host(write)
    blind = [host for host, seen in enumerate(_exchange(str(on_every_host(token.exists)))) if seen != "True"]
    on_every_host(lambda: token.unlink(missing_ok=True) if leads() else None)
    if blind:
        raise ValueError(
            f"{directory}: hosts {blind} do not see what host 0 wrote there; expected a directory that all hosts share "
            "(a mounted bucket or file server)"
        )


def _exchange(text: str) -> list[str]:
    """The texts of all hosts, in order."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(raw)))
    padded = multihost_utils.process_allgather(np.pad(raw, (0, int(sizes.max()) - len(raw))))
    return [bytes(row[:size]).decode() for row, size in zip(padded, sizes.ravel(), strict=True)]


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ValueError(f"{name}: found {value!r}, expected a number beside JAX_COORDINATOR_ADDRESS")
    return int(value)


def _wait_for(address: str, timeout: int) -> None:
    """Wait until the coordinator answers: without one JAX ends the process without giving a reason."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS: found {address!r}, expected host:port")
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        try:
            socket.create_connection((host, int(port)), timeout=max(1, math.ceil(left))).close()
            return
        except OSError:
            time.sleep(min(1.0, left))
    raise TimeoutError(
        f"no coordinator at {address} after {timeout} s: is process 0 running, is the address that of its host, and "
        "does a firewall close the port?"
    )
