"""Detectors of wrong labels on a made problem: their rankings, suspects, and figures by hand."""

import numpy as np

from experiments.d3m import natural_label_errors as study
from experiments.d3m.natural_label_errors import Found

Y = np.repeat([0, 1], 40)
WRONG = np.isin(np.arange(80), (3, 11, 45))


def out_of_sample():
    """Probabilities of .9 for the right class, of rows of which three have another label."""
    right = np.where(WRONG, 1 - Y, Y)
    return np.where(np.arange(2)[None] == right[:, None], 0.9, 0.1)


def test_cleanlab_and_datalab_suspect_the_wrong_rows():
    for found in (study.confident(Y, out_of_sample()), study.datalab(Y, out_of_sample())):
        assert found.suspects is not None
        np.testing.assert_array_equal(found.suspects, WRONG)
        assert found.scores[WRONG].min() > found.scores[~WRONG].max()


def test_figures_by_hand():
    scores = np.arange(4.0)
    facts = study.quality(Found(scores, np.array([False, True, True, False])), np.array([False, False, True, True]))
    assert facts["auprc"] == facts["auc"] == 1
    assert (facts["suspected"], facts["precision"], facts["recall"], facts["f1"]) == (0.5, 0.5, 0.5, 0.5)
    assert set(study.quality(Found(scores), np.array([False, False, True, True]))) == {"auprc", "auc"}
    none = study.quality(Found(scores, np.zeros(4, bool)), np.array([False, False, True, True]))
    assert none["precision"] == none["recall"] == 0


def test_shares_of_the_nearest_leave_the_row_out():
    x = np.concatenate([np.arange(11.0), 100 + np.arange(11.0)])[:, None]
    y = np.repeat([0, 1], 11)
    y[0] = 1
    shares = study.nearest(x, y, 2)
    assert shares[0].tolist() == [1, 0]
    np.testing.assert_allclose(shares[5], [0.9, 0.1])
