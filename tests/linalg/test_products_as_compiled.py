"""Sums of products under the compiler options that users have: those of the test suite turn fusion off."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
rng = np.random.default_rng(0)
p, u = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 3), (40, 300, 3)))
found = jax.jit(jax.vmap(lambda u: p * (u - (p * u).sum(-1, keepdims=True))))(u)
np.testing.assert_allclose(found, p * (u - (p * u).sum(-1, keepdims=True)), atol=1e-4)
"""


def test_the_installed_compiler_adds_right():
    # jaxlib 0.10.2 fails: with it the GGN, mapped over a dozen directions or more, is not even positive.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)
