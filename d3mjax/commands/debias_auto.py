"""The option ``--auto`` of d3mjax-debias: targets without group labels, split class by class, and what to report.

Every seed splits the targets that it scores on, and no others, so that those that select and report have no part in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d3mjax.commands.debias_data import UserData
from d3mjax.debiasing import pseudo_groups
from d3mjax.debiasing.d3m import Evaluation
from d3mjax.runtime.runs import Unit
from d3mjax.types import Data, Split

LEAST = 0.15  # share of the variance of errors that must lie between the sides
SIDES = ("stronger side", "weaker side")  # `loss_direction` puts those that fail more often above the cut

ABOUT = (
    "As with --auto there are none, selection and report go by the classes, and 'worst group' in tables and "
    "figures means the worst class. The accuracy of the worst of the true groups is unknown."
)


def names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the pseudo-groups ``2 y + bit``."""
    return tuple(f"{name}, {side}" for name in class_names for side in SIDES)


def by_pseudo_group(data: Data) -> Data:
    """Groups ``2 y`` everywhere: classes, numbered as pseudo-groups are, so that one program evaluates both."""
    return Data(*(split._replace(group=2 * np.asarray(split.y)) for split in data))


def by_class(evaluation: Evaluation) -> Evaluation:
    """Accuracies of the classes, out of those of groups ``2 y``; losses keep all pseudo-groups."""
    by_group = ("selection", "test", "selection_with_offsets", "test_with_offsets")
    return evaluation._replace(**{name: getattr(evaluation, name)[..., ::2] for name in by_group})


def unit_of(pseudo: pseudo_groups.PseudoGroups, target: Split) -> Unit:
    """The split of one seed, to be stored. The facts are by class, None where a class could not be examined."""
    sizes = np.bincount(pseudo.group, minlength=2 * len(pseudo.split)).reshape(-1, 2)
    known = {
        name: [float(value) if np.isfinite(value) else None for value in getattr(pseudo, name)]
        for name in ("separation", "loss_share")
    }
    facts = {"split": pseudo.split, "sides": sizes, **known}
    return {"auto": facts}, {"target_id": np.asarray(target.id), "pseudo_group": pseudo.group}


def of_seeds(units: Sequence[Unit]) -> list[Mapping[str, Any]]:
    """The facts of every seed; none without --auto."""
    return [facts["auto"] for facts, _ in units if "auto" in facts]


def refused(splits: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every seed refused every class, so that nothing is removed."""
    return bool(splits) and not any(any(split["split"]) for split in splits)


def refusal() -> list[str]:
    """Findings where no seed found groups: the verdict, and the next steps."""
    return [
        "Leave it: no reliable groups were found among the targets, so nothing is removed.",
        "This does not show that no group does badly: the details have the numbers of every class.",
        "Give group labels for some validation rows, a few dozen of every group, and use --group.",
        "Or give more targets, above all more of those that you expect to fail.",
    ]


def caveats(splits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Findings about the groups where some seed found any; none without --auto."""
    refusing = sum(not any(split["split"]) for split in splits)
    text = f"{refusing} of {len(splits)} seeds found no reliable groups and removed nothing: do not rely on this list."
    unknown = "Accuracies are of the worst class: the true groups are unknown without group labels (--group)."
    return [text] * bool(refusing) + [unknown] * bool(splits)


def details(splits: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[str]:
    """Paragraphs on how every class was split, over the seeds that split any, or over all."""
    accepted = [split for split in splits if any(split["split"])] or splits
    about = "The targets that score were split by what the checkpoints get wrong; pseudo_groups.csv lists them."
    return [about, *_numbers(accepted, class_names), _rule()]


def target_lines(data: UserData, units: Sequence[Unit]) -> list[tuple[Any, ...]]:
    """Id, class, pseudo-group by majority, share of the weaker side, and number of the seeds that split its class.

    The middle two are empty for a target that no seed split.
    """
    target, group_names = data.target, names(data.class_names)
    seeds, weaker = np.zeros((2, len(target.y)), int)
    for facts, arrays in units:
        at = np.searchsorted(target.id, arrays["target_id"])
        seeds[at] += np.asarray(facts["auto"]["split"])[target.y[at]]
        weaker[at] += arrays["pseudo_group"] % 2
    lines = []
    for name, y, k, w in zip(data.target_names, target.y, seeds, weaker, strict=True):
        side = (group_names[2 * y + (2 * w > k)], f"{w / k:.2f}") if k else ("", "")
        lines.append((name, data.class_names[y], *side, k))
    return lines


def _rule() -> str:
    return (
        f"A split counts if, on the mean over classes, at least {LEAST:.0%} of the variance of the errors lies between "
        "its sides (loss share), and only in classes with 10 targets to score on, at least 5 and 1 % on each side. "
        f"Separation is the same share of the number that was split: {pseudo_groups.ONE_GAUSSIAN:.2f} indicates a "
        "single cluster, 1 two that are far apart."
    )


def _numbers(splits: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[str]:
    """A sentence for each class, means over seeds."""
    sizes = np.mean([split["sides"] for split in splits], axis=0)
    lines = []
    for c, name in enumerate(class_names):
        sides = " + ".join(f"{size:.0f} on the {side}" for size, side in zip(sizes[c], SIDES, strict=True))
        whole = not any(split["split"][c] for split in splits)
        members = f"{sizes[c].sum():.0f} targets, not split" if whole else sides
        lines.append(
            f"Class {name}: {members}; loss share {_mean(splits, 'loss_share', c)}, separation "
            f"{_mean(splits, 'separation', c)}."
        )
    return lines


def _mean(splits: Sequence[Mapping[str, Any]], name: str, c: int) -> str:
    known = [split[name][c] for split in splits if split[name][c] is not None]
    return f"{np.mean(known):.2f}" if known else "unknown (too few targets, or no error among them)"
