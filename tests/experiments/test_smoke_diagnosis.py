"""Smoke runs of the studies of diagnosis."""

from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "diagnosis"
