"""Smoke runs of the studies of recommenders."""

from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "recommendation"
