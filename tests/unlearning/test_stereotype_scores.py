"""Scores of stereotypes against values by hand, and their bootstrap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.unlearning import stereotypes

# Rows of the terms A (4 rows), B (2 rows) and C (1 row): stereotype, anti-stereotype, unrelated.
LOG_PROBS = np.array(
    [
        [-1.0, -2.0, -3.0],  # A: pro, both related
        [-2.0, -1.0, -3.0],  # A: anti, both related
        [-1.0, -3.0, -2.0],  # A: pro, the stereotype alone is related
        [-1.0, -3.0, -0.5],  # A: pro, none is related
        [-2.0, -2.0, -2.0],  # B: a tie is anti, and unrelated
        [-1.0, -2.0, -2.0],  # B: pro, the tie is unrelated
        [-1.0, -2.0, -9.0],  # C: pro, both related
    ]
)
TERM = np.array([0, 0, 0, 0, 1, 1, 2])


def test_terms_by_hand():
    terms = stereotypes.of_terms(LOG_PROBS, TERM, 3)
    np.testing.assert_allclose(terms.ss, [75, 50, 100])
    np.testing.assert_allclose(terms.lms, [100 * 5 / 8, 100 * 1 / 4, 100])
    # LMS min(SS, 100 - SS) / 50 of each term: 62.5 x 25 / 50, 25 x 50 / 50, 100 x 0 / 50.
    np.testing.assert_allclose(terms.icat, [31.25, 25, 0])


def test_terms_count_the_same_whatever_their_rows():
    """SS 75 is the mean of 75, 50, 100; over rows it would be 5 / 7."""
    scores = stereotypes.overall(stereotypes.of_terms(LOG_PROBS, TERM, 3))
    np.testing.assert_allclose(scores.ss, 75)
    np.testing.assert_allclose(scores.lms, 62.5)
    np.testing.assert_allclose(scores.icat, 62.5 * 25 / 50)


@pytest.mark.parametrize(("ss", "icat"), [(50, 100), (0, 0), (100, 0), (60, 80), (40, 80)])
def test_icat_is_best_at_half(ss, icat):
    np.testing.assert_allclose(stereotypes.Scores(jnp.float32(ss), jnp.float32(100)).icat, icat)


def test_sides_swapped_mirror_the_score():
    distinct = LOG_PROBS[[0, 1, 2, 3, 5, 6]]
    terms = stereotypes.of_terms(distinct, TERM[[0, 1, 2, 3, 5, 6]], 3)
    swapped = stereotypes.of_terms(distinct[:, [1, 0, 2]], TERM[[0, 1, 2, 3, 5, 6]], 3)
    np.testing.assert_allclose(swapped.ss, 100 - terms.ss)
    np.testing.assert_allclose(swapped.lms, terms.lms)


def test_a_term_without_rows_is_not_a_score_of_zero():
    assert np.isnan(stereotypes.of_terms(LOG_PROBS, TERM, 4).ss[3])


def test_crows_by_hand():
    np.testing.assert_allclose(stereotypes.crows(LOG_PROBS[:, :2]), 100 * 5 / 7, rtol=1e-6)


def test_bootstrap_has_the_deviation_of_a_mean():
    """Of T terms the standard deviation is that of terms over sqrt(T)."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 100, (2, 25)).astype(np.float32)
    draws = stereotypes.resampled(jax.random.key(0), stereotypes.Scores(*values), 4000)
    # 4,000 draws: relative standard error of a standard deviation 1 / sqrt(8000) = .011.
    for drawn, of_terms in zip(draws, values, strict=True):
        np.testing.assert_allclose(drawn.std(), of_terms.std() / 5, rtol=0.05)
        np.testing.assert_allclose(drawn.mean(), of_terms.mean(), atol=4 * of_terms.std() / 5 / 4000**0.5)


def test_bootstrap_of_two_models_is_paired():
    """A model that is worse by 3 in every term is worse by 3 in every draw."""
    ss = np.linspace(40, 80, 9, dtype=np.float32)
    key, lms = jax.random.key(1), jnp.full(9, 90.0)
    one, other = (stereotypes.resampled(key, stereotypes.Scores(jnp.asarray(a), lms), 50) for a in (ss, ss + 3))
    np.testing.assert_allclose(other.ss - one.ss, 3, rtol=1e-5)
    assert float(one.ss.std()) > 1
