"""Units of the corpus: cells hold the planted rows, scores are ranks, kinds of broken features are recognised."""

import numpy as np
import optax
import pytest

from d3mjax.data.sets.shortcut_tables import TABLES, divide, small
from d3mjax.diagnosis import cells
from d3mjax.networks import dense
from experiments.diagnosis import corpus

TASK = small(TABLES["planted"])


@pytest.mark.slow
def test_cells_hold_what_was_planted():
    task = TASK._replace(rules=TASK.rules[:1])
    network = cells.Network("linear", lambda columns, classes: dense.linear(classes), optax.adam(1e-2), 8)
    progress = []
    collect = corpus.make_collect(task, network, (0.5, 0.8), 150, mesh=None)
    unit = corpus.read(task, 1, *collect(1, progress.append))
    assert progress == [2]
    assert [(cell.rule, cell.clean, cell.seed) for cell in unit] == [(0, 0.5, 1), (0, 0.8, 1)]
    parts = divide(task)
    for cell in unit:
        planned = corpus.plan(task, parts, task.rules[0], cell.clean, 100)
        kept = np.random.default_rng(1).permutation(task.train)[:150]
        np.testing.assert_array_equal(cell.flags, planned.train.flags[kept])
        assert cell.kind == corpus.kind_of(planned)
        assert cell.features.shape == (150, len(cells.FEATURES))
        assert cell.signals.min() > 0
        assert cell.signals.max() < 1
        half = corpus.take(cell, slice(0, None, 2))
        np.testing.assert_array_equal(half.features, cell.features[::2])


def test_the_kind_of_feature_errors_is_that_of_the_numbers_changed():
    parts = divide(TASK)
    planned = [corpus.plan(TASK, parts, TASK.rules[0], 0.5, seed) for seed in range(6)]
    for p in planned:
        before, after = p.train.clean_table.columns, p.train.table.columns
        numbers = [np.unique(after[n][after[n] != before[n]]).size for n in after if n not in p.train.table.levels]
        most = max(numbers)
        assert corpus.kind_of(p) == ("categories" if most == 0 else "outlier" if most <= 2 else "scale")
    assert len(set(map(corpus.kind_of, planned))) > 1
