"""Large products while another device multiplies, which XLA alone gets wrong on CPUs. Two devices show it each time."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec
from flax import linen
from d3mjax import mlp
from d3mjax.attribution import outputs
from d3mjax.linalg.products import by_rows, dot

model = mlp((40,), 3)
variables = model.init(jax.random.key(0), np.ones((1, 600), np.float32))
first, last = (np.asarray(variables["params"][name]["kernel"]) for name in ("Dense_0", "Dense_1"))

def layer(x, b):
    dense = linen.Dense(len(b), use_bias=False, dot_general=by_rows)
    return dense.apply({"params": {"kernel": b.T}}, x)

def draw(key, rows):
    return jax.lax.map(lambda key: jax.random.normal(key, (rows,)), jax.random.split(key, 600)).T

def one(keys):
    x, b = (draw(key, rows) for key, rows in zip(jax.random.split(keys[0]), (10_000, 100)))
    by_columns = jax.vmap(lambda column: dot(x, column), out_axes=1)(b)
    results = dot(x, b.T), by_columns, layer(x[None], b)[0], outputs.logits(model, variables, x)
    return jax.tree.map(lambda a: a[None], (x, b, *results))

mesh, spec = Mesh(np.array(jax.devices()), "model"), PartitionSpec("model")
mapped = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
for x, b, product, by_columns, in_layer, logits in zip(*jax.device_get(mapped(jax.random.split(jax.random.key(0))))):
    np.testing.assert_allclose(product, x @ b.T, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(by_columns, x @ b.T, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(in_layer, x @ b.T, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(logits, np.maximum(x @ first, 0) @ last, rtol=1e-5, atol=1e-3)  # biases are 0
"""


def test_large_products_and_evaluation_on_two_devices_at_once():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **flags}, check=True)
