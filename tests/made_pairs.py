"""Preference pairs whose sides are exchanged."""

from d3mjax.types import Split


def swapped(split: Split) -> Split:
    """The same preferences in the other order, with their reference."""
    x = {**split.x, "first": split.x["second"], "second": split.x["first"]}
    if "reference" in x:
        x["reference"] = x["reference"][:, ::-1]
    return split._replace(x=x, y=1 - split.y)
