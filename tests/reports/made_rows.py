"""Rows with the numbers of a realistic run."""

from typing import Any

import numpy as np

from d3mjax.reports import rows


def spread(mean, deviation):
    """Four seeds at 1, -1, 2 and -2 deviations; their standard deviation is sqrt(10 / 3) deviations."""
    return np.array([1, -1, 2, -2]) * deviation + mean


def made(method, role, wga, average, removed=0.0, *, information="none", controls="", **extra: Any):
    """A row of the task "patch"."""
    values = {rows.WGA: spread(*wga), "average_accuracy": [average] * 4, "removed": [removed] * 4, **extra}
    settings = rows.Kind(role, controls=controls).settings()
    return rows.row("patch", method, values, role=role, information=information, settings=settings)


def patch_rows():
    """Plain training, two controls that remove as much, ours, the targets alone, and a yardstick."""
    validation: dict[str, Any] = {"information": "validation groups"}
    return [
        made("ERM", "plain", (0.313, 0.02), 0.683),
        made("random removal", "control", (0.323, 0.02), 0.68, 0.512, controls="number"),
        made("matched", "control", (0.311, 0.02), 0.68, 0.512, controls="class balance"),
        made("new", "ours", (0.789, 0.01), 0.838, 0.512, **validation, lds=[0.7, 0.71, 0.69, 0.7]),
        made("targets", "control", (0.45, 0.02), 0.7, controls="targets alone", **validation),
        made("SUBG", "yardstick", (0.798, 0.01), 0.84, 0.9, information="training groups"),
    ]
