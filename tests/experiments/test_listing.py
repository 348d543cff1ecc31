"""The command that lists and runs studies, in a process of its own."""

import subprocess
import sys

# Each process decides on its devices after it has read its arguments: no import may touch them.
AFTER_IMPORT = """
import d3mjax.commands.debias, d3mjax.commands.diagnose, jax
from experiments.__main__ import studies
studies()
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count() == 3
"""


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_no_import_touches_the_devices():
    done = python("-c", AFTER_IMPORT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_unknown_study_lists_those_there_are_with_the_nearest():
    done = python("-m", "experiments", "lds_trk")
    assert done.returncode == 2
    assert "Did you mean lds_trak?" in done.stdout
    assert "main_table, " in done.stdout


def test_a_wrong_field_is_one_clear_message_before_any_work():
    done = python("-m", "experiments", "d3m", "--config.tasks", "cats", "--results", "/dev/null/none")
    assert done.returncode == 1
    assert "tasks: found ['cats'], expected names among" in done.stderr
    assert "Traceback" not in done.stderr
