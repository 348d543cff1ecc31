"""Smoke runs of the studies of datamodels."""

from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "datamodels"
