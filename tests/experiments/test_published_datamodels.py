"""Fits to matrices in the published layout: bool masks [m n] and float16 margins [m t]."""

import numpy as np
import pytest

from experiments.datamodels import published


@pytest.fixture
def files(tmp_path):
    """400 models on halves of 24 examples; two examples matter to each of three targets, with little noise."""
    rng = np.random.default_rng(0)
    masks = np.argsort(rng.random((400, 24)), axis=1) < 12
    weight = np.zeros((3, 24))
    weight[np.arange(3), [1, 5, 9]], weight[np.arange(3), [2, 6, 10]] = 2.0, -1.0
    margins = masks @ weight.T + 0.1 * rng.normal(size=(400, 3))
    np.save(tmp_path / "train_masks_50pct.npy", masks)
    np.save(tmp_path / "test_margins_50pct.npy", margins.astype(np.float16))
    return tmp_path / "train_masks_50pct.npy", tmp_path / "test_margins_50pct.npy", weight


def test_weights_are_recovered_and_predict_later_rows(files, capsys):
    *paths, weight = files
    out = paths[0].with_name("weights.npz")
    published.main(*paths, models=300, heldout=100, targets=2, out=out)
    stored, shown = np.load(out), capsys.readouterr().out
    for method in published.METHODS:
        found = stored[f"{method}/weight"]
        assert found.shape == (2, 24)
        # Halves of fixed size leave the level of the weights open; noise .1 over 300 rows of variance 1/4.
        level = (found - weight[:2]).mean(1, keepdims=True)
        np.testing.assert_allclose(found - level, weight[:2], atol=0.1)
        assert f"{method}: LDS 0.9" in shown


def test_completed_rows_and_bounds(files):
    *paths, _ = files
    completed = paths[0].with_name("_completed.npy")
    np.save(completed, np.arange(400) < 50)
    results = published.fit(*paths, completed=completed, models=40, heldout=10, targets=1)
    assert set(results) == set(published.METHODS)
    with pytest.raises(ValueError, match="found 41 and 10, expected at least 16 and 8, at most 50 in all"):
        published.fit(*paths, completed=completed, models=41, heldout=10)
