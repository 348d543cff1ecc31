"""Many tables to plant errors in: those of `shortcut_tables`, two of UCI and those of KEEL with 340 rows or more.

Tables without published rules get rules made from themselves (`made_rules`). Files come from `local_data`, and are read
when a table is.
"""

from collections.abc import Mapping
from functools import partial

from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.made_rules import made_rules
from d3mjax.data.sets import keel, uci
from d3mjax.data.sets.shortcut_tables import TABLES, Labelled, TableTask, divide
from experiments import local_data

KEEL = (
    *("australian", "banana", "bands", "bupa", "chess", "contraceptive", "crx", "german", "ionosphere", "led7digit"),
    *("letter", "magic", "mammographic", "marketing", "monk-2", "movement_libras", "mushroom", "optdigits", "penbased"),
    *("phoneme", "pima", "ring", "saheart", "satimage", "segment", "spambase", "splice", "texture", "tic-tac-toe"),
    *("titanic", "twonorm", "vehicle", "vowel", "wdbc", "wisconsin"),
)
FEW = 1500  # rows of a table of which a larger share is used to train on
RULES = 3  # of each table without published ones


def _keel(name: str) -> Labelled:
    return keel.load(local_data.find("keel"), name)


def _bank() -> Labelled:
    return uci.load_bank_additional(local_data.find("bank"))


def _credit_card() -> Labelled:
    return uci.load_credit(local_data.find("credit card"))


TASKS: Mapping[str, TableTask] = {
    **TABLES,
    "bank": TableTask("bank", "Does a client subscribe to a deposit? Calls of a Portuguese bank.", _bank, ()),
    "credit card": TableTask("credit card", "Does a client default? A Taiwanese bank.", _credit_card, ()),
    **{name: TableTask(name, f"{name} of the KEEL repository.", partial(_keel, name), ()) for name in KEEL},
}
"""By name. Those without rules are made whole by `complete`."""


def complete(task: TableTask, rows: int, validation: int) -> TableTask:
    """The task with rules, the number of its classes, and as many rows a cell as all rules leave, up to those given.

    The table is read once.
    """
    table, y = task.load()
    cuts = (0.55, 0.8) if len(y) < FEW else task.cuts
    task = task._replace(load=lambda: (table, y), num_classes=int(y.max()) + 1, cuts=cuts)
    task = task._replace(rules=task.rules or made_rules(table, y, RULES))
    parts = divide(task)
    # Four kinds of rows are rounded down.
    most = [min(mixed_errors.most_rows(*part, rule) for rule in task.rules) - 4 for part in parts[:2]]
    return task._replace(train=min(rows, most[0]), validation=min(validation, most[1]))
