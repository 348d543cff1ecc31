"""The tables with numbers as labels, those of files at the paths where `local_data` finds them."""

from collections.abc import Callable

from d3mjax.data.sets import number_tables
from d3mjax.data.sets.shortcut_tables import Labelled, TableTask
from experiments import local_data


def _of_file(make: Callable[..., TableTask], source: str) -> TableTask:
    """The task, whose file is looked for when it is read."""

    def load() -> Labelled:
        return make(local_data.find(source)).load()

    return make("")._replace(load=load)


BIKE = _of_file(number_tables.bike, "islp")
AIR_QUALITY = _of_file(number_tables.air_quality, "air_quality")
TABLES = {task.name: task for task in (BIKE, AIR_QUALITY, *number_tables.PACKAGED)}
