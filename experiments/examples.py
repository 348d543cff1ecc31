"""Single examples of a task on the page of a study: pictures under titles, or sentences in a table.

arrays |= stored(task, seed, data.train, rows)                     # what a unit keeps of them
figures, tables = shown("Training {} of lowest score.", arrays, {"label": [...], "score": [...]})
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from d3mjax.data import cells
from d3mjax.reports import page, plots
from d3mjax.types import Split
from experiments.tasks import Task

COUNT = 24


def stored(task: Task, seed: int, split: Split, rows: Int[np.ndarray, "k"]) -> dict[str, np.ndarray]:
    """Pictures or sentences of these rows, and the rows; empty where the task has neither."""
    raw = task.examples(seed, split, rows)
    return {} if raw is None else {"shown": np.asarray(raw), "shown_row": np.asarray(rows)}


def shown(
    caption: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Figure], dict[str, list[dict[str, Any]]]]:
    """Figures and tables by caption, either of which is empty, of what `stored` kept; ``facts`` by name, one each.

    Braces in the caption become "images" or "sentences". Titles of pictures are their facts.
    """
    raw = arrays.get("shown", np.zeros(0))
    if not len(raw):
        return {}, {}
    if raw.dtype.kind == "U":
        of_each = zip(*facts.values(), strict=True)
        lines = [
            {"sentence": cells.short(text, length=page.LONGEST), **dict(zip(facts, values, strict=True))}
            for text, values in zip(raw.tolist(), of_each, strict=True)
        ]
        return {}, {caption.format("sentences"): lines}
    titles = [" ".join(map(str, values)) for values in zip(*facts.values(), strict=True)]
    return {caption.format("images"): plots.image_grid(raw, titles)}, {}
