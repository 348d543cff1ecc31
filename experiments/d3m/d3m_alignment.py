"""D3M on preference pairs: the main table, where the worst group is pairs that prefer the shorter side.

Claim:    removal of training pairs lifts preference accuracy where the shorter side is preferred, in training pairs of
          which 90 % prefer the longer one, without the length of any training pair.
Command:  python -m experiments d3m_alignment
Expected: see docs/results/language.md
Device:   two CPU cores, half an hour, and as long for each other task (`commonsense`, `commonsense-sources`); any JAX
          device works.
"""

from dataclasses import replace

from experiments import preference_tasks
from experiments.d3m import main_table

STUDY = replace(
    main_table.STUDY,
    name="d3m_alignment",
    claim="Removal of training pairs lifts preference accuracy where the shorter side is preferred, without the length "
    "of any training pair.",
    config=main_table.Config(tasks=("kindness",)),
    tasks=preference_tasks.TASKS,
    minutes=30,
    headline=("kindness", "D3M, by selection", "worst_group_accuracy"),
)
