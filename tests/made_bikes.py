"""A made wheel of ISLP: hours of bicycles whose labels follow hour, day and temperature."""

import zipfile
from pathlib import Path

import numpy as np

from d3mjax.data.sets import uci

MONTHS = ("Jan", "Feb", "March", "April", "May", "June", "July", "Aug", "Sept", "Oct", "Nov", "Dec")


def write(path: Path, rows: int = uci.NUM_BIKESHARE) -> Path:
    """Write ``islp-0.6.0-py3-none-any.whl`` into the directory ``path``."""
    rng = np.random.default_rng(0)
    month, hour, weekday = rng.integers(0, 12, rows), rng.integers(0, 24, rows), rng.integers(0, 7, rows)
    working, temp = (weekday % 6 > 0).astype(int), np.round(rng.random(rows), 2)
    busy = np.where(np.isin(hour, [7, 8, 9, 16, 17, 18, 19]) == working, 200, 60)
    label = np.maximum(np.round(busy * (0.5 + temp) + 20 * rng.normal(size=rows)), 1).astype(int)
    weather = np.array(["clear", "cloudy/misty"])[rng.integers(0, 2, rows)]
    header = "season,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,bikers"
    lines = [
        f"{m // 3 + 1},{MONTHS[m]},{h},0,{d},{w},{s},{t},{t},{0.5 + t / 4},0.1,{y}"
        for m, h, d, w, s, t, y in zip(month, hour, weekday, working, weather, temp, label, strict=True)
    ]
    wheel = path / "islp-0.6.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(uci.BIKESHARE, "\n".join([header, *lines]))
    return wheel
