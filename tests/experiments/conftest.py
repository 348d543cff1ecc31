"""Studies by wing, for the tests that every study passes."""

import pytest
import smoke


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``name``: the studies of the wing of a class of tests; the slow ones are marked."""
    if wing := getattr(metafunc.cls, "wing", None):
        marks = {name: [] if smoke.SMOKES[name].quick else [pytest.mark.slow] for name in smoke.names_of(wing)}
        metafunc.parametrize("name", [pytest.param(name, marks=of_name) for name, of_name in marks.items()])


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """One directory for all studies, which read the banks and cells of each other."""
    return tmp_path_factory.mktemp("results")
