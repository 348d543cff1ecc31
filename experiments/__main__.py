"""The list of studies, and the command that runs one.

Command:  python -m experiments                          lists every study: claim, headline number, minutes
          python -m experiments NAME [--smoke] [...]     runs or resumes one; --help shows its configuration
          python -m experiments report RUN | --all       prints the tables of a run; writes docs/results
"""

import difflib
import importlib
import sys

from experiments.study import Study, cli

# Where each study stands. A module may hold several.
WINGS = {
    "experiments.d3m": (),
    "experiments.datamodels": (
        *("lds_trak", "lds_datamodels", "lds_influence"),
        *("counterfactuals", "brittleness", "leakage", "similar_examples", "embeddings"),
    ),
    "experiments.bias": ("fmd", "fmd_against_d3m", "influence_on_bias"),
    "experiments.diagnosis": ("diagnose", "networks", "ablate", "repair", "teach"),
}


def studies() -> dict[str, Study]:
    """Every study by name, wing by wing."""
    modules = (importlib.import_module(f"{wing}.{name}") for wing, names in WINGS.items() for name in names)
    values = (value for module in modules for value in vars(module).values() if isinstance(value, Study))
    return {study.name: study for study in values}


def listing() -> str:
    """A line a study: name, minutes and claim."""
    known = studies()
    width = max(map(len, known), default=0)
    lines = [f"{name:{width}}  {study.minutes:5.0f} min  {study.claim}" for name, study in known.items()]
    lines.append("python -m experiments.bench [--smoke] measures speed; make bench does so side by side with PyTorch.")
    return "\n".join(["python -m experiments NAME [--smoke] runs one of:", *lines])


def main(arguments: list[str]) -> int:
    """Run what the arguments name; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *rest = arguments
    known = studies()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"python -m experiments: found study {name!r}, expected one of the list.{hint}\n\n{listing()}")
        return 2
    cli(known[name], rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
