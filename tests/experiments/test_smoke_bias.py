"""Smoke runs of the studies of bias."""

from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "bias"
