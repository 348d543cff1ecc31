"""Edits are checked against refits in float64."""

import jax
import pytest


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield
