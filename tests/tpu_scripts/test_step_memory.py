"""The count of XLA on networks that are small enough to compile here."""

import optax

from d3mjax.networks import transformers
from tpu_scripts import step_memory

TINY = transformers.BertConfig(vocabulary=11, width=6, blocks=1, heads=3, inner=8, positions=7)


def test_state_is_parameters_and_moments_and_temporaries_grow_with_the_batch():
    model = transformers.classifier(TINY, 3, dropout=0.0)
    small, large = (step_memory.step_memory(model, optax.sgd(0.1), step_memory.token_batch(n, 7)) for n in (64, 128))
    adam = step_memory.step_memory(model, optax.adam(0.1), step_memory.token_batch(64, 7))
    # Tables of 11 + 7 + 2 rows and a norm; 4 x 42, 56 + 62, two norms; pooler 42, head 21.
    parameters = 20 * 6 + 12 + 168 + 110 + 24 + 42 + 21
    assert adam["state"] - small["state"] == 4 * 2 * parameters + 4  # two moments and a count
    assert small["batch"] == 64 * 7 * (4 + 4 + 1)
    assert large["temporary"] > 1.5 * small["temporary"]
    assert small["total"] == small["state"] + small["batch"] + small["temporary"]


def test_the_table_has_every_network_in_both_types():
    text = step_memory.table(lambda *arguments: {"state": 10**9, "temporary": 25 * 10**8})
    lines = text.splitlines()
    assert lines[0] == "| step | state, GB | temporary, GB |"
    assert lines[2] == "| ResNet-50, 224 px, batch 128, SGD, float32 | 1 | 2.5 |"
    assert len(lines) == 2 + 4
