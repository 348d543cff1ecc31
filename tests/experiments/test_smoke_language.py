"""Smoke runs of the studies of language models."""

from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "language"
