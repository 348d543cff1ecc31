"""Diagnosers on disk: bit by bit what was saved, refused where damaged or made for other channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.diagnosis import set_network
from d3mjax.runtime import diagnoser

CHANNELS = ["influence", "cosine", "agreement", "loss"]
NETWORK = set_network.SetTransformer(width=8, num_inducing=2, num_heads=2, num_blocks=1, projection=4)
VALUES = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float16)
VARIABLES = NETWORK.init(jax.random.key(0), VALUES, np.ones((3, 5), bool))
MADE = set_network.Diagnoser(VARIABLES, jnp.array([0.3, 0.5, 0.75]))
MANIFEST = {
    "channels": CHANNELS,
    "kinds": ["label", "feature", "minority"],
    "sizes": {"width": 8},
    "cells": [{"task": "adult", "clean_ratio": 0.5, "seed": 0}],
}


@pytest.fixture
def path(tmp_path):
    diagnoser.save_diagnoser(tmp_path / "made.npz", MADE._asdict(), MANIFEST)
    return tmp_path / "made.npz"


def test_what_is_loaded_is_what_was_saved(path):
    arrays, manifest = diagnoser.load_diagnoser(path, CHANNELS)
    loaded = set_network.Diagnoser(**arrays)
    jax.tree.map(np.testing.assert_array_equal, loaded, MADE)
    assert jax.tree.map(lambda a: a.dtype, loaded) == jax.tree.map(lambda a: a.dtype, MADE)
    assert {name: manifest[name] for name in MANIFEST} == MANIFEST
    assert manifest["environment"]["versions"]["jax"] == jax.__version__
    assert [p.name for p in path.parent.iterdir()] == ["made.npz"]


@pytest.mark.parametrize("channels", [CHANNELS[:3], CHANNELS[::-1], [*CHANNELS, "self-influence"]])
def test_another_channel_layout_is_refused_by_name(path, channels):
    with pytest.raises(ValueError, match=r"channels: found \['influence', .*\], expected ") as error:
        diagnoser.load_diagnoser(path, channels)
    assert str(error.value).endswith(f"expected {channels}")
    diagnoser.load_diagnoser(path, channels, CHANNELS)


def test_damaged_files_are_refused(path):
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), len(whole) // 60)]
    for content in (whole[:-100], whole[: len(whole) // 2], b"", b"not a file", *flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"made\.npz is damaged, or holds no diagnoser"):
            diagnoser.load_diagnoser(path, CHANNELS)


def test_no_file_and_no_facts(tmp_path):
    with pytest.raises(FileNotFoundError):
        diagnoser.load_diagnoser(tmp_path / "none.npz", CHANNELS)
    with pytest.raises(ValueError, match=r"expected also \['kinds', 'sizes', 'cells'\]"):
        diagnoser.save_diagnoser(tmp_path / "x.npz", MADE._asdict(), {"channels": CHANNELS})
    with pytest.raises(ValueError, match="thresholds: found 3, expected one for each"):
        diagnoser.save_diagnoser(tmp_path / "x.npz", MADE._asdict(), {**MANIFEST, "kinds": ["label"]})
    assert not list(tmp_path.iterdir())
