"""Banks: neither a kill, nor the size of blocks, nor the number of hosts changes a bit; all that is wrong is named."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3mjax.attribution import datamodels
from d3mjax.attribution.outputs import soft_margins
from d3mjax.networks import dense
from d3mjax.runtime import bank, blocks
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Split

N, T, REPEATS = 11, 3, 2
DATA = {"train": np.arange(4.0), "target": np.arange(3)}


def subsets(ids):
    """Row j spells a number made of its id in binary, never zero, never all ones."""
    return ((37 * (np.asarray(ids)[:, None] + 1) >> np.arange(N)) & 1).astype(bool)


def run(ids, chosen):
    outputs = chosen @ np.arange(N * T).reshape(N, T) + np.sin(ids)[:, None]
    return outputs.astype(np.float32), np.stack([ids, ids + 0.5], 1)


def facts(recipe=("steps", 3), **options):
    settings = {"num_targets": T, "repeats": REPEATS, **options}
    return bank.manifest(jax.random.key(7), subsets, DATA, dict([recipe]), **settings)


def fill(path, ids: Iterable[int] = range(10), run=run, manifest=None, block=4, **options):
    return bank.fill(path, manifest or facts(), subsets, run, np.array([*ids], int), block=block, **options)


def files(path):
    return {file.name: file.read_bytes() for file in Path(path).glob("[!.]*")}


def check(found, ids):
    ids = np.array(ids)
    chosen = subsets(ids // REPEATS)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.mask_ids, ids // REPEATS)
    np.testing.assert_array_equal(found.losses, ids + np.float32(0.5))
    np.testing.assert_array_equal(bank.masks(found), chosen)
    np.testing.assert_array_equal(bank.outputs(found), run(ids, chosen)[0])
    assert (bank.masks(found).dtype, bank.outputs(found).dtype) == (bool, np.float32)


def test_a_bank_holds_what_was_run(tmp_path):
    done = []
    check(fill(tmp_path / "a" / "b", progress=done.append), range(10))
    assert done == [0, 4, 4, 2]
    names = ["block-000000000-000000003.npy", "block-000000004-000000007.npy", "block-000000008-000000009.npy"]
    assert sorted(files(tmp_path / "a" / "b")) == [*names, "manifest.json"]
    table = np.load(tmp_path / "a" / "b" / names[1])  # readable without this package
    np.testing.assert_array_equal(table["id"], [4, 5, 6, 7])
    assert bank.verify(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("block", [1, 3, 10, 64])
def test_blocks_of_any_size_give_the_same_data_and_resume_each_other(tmp_path, block):
    fill(tmp_path, range(3, 7))
    check(fill(tmp_path, block=block), range(10))
    check(bank.read(tmp_path), range(10))


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import test_bank as t
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
{how}
t.fill(sys.argv[1], run=run)
"""
HOW = {
    "while training": "run = lambda ids, chosen: kill() if 5 in ids else t.run(ids, chosen)",
    "while writing": """
def run(ids, chosen):
    if 5 in ids: os.fsync = kill
    return t.run(ids, chosen)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_kill_9_loses_the_block_in_hand_and_nothing_else(tmp_path, how):
    fill(tmp_path / "whole")
    killed = tmp_path / "killed"
    script = KILLED.format(here=str(Path(__file__).parent), how=how)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    status = subprocess.run([sys.executable, "-c", script, killed], env=environment, capture_output=True, timeout=300)
    assert status.returncode == -signal.SIGKILL, status.stderr.decode()
    assert sorted(files(killed)) == ["block-000000000-000000003.npy", "manifest.json"]
    assert bank.verify(killed) == []
    trained = []
    fill(killed, run=lambda ids, chosen: (trained.extend(ids), run(ids, chosen))[1])
    assert sorted(set(trained)) == [4, 5, 6, 7, 8, 9]
    assert files(killed) == files(tmp_path / "whole")


def test_more_ids_extend_a_bank_and_touch_no_finished_block(tmp_path):
    fill(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    check(fill(tmp_path, range(6, 15)), range(6, 15))
    check(bank.read(tmp_path), range(15))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    check(fill(tmp_path, run=lambda ids, chosen: pytest.fail(f"trained {ids} again"), ids=[9, 2]), [9, 2])


def test_banks_of_several_hosts_read_as_one(tmp_path):
    fill(tmp_path / "a", range(8, 16))
    fill(tmp_path / "b", range(0, 8))
    fill(tmp_path / "b", range(16, 18))
    check(bank.read(tmp_path / "a", tmp_path / "b"), range(18))
    assert bank.verify(tmp_path / "a", tmp_path / "b", ids=range(18)) == []
    assert bank.verify(tmp_path / "a") == []
    assert bank.verify(tmp_path / "b") == ["missing ids: 8-15"]
    assert bank.verify(tmp_path / "a", ids=[7, 8, 30]) == ["missing ids: 7, 30"]


def test_a_model_found_twice_counts_once_unless_it_differs(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", range(6, 12), block=3)
    check(bank.read(tmp_path / "a", tmp_path / "b"), range(12))
    assert bank.verify(tmp_path / "a", tmp_path / "b") == ["ids found twice, the same: 6-9"]
    fill(
        tmp_path / "c", [3, 9], run=lambda ids, chosen: (run(ids, chosen)[0] + (ids == 9)[:, None], run(ids, chosen)[1])
    )
    with pytest.raises(ValueError, match="different models with the ids 9"):
        bank.read(tmp_path / "a", tmp_path / "c")
    assert bank.verify(tmp_path / "a", tmp_path / "c") == [
        "ids found twice, the same: 3",
        "ids found twice, different: 9",
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: facts(recipe=("steps", 4)), r"recipe\.steps: found 3, expected 4"),
        (lambda: facts(repeats=1), "repeats: found 2, expected 1"),
        (lambda: facts(dtype="float16"), "dtype: found .float32., expected .float16."),
        (lambda: facts() | {"data": {}}, r"data\.target: found .*, expected absent"),
        (
            lambda: bank.manifest(jax.random.key(8), subsets, DATA, {"steps": 3}, num_targets=T, repeats=2),
            "key.data: found",
        ),
        (
            lambda: bank.manifest(
                jax.random.key(7), lambda i: ~subsets(i), DATA, {"steps": 3}, num_targets=T, repeats=2
            ),
            "configuration: masks: found",
        ),
    ],
)
def test_banks_of_other_data_or_recipe_do_not_mix(tmp_path, other, message):
    fill(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        fill(tmp_path / "a", manifest=other())
    bank.fill(tmp_path / "b", other(), subsets, run, np.arange(20, 24), block=4)
    with pytest.raises(ValueError, match=message.removeprefix("configuration: ")):
        bank.read(tmp_path / "a", tmp_path / "b")
    (stray,) = (tmp_path / "b").glob("block-*")
    stray.rename(tmp_path / "a" / stray.name)
    for look in (bank.read, bank.verify, fill):
        with pytest.raises(ValueError, match="belongs to another bank"):
            look(tmp_path / "a")


def test_blocks_without_a_manifest_are_refused(tmp_path):
    fill(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"found results without manifest\.json"):
        fill(tmp_path)
    with pytest.raises(FileNotFoundError):
        bank.read(tmp_path)


def _flip(content, at):
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [lambda c: _flip(c, 300), lambda c: _flip(c, -1), lambda c: c[:-9], lambda c: b""])
@pytest.mark.parametrize("block", [4, 3])
def test_a_damaged_block_is_named_skipped_and_made_again(tmp_path, damage, block):
    fill(tmp_path)
    whole, path = files(tmp_path), tmp_path / "block-000000004-000000007.npy"
    path.write_bytes(damage(path.read_bytes()))
    assert bank.verify(tmp_path) == [f"damaged blocks: {path}", "missing ids: 4-7"]
    with pytest.raises(ValueError, match=r"damaged blocks: .*block-000000004"):
        bank.read(tmp_path)
    check(bank.read(tmp_path, skip_damaged=True), [0, 1, 2, 3, 8, 9])
    check(fill(tmp_path, block=block), range(10))
    assert bank.verify(tmp_path) == []
    assert block != 4 or files(tmp_path) == whole


def test_verify_looks_at_the_values(tmp_path):
    manifest = facts()
    fill(tmp_path, range(8))
    table = blocks.train(manifest, subsets, run, np.arange(8, 12), block=4)
    table["outputs"][1, 2] = np.inf
    table["masks"][2] = 0
    blocks.write(tmp_path, manifest, table)
    assert bank.verify(tmp_path) == [
        "outputs not finite for ids: 9",
        "masks that keep all or nothing for ids: 10",
    ]
    constant = lambda ids, chosen: (run(ids, chosen)[0] * [1, 0, 1], run(ids, chosen)[1])
    fill(tmp_path / "constant", run=constant)
    assert bank.verify(tmp_path / "constant") == ["targets constant over models: 1"]


def test_take_and_batches_read_only_what_is_asked_for(tmp_path):
    found = fill(tmp_path)
    check(bank.take(found, np.array([8, 1, 5, 0])), [8, 1, 5, 0])
    check(bank.take(bank.take(found, np.array([8, 1, 5, 0])), np.array([5, 8])), [5, 8])
    assert bank.outputs(bank.take(found, np.array([], int))).shape == (0, T)
    (tmp_path / "block-000000004-000000007.npy").unlink()
    check(bank.take(found, np.array([9, 2])), [9, 2])
    first, *_, last = bank.batches(found, size=3)
    check(first, [0, 1, 2])
    check(last, [9])
    with pytest.raises(ValueError, match="found 10-12, which the bank does not have"):
        bank.take(found, np.array([3, 11, 10, 12]))
    with pytest.raises(ValueError, match="found 3 more than once"):
        bank.take(found, np.array([3, 4, 3]))


def test_float16_halves_the_outputs(tmp_path):
    half = facts(dtype="float16")
    found = fill(tmp_path, manifest=half)
    np.testing.assert_array_equal(bank.outputs(found), run(found.ids, subsets(found.mask_ids))[0].astype(np.float16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block of 0 for 10 models"),
        ({"ids": []}, "block of 4 for 0 models"),
        ({"ids": [1, 2, 1]}, "found 1 more than once"),
        ({"ids": [-1, 2]}, r"found -1\.\.2"),
        ({"ids": [2**31]}, "keys can tell apart"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fill(tmp_path, **options)
    assert not list(tmp_path.glob("block-*"))


def test_bad_settings_and_directories_are_refused(tmp_path):
    for options in ({"repeats": 0}, {"dtype": "float64"}):
        with pytest.raises(ValueError, match="float32 or float16"):
            facts(**options)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write results to"):
        fill(tmp_path / "file")
    with pytest.raises(ValueError, match="local directory"):
        fill("gs://bucket/bank")
    with pytest.raises(FloatingPointError, match="diverged"):
        fill(tmp_path / "none", run=lambda ids, chosen: (np.ones((4, T)), np.full((4, 1), np.nan)))
    with pytest.raises(ValueError, match="found no models"):
        bank.read(tmp_path / "none")
    assert bank.verify(tmp_path / "none") == ["models: none at all"]


def test_published_matrices_read_as_a_bank(tmp_path):
    chosen = subsets(np.arange(6))
    outputs = run(np.arange(6), chosen)[0].astype(np.float16)
    np.save(tmp_path / "train_masks_50pct.npy", chosen)
    np.save(tmp_path / "test_margins_50pct.npy", outputs)
    np.save(tmp_path / "_completed.npy", np.array([1, 1, 0, 1, 0, 1], bool))
    paths = (tmp_path / "train_masks_50pct.npy", tmp_path / "test_margins_50pct.npy")
    found = bank.read_published(*paths)
    assert (found.manifest["n"], found.manifest["t"], found.manifest["dtype"]) == (N, T, "float16")
    part = bank.take(found, np.array([4, 2]))
    np.testing.assert_array_equal(bank.masks(part), chosen[[4, 2]])
    np.testing.assert_array_equal(bank.outputs(part), outputs[[4, 2]])
    finished = bank.read_published(*paths, completed=tmp_path / "_completed.npy")
    np.testing.assert_array_equal(finished.ids, [0, 1, 3, 5])
    np.testing.assert_array_equal(bank.outputs(finished), outputs[[0, 1, 3, 5]])
    with pytest.raises(ValueError, match=r"found float16\[6, 3\] and bool\[6, 11\], expected bool"):
        bank.read_published(*reversed(paths))


def test_real_models_with_several_seeds_a_mask(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)).astype(np.float32)
    split = Split(x, (x[:, 0] > 0).astype(np.int32), np.zeros(12, np.int32), np.arange(12))
    key, model = jax.random.key(0), dense.mlp((3,), 2)
    trainer = make_trainer(model, objectives.cross_entropy(), optax.sgd(0.1), sampling.shuffled(), batch_size=4)

    def one(key, mask):
        state, info = trainer.run(trainer.init(key, split.x[:1]), split, mask.astype(jnp.float32), 5)
        return soft_margins(model, state.variables, split), info.loss

    half = jax.jit(lambda ids: masks.fixed_size(jax.random.fold_in(key, 0), ids, 12, 6))
    keys = lambda ids: ensemble.model_keys(jax.random.fold_in(key, 1), ids)
    trained = jax.jit(lambda ids, chosen: ensemble.map_models(one, width=1)(keys(ids), chosen))
    manifest = bank.manifest(key, half, {"train": split}, {"keep": 6}, num_targets=12, repeats=3)
    found = bank.fill(tmp_path, manifest, half, trained, np.arange(9), block=5)
    x, y = bank.masks(found), bank.outputs(found)
    np.testing.assert_array_equal(x[:8], half(np.arange(8) // 3))
    np.testing.assert_array_equal(y[:5], trained(np.arange(5), x[:5])[0])
    assert len(np.unique(y[:3, 0])) == 3
    datamodels.check_masks(x, y)
    assert datamodels.fit_ridge(x, y, np.ones(1, np.float32))[0].weight.shape == (1, 12, 12)
