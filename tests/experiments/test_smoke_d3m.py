"""Smoke runs of the studies of D3M."""

import smoke
from study_tests import StudyTests


class TestStudies(StudyTests):
    wing = "d3m"


def test_every_study_is_in_the_table():
    assert smoke.studies().keys() == smoke.SMOKES.keys()
