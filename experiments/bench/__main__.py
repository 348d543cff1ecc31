"""Run the side-by-side benchmarks and print their tables.

Claim:    many small models train several times faster than in PyTorch on the same machine; TRAK takes fewer seconds
          than in the authors' library and gives the same scores; LASSO paths take fewer than scikit-learn's; ResNets
          and BERT compute what torchvision and transformers do (`--only parity`: an error otherwise).
Command:  make bench        (installs PyTorch into an environment of its own; `python -m experiments.bench --smoke`)
Expected: on two cores 15.4 times the rate of a PyTorch loop and 2.6 times that of `torch.func.vmap` for an MLP of
          196-64-2; a quarter of a second for TRAK by an SJLT (p = 512), 10.8 times faster than the library; LASSO
          paths 19.8 times faster. Absolute figures depend on the machine; its matrix product rate is stored with them.
Device:   two CPU cores, 15 minutes.
"""

import time
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from d3mjax.reports import tables
from d3mjax.runtime import hosts, runs, store
from experiments.bench import bank, decoders, encoders, lasso, models, parity, replays, solves, tensor, trak

Part = Literal[
    "all", "models", "trak", "lasso", "bank", "tensor", "encoders", "decoders", "parity", "solves", "replays"
]


def main(
    results: Path = Path("results"),
    run: str | None = None,
    torch_python: Path = Path(".venv-bench/bin/python"),
    only: Part = "all",
    smoke: bool = False,
) -> None:
    """Benchmark; a ratio is our rate over that of the named alternative."""
    hosts.start()
    begin = time.perf_counter()
    config = {"only": only, "smoke": smoke}
    directory = runs.open_run(results, "bench", config, run)
    against_torch = {"models": models.bench, "trak": trak.bench, "parity": parity.bench}
    against_torch |= {"decoders": decoders.bench}
    parts = {name: partial(part, torch_python) for name, part in against_torch.items()}
    parts |= {"lasso": lasso.bench, "bank": bank.bench, "tensor": tensor.bench, "encoders": encoders.bench}
    parts |= {"solves": solves.bench, "replays": replays.bench}
    rows = [row for name, part in parts.items() if only in ("all", name) for row in part(smoke=smoke)]
    document = runs.metrics_document("bench", config, rows, time.perf_counter() - begin)
    store.write_json(directory / "metrics.json", document)
    for task in dict.fromkeys(row["task"] for row in rows):
        print(f"\n{task}\n{tables.text([row for row in rows if row['task'] == task])}")


if __name__ == "__main__":
    tyro.cli(main)
