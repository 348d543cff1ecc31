"""The default diagnoser of d3mjax-diagnose: trees taught on six tables with planted errors.

Claim:    influence vectors of rows with a wrong label or wrong features look alike on different tables; how well a
          diagnoser carries over is measured on tables that were left out, and kept beside it.
Command:  python -m experiments demix_pretrain               (d3mjax-diagnose does this at its first use)
Expected: means over tables left out: label errors at precision 0.673 ± 0.012 and recall 0.717 ± 0.013, feature errors
          at 0.673 ± 0.027 and 0.608 ± 0.053; the largest losses have precision 0.571, the largest z-scores 0.391.
Device:   two CPU cores, 2 minutes after demix_diagnose, whose cells it reads, a quarter of an hour without.
"""

from d3mjax.commands import diagnose_teach
from d3mjax.data.sets.shortcut_tables import TABLES
from experiments.study import Study

STUDY = Study(
    "demix_pretrain",
    claim="Trees taught on tables with planted errors find such errors on tables that were left out.",
    config=diagnose_teach.Config(),
    tasks=TABLES,
    # The tables are calibrated by each other, so they are one unit.
    work=lambda config, results, run: diagnose_teach.teach(config, results, run=run),
    minutes=15,
    headline=(diagnose_teach.ALL, "diagnoser", "label error precision"),
    smoke=diagnose_teach.smoke,
)
