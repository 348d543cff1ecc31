"""Blocks of checkpoints: a kill changes nothing, whatever a block depends on changes its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import per_checkpoint, trak
from d3mjax.attribution.projections import rademacher, sjlt
from d3mjax.networks import dense
from d3mjax.runtime.attribution_blocks import map_checkpoints
from d3mjax.types import Split

MODEL = dense.mlp((3,), 2)
KEY = jax.random.key(0)


def _split(seed, n):
    rng = np.random.default_rng(seed)
    return Split(rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 2, n), np.arange(n) % 2, np.arange(n))


TRAIN, TARGET = _split(0, 21), _split(1, 6)


def _load(id):
    return MODEL.init(jax.random.key(id), TRAIN.x)


def _columns(damping=0.1, projection=None):
    """Something cheap with all that TRAK depends on."""
    make = projection or rademacher(5)

    def columns(id, variables, arrays):
        key, train, target = arrays
        params = variables["params"]
        phi = make(jax.random.fold_in(key, id), params).project(jax.tree.map(lambda p: p[None], params))
        return phi + damping, train.x.mean() + target.y.sum()

    return columns


def _trak(id, variables, arrays):
    key, train, target = arrays
    options = trak.Options(rademacher(5))
    return trak.group_columns(jax.random.fold_in(key, id), MODEL, variables, train, target, 2, options=options)


def _run(path, ids=(0, 1, 7), columns=None, load=_load, arrays=(KEY, TRAIN, TARGET), **options):
    return map_checkpoints(path, "trak", columns or _columns(), load, ids, arrays, **options)


def _files(path):
    return {file.name: file.stat().st_mtime_ns for file in (path / "units").iterdir()}


def test_equals_all_checkpoints_stacked(tmp_path):
    kernel, factor, info = _run(tmp_path, columns=_trak)
    checkpoints = per_checkpoint.stack_checkpoints([_load(id) for id in (0, 1, 7)])
    ids = jnp.array([0, 1, 7])
    want = trak.group_scores(KEY, MODEL, checkpoints, TRAIN, TARGET, 2, ids=ids, options=trak.Options(rademacher(5)))
    np.testing.assert_allclose(per_checkpoint.combine(kernel, factor), want.columns, rtol=1e-4, atol=1e-6)
    assert info.finite.shape == (3, 21)


def test_goes_on_after_a_kill_at_any_checkpoint(tmp_path):
    whole = _run(tmp_path / "whole")
    for survived in (1, 2):

        def kill(id, survived=survived):
            if id == (0, 1, 7)[survived]:
                raise KeyboardInterrupt

        path = tmp_path / str(survived)
        with pytest.raises(KeyboardInterrupt):
            _run(path, progress=kill)
        before = _files(path)
        resumed = _run(path)
        after = _files(path)
        assert {name: after[name] for name in before} == before  # read, not written again
        assert after.keys() == _files(tmp_path / "whole").keys()
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": _columns(damping=0.2)},
        {"columns": _columns(projection=sjlt(5))},
        {"columns": _columns(projection=rademacher(6))},
        {"arrays": (jax.random.key(1), TRAIN, TARGET)},
        {"arrays": (KEY, TRAIN._replace(id=TRAIN.id + 1), TARGET)},
        {"arrays": (KEY, TRAIN, TARGET._replace(group=1 - TARGET.group))},
        {"load": lambda id: jax.tree.map(lambda a: a * 1.001, _load(id))},
        {"settings": {"data": "another"}},
    ],
    ids=["damping", "projection", "size", "key", "train ids", "target groups", "variables", "settings"],
)
def test_a_stale_block_is_never_reused(tmp_path, change):
    _run(tmp_path, ids=[0])
    (old,) = _files(tmp_path)
    _run(tmp_path, ids=[0])
    assert list(_files(tmp_path)) == [old]
    _run(tmp_path, ids=[0], **change)
    assert len(_files(tmp_path)) == 2


def test_a_damaged_block_is_computed_again(tmp_path):
    want = _run(tmp_path, ids=[0])
    (file,) = (tmp_path / "units").iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    jax.tree.map(np.testing.assert_array_equal, _run(tmp_path, ids=[0]), want)


def test_what_fails_its_check_is_not_written(tmp_path):
    bad = TRAIN._replace(x=np.where(np.arange(21)[:, None] == 3, np.nan, TRAIN.x).astype(np.float32))
    check = lambda id, out: trak.check(out[2], example_ids=TRAIN.id + 100, checkpoint_ids=[id])
    with pytest.raises(FloatingPointError, match=r"\[103\].*\[7\]"):
        _run(tmp_path, ids=[7], columns=_trak, arrays=(KEY, bad, TARGET), check=check)
    assert not (tmp_path / "units").exists()


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="number 1 differs from number 0"):
        _run(tmp_path, load=lambda id: dense.mlp((3 + id,), 2).init(KEY, TRAIN.x))
    with pytest.raises(ValueError, match="distinct"):
        _run(tmp_path, ids=[2, 2])
