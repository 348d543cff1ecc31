"""Sizes of language models on paper against counts by hand, and against our own networks."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from d3mjax.networks import decoders, lora
from tpu_scripts import language_sizing as sizing
from tpu_scripts.sizing import CHIPS

ROOT = Path(__file__).parents[2]
SMALL = sizing.Decoder("small", 11, 8, 3, 4, 2, 10, tied=False)
RUN = sizing.Preferences(7, 5, 6, 2, epochs=3, adapted=1, rank=2, groups=4, projected=9)
BLOCK = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 10  # of dense layers


def test_a_small_decoder_by_hand():
    assert sizing.parameters(SMALL) == 2 * 11 * 8 + 3 * (BLOCK + 16) + 8
    assert sizing.adapters(SMALL, RUN) == 2 * (16 + 12 + 12 + 16 + 18 + 18 + 18)
    block = 6 * (BLOCK + 2 * 6 * 8)
    assert sizing.forward_macs(SMALL, RUN) == 3 * block + 2 * 11 * 8
    gradient = 4 * (2 * block + 3 * block + 2 * 2 * 11 * 8)
    assert sizing.gradient_flops(SMALL, RUN) == gradient
    forward = 4 * (3 * block + 2 * 11 * 8)
    assert sizing.training_flops(SMALL, RUN) == 7 * forward + 3 * 7 * gradient
    assert sizing.attribution_flops(SMALL, RUN) == 12 * gradient + 7 * 5 * forward + 12 * 7 * 81
    assert sizing.states_bytes(SMALL, RUN) == 7 * 2 * 6 * 8 * 4
    layers = 16 + 12 + 12 + 16 + 18 + 18 + 18 + 2 * 4 * 6
    of_pairs = 4 * (2 * 2 * 6 * layers + 4 * BLOCK + 2 * 4 * 2 * 11)
    shared = 4 * sizing.parameters(SMALL) + of_pairs
    assert sizing.working_bytes(SMALL, RUN, 4) == -(-shared // 4) + 12 * sizing.adapters(SMALL, RUN)


@pytest.mark.parametrize(
    ("decoder", "config"),
    list(zip(sizing.DECODERS, (decoders.SMOLLM2_135M, decoders.LLAMA_1B, decoders.LLAMA_8B), strict=True)),
    ids=lambda size: getattr(size, "name", ""),
)
def test_decoders_are_our_own(decoder, config):
    run = sizing.Preferences(adapted=1)
    x = {"ids": np.zeros((1, 2), np.int32)} | {name: np.ones((1, 2), bool) for name in ("mask", "response")}
    counts = []
    for blocks in (1, 2):
        scores = decoders.log_probs(config._replace(blocks=blocks))
        model = lora.adapted(scores, lambda path: "['block_0']" in path and "kernel" in path, rank=run.rank)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        of = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in ("params", "frozen")}
        counts.append(of["frozen"])
        assert of["params"] == sizing.adapters(decoder, run)
    assert sizing.parameters(decoder) == counts[0] + (config.blocks - 1) * (counts[1] - counts[0])


def test_the_smallest_axis_has_room_and_its_half_has_not():
    run = sizing.Preferences()
    for decoder in sizing.DECODERS:
        for chip in CHIPS:
            axis = sizing.smallest_model_axis(decoder, run, chip)
            assert sizing.working_bytes(decoder, run, axis) <= 0.8 * chip.memory
            assert axis == 1 or sizing.working_bytes(decoder, run, axis // 2) > 0.8 * chip.memory


def test_the_readme_holds_what_the_command_prints():
    command = [sys.executable, "-m", "tpu_scripts.language_sizing"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    _, inside, _ = (ROOT / "tpu_scripts" / "README.md").read_text().split("<!-- language sizing -->\n")
    assert inside.strip() == found.stdout.strip()
    priced = subprocess.run([*command, "--price", "v5e=2"], cwd=ROOT, capture_output=True, text=True)
    assert priced.stdout.count(" P |") == 2 * len(sizing.DECODERS)
    wrong = subprocess.run([*command, "--utilisation", "0"], cwd=ROOT, capture_output=True, text=True)
    assert "--utilisation: found 0.0" in wrong.stderr
