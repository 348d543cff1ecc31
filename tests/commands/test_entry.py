"""Entry points of the commands, with and without the libraries of the extra ``commands``."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]


def run(target, blocked, argument="--help"):
    """A process that runs an entry point with an argument, where ``blocked`` cannot be imported."""
    module, function = target.split(":")
    lines = (
        f"import sys; sys.argv[1:] = [{argument!r}]; sys.modules[{blocked!r}] = None",
        f"from {module} import {function}",
    )
    return subprocess.run([sys.executable, "-c", "\n".join((*lines, f"{function}()"))], capture_output=True, text=True)


def test_the_scripts_name_functions_that_exist():
    assert set(SCRIPTS) == {"d3mjax-debias", "d3mjax-diagnose"}
    for module, function in (target.split(":") for target in SCRIPTS.values()):
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(("name", "module"), [("d3mjax-debias", "tyro"), ("d3mjax-diagnose", "matplotlib")])
def test_without_the_extra_one_line_names_it(name, module):
    done = run(SCRIPTS[name], module)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{name}: found no module {module!r}, expected those of the extra commands: pip install 'd3mjax[commands]'"
    ]


def test_a_missing_module_of_the_package_is_a_traceback():
    assert "Traceback" in run(SCRIPTS["d3mjax-debias"], "d3mjax.commands.debias_data").stderr


def test_the_first_line_comes_before_the_libraries():
    done = run(SCRIPTS["d3mjax-diagnose"], "matplotlib", "--train")
    assert done.stderr.splitlines()[0] == "d3mjax-diagnose: loading"
    assert "found no module 'matplotlib'" in done.stderr.splitlines()[1]
