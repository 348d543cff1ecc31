"""The list of studies, and the command that runs one.

Command:  python -m experiments                          lists every study: claim, headline number, minutes
          python -m experiments NAME [--smoke] [...]     runs or resumes one; --help shows its configuration
          python -m experiments report RUN | --all       prints the tables of a run; writes docs/results
"""

import difflib
import importlib
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from d3mjax.reports import tables
from d3mjax.runtime import cache, runs, store
from experiments import published
from experiments.study import Study, cli

# Where each study stands. A module may hold several.
WINGS = {
    "experiments.d3m": (
        "d3m",
        "main_table",
        "d3m_alignment",
        "removal_rules",
        "weight_descent",
        "auto_d3m",
        "case_study",
        "ablate_method",
        "ablate_problem",
        "natural_label_errors",
    ),
    "experiments.datamodels": (
        *("lds_trak", "lds_datamodels", "lds_influence", "metagradient", "trust", "unlearning"),
        *("counterfactuals", "brittleness", "leakage", "similar_examples", "embeddings"),
    ),
    "experiments.bias": ("fmd", "fmd_mnist", "fmd_against_d3m", "influence_on_bias"),
    "experiments.diagnosis": (
        "diagnose",
        "networks",
        "ablate",
        "repair",
        "pretrain",
        "travel",
        "travel_teach",
        "travel_repair",
        "travel_planted",
        "regression",
        "number_pretrain",
    ),
    "experiments.language": ("language", "demix_alignment", "fmd_language"),
    "experiments.recommendation": ("demix_recommendation",),
}


def studies() -> dict[str, Study]:
    """Every study by name, wing by wing."""
    modules = (importlib.import_module(f"{wing}.{name}") for wing, names in WINGS.items() for name in names)
    values = (value for module in modules for value in vars(module).values() if isinstance(value, Study))
    return {study.name: study for study in values}


def listing() -> str:
    """Two lines a study: name, minutes and headline number; claim."""
    lines = ["python -m experiments NAME [--smoke] runs one of:"]
    for name, study in studies().items():
        lines += [f"\n{name}, {study.minutes:g} min. {published.headline(study)}".rstrip(), f"    {study.claim}"]
    lines.append("\npython -m experiments.bench measures speed; make bench does so side by side with PyTorch.")
    return "\n".join([*lines, "python -m experiments report RUN prints the tables of a run."])


def report(
    run: Positional[Path | None] = None,
    *,
    all: bool = False,
    publish: str | None = None,
    only: str = "",
    metrics: str = "",
) -> None:
    """Print the tables of a run as markdown, publish its metrics, or write the tables of all pages.

    Args:
      run: directory of a finished run, ``results/STUDY/RUN``.
      all: fill the tables of ``docs/results/*.md`` and of both READMEs from the published metrics.
      publish: store the metrics of ``run`` under this name in ``docs/results/metrics``; "study" for the study's name.
      only: rows whose "task: method" has a match of this regular expression.
      metrics: names of the metrics to show, separated by commas.
    """
    if run is not None:
        document = store.read_json(run / "metrics.json")
        runs.validate_document(document)
        print(tables.markdown({**published.select(document, only=only, metrics=metrics), "run": run.name}))
        if publish is not None:
            print(published.publish(run, None if publish == "study" else publish))
    if all:
        print("\n".join(str(path) for path in published.fill_pages(studies())))


def main(arguments: list[str]) -> int:
    """Run what the arguments name; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *rest = arguments
    if name == "report":
        tyro.cli(report, prog="python -m experiments report", args=rest)
        return 0
    known = studies()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"python -m experiments: found study {name!r}, expected one of the list.{hint}\n\n{listing()}")
        return 2
    try:
        cache.enable()
        cli(known[name], rest)
    except (ValueError, OSError, FloatingPointError) as error:  # bad input is one line, not a traceback
        print(f"python -m experiments {name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
