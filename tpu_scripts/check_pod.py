"""Is this pod fit to run? ``python -m tpu_scripts.check_pod --devices 16`` on every host; exit status 0 if so.

Looks at the number of devices, a sum over all of them, subset masks (the same bits on every host), the precision of
matrix products, and the source revision and packages of every host.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from d3mjax.runtime import hosts, runs
from d3mjax.runtime.store import digest
from d3mjax.training import masks


def check(devices: int | None = None) -> list[str]:
    """Everything wrong with this pod, a sentence each; empty if it is fine. Every host must call it."""
    environment, found = runs.environment(), []
    if devices not in (None, jax.device_count()):
        found.append(f"--devices: asked for {devices}, found {jax.device_count()} on {jax.process_count()} hosts")
    everywhere = hosts.global_mesh()
    ranks = hosts.place(np.arange(jax.device_count(), dtype=np.float32), everywhere, "model")
    total = jax.shard_map(
        lambda a: jax.lax.psum(a, "model"), mesh=everywhere, in_specs=PartitionSpec("model"), out_specs=PartitionSpec()
    )
    expected = jax.device_count() * (jax.device_count() - 1) / 2
    if (got := float(hosts.gather(jax.jit(total)(ranks))[0])) != expected:
        found.append(f"sum over devices: found {got}, expected {expected}")
    subsets = masks.fixed_size(jax.random.key(0), jnp.arange(64), 1000, 500)
    try:
        hosts.agree(
            {"masks": digest(subsets), "revision": environment["revision"], "versions": environment["versions"]}
        )
    except ValueError as error:
        found.append(str(error))
    errors = product_errors()
    if errors["highest"] > 1e-5:
        found.append(f"matrix products: relative error {errors['highest']:.1e} at highest precision, expected < 1e-5")
    if hosts.leads():
        device = environment["device"]
        print(f"{jax.process_count()} hosts, {device['count']} x {device['kind']}, revision {environment['revision']}")
        print("relative error of matrix products:", ", ".join(f"{name} {e:.1e}" for name, e in errors.items()))
    return found


def product_errors(size: int = 512) -> dict[str, float]:
    """``max |AB - exact| / max |exact|`` of float32 products at the default and at the highest precision."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    return {
        name: float(np.abs(jnp.matmul(a, b, precision=name) - exact).max() / np.abs(exact).max())
        for name in ("default", "highest")
    }


def main() -> int:
    """Join the other hosts, check, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, help="how many there should be on all hosts together")
    parser.add_argument("--timeout", type=int, default=300, help="seconds to wait for the other hosts")
    options = parser.parse_args()
    hosts.start(timeout=options.timeout)
    findings = check(options.devices)
    for sentence in findings:
        print(sentence, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
