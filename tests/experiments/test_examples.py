"""Single examples on the page of a study: pictures where a task has images, sentences where it has text."""

from dataclasses import replace

import numpy as np

from experiments import examples
from experiments.tasks import ADULT, PATCH

ROWS = np.array([5, 2])
FACTS = {"label": ["coat", "pullover"], "score": ["-2e-03", "-1e-03"]}
CAPTION = "Training {} of lowest score."


def test_pictures_of_a_task_are_a_figure_with_facts_as_titles():
    split = PATCH.read(0, smoke=True).train
    arrays = examples.stored(PATCH, 0, split, ROWS)
    np.testing.assert_array_equal(arrays["shown"], split.x[ROWS].reshape(2, 14, 14))
    figures, tables = examples.shown(CAPTION, arrays, FACTS)
    assert (list(figures), tables) == (["Training images of lowest score."], {})
    titles = [axes.get_title() for axes in figures["Training images of lowest score."].axes]
    assert titles == ["coat -2e-03", "pullover -1e-03"]


def test_sentences_are_found_by_seed_and_id_and_shown_as_a_table():
    split = ADULT.read(0, smoke=True).train
    task = replace(ADULT, show=lambda seed, ids: [f"seed {seed}, id {i} " + 300 * "x" for i in ids])
    arrays = examples.stored(task, 7, split, ROWS)
    figures, tables = examples.shown(CAPTION, arrays, FACTS)
    assert figures == {}
    (lines,) = tables.values()
    assert list(tables) == ["Training sentences of lowest score."]
    texts = [f"seed 7, id {i} " + 300 * "x" for i in split.id[ROWS]]
    assert [line["sentence"] for line in lines] == [text[:237] + "..." for text in texts]
    assert [(line["label"], line["score"]) for line in lines] == [("coat", "-2e-03"), ("pullover", "-1e-03")]


def test_a_task_of_neither_shows_nothing():
    assert examples.stored(ADULT, 0, ADULT.read(0, smoke=True).train, ROWS) == {}
    assert examples.shown(CAPTION, {}, FACTS) == ({}, {})
