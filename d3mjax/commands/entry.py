"""Entry points of the commands in the terminal; a library of the extra ``commands`` that is missing is one line.

This module imports nothing of the extra, so it can name what is missing instead of a traceback, and show a first line
before the seconds that the libraries of the commands take.
"""

import importlib
import signal
import sys


def debias() -> None:
    """Run ``d3mjax-debias``."""
    _run("debias")


def diagnose() -> None:
    """Run ``d3mjax-diagnose``."""
    _run("diagnose")


def _run(command: str) -> None:
    if "--help" not in sys.argv and "-h" not in sys.argv:
        print(f"d3mjax-{command}: loading", file=sys.stderr, flush=True)
    try:
        module = importlib.import_module(f"d3mjax.commands.{command}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "d3mjax":
            raise
        expected = "expected those of the extra commands: pip install 'd3mjax[commands]'"
        raise SystemExit(f"d3mjax-{command}: found no module {package!r}, {expected}") from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    module.cli()
