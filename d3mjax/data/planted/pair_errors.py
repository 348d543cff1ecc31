"""Swapped sides, damaged responses and a bias for the longer response in preference pairs, with the errors of each.

    errors = pair_errors.inject(key, pairs, options=Options(clean=0.5))
    errors.pairs, errors.flags     # Bool[n e]: sides swapped, response damaged, the shorter side preferred

The order of the flags is that of `mixed_errors.KINDS`, whose counts these are, too: the shorter side is preferred in
a share of the pairs (a minority that is right, and rare), half of the other errors are labels, half damages. Everything
about a pair derives from its id.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, Key

from d3mjax.data.planted import corruptions, mixed_errors
from d3mjax.data.sets import preferences
from d3mjax.data.sets.preferences import Preferences
from d3mjax.types import Table, checked_names

Damage = Callable[[np.random.Generator, str, str], str]
"""``(random numbers, response, response to another prompt) -> response``."""


def truncate(rng: np.random.Generator, response: str, other: str) -> str:
    """The first words, a quarter to a half of them; the first half of the letters of a single word."""
    words = response.split()
    if len(words) == 1:
        return response[: max(1, len(response) // 2)]
    return " ".join(words[: max(1, int(len(words) * rng.uniform(0.25, 0.5)))])


def drop_words(rng: np.random.Generator, response: str, other: str) -> str:
    """Without a random half of the words; a single word loses its second half."""
    words = response.split()
    if len(words) == 1:
        return response[: max(1, len(response) // 2)]
    kept = np.sort(rng.permutation(len(words))[: len(words) // 2])
    return " ".join(words[i] for i in kept)


def exchange(rng: np.random.Generator, response: str, other: str) -> str:
    """The response to another prompt."""
    return other


@checked_names
class Options(NamedTuple):
    """Which errors `inject` plants, and in how many pairs."""

    clean: float = 0.5  # share of the pairs without swapped sides or a damaged response
    share: float | None = 0.15  # of pairs that prefer the shorter side; None: as it is
    size: int | None = None  # number of pairs to keep; None is as many as there can be
    damages: tuple[Damage, ...] = (truncate, drop_words, exchange)  # one drawn for each damaged pair
    preferred: float = 0.5  # share of the damaged pairs whose preferred response is the damaged one


class Errors(NamedTuple):
    """Pairs with planted errors: those given to `inject`, less pairs that made the length bias too weak."""

    pairs: Preferences
    flags: Bool[np.ndarray, "n e"]  # sides swapped, response damaged, shorter side preferred before both
    clean: Preferences


LONGER = mixed_errors.Rule("the longer side is preferred", lambda t: t.columns["longer"] == 1, lambda y: y == 1, True)
"""As many pairs of each side among those that follow the rule, and among those that do not."""


def inject(key: Key[jax.Array, ""], pairs: Preferences, *, options: Options = Options()) -> Errors:
    """Errors in all but a share ``clean`` of the pairs: half of the others are swapped, half have a damaged response.

    First pairs are left out until the longer side is preferred in ``1 - share`` of them, as `mixed_errors.subset` does;
    pairs of sides of one length never stay, unless ``share`` is None. Then the sides of ``floor((1 - clean) n / 2)``
    pairs are swapped, the label staying, and one response each of as many others is damaged. A damage that changes
    nothing, or makes the sides equal, is replaced by the next of ``damages``; the response to another prompt is either
    side of a random pair.

    Raises:
      ValueError: ``clean`` is not in [0, 1]; fewer pairs than ``size``; no damage changes a pair, naming its id.
    """
    clean, share, size, damages, preferred = options
    if not 0 <= clean <= 1:
        raise ValueError(f"clean: found {clean}, expected a share of the pairs in [0, 1]")
    part = [jax.random.fold_in(key, i) for i in range(5)]
    pairs = preferences.take(pairs, _kept(part[0], pairs, share, size))
    rare = preferences.shorter_preferred(pairs).astype(bool)
    num = int((1 - clean) * len(rare) / 2 + 1e-9)
    swapped = corruptions.choose(part[1], pairs.id, num)
    damaged = corruptions.choose(part[2], pairs.id, num, among=~swapped)
    of_preferred = corruptions.choose(part[3], pairs.id, round(preferred * num), among=damaged)
    side = np.where(of_preferred, pairs.y, 1 - pairs.y)
    dirty = swap(_damaged(part[4], pairs, damaged, side, damages), swapped)
    return Errors(dirty, np.stack([swapped, damaged, rare], 1), pairs)


def swap(pairs: Preferences, flags: Bool[np.ndarray, " n"]) -> Preferences:
    """The flagged pairs with their sides exchanged and the label as recorded: a wrong label, or its repair."""
    both = zip(pairs.first, pairs.second, flags, strict=True)
    sides = [(b, a) if flag else (a, b) for a, b, flag in both]
    return pairs._replace(first=[a for a, _ in sides], second=[b for _, b in sides])


def _kept(key, pairs: Preferences, share: float | None, size: int | None) -> Int[np.ndarray, " k"]:
    longer = preferences.longer(pairs)
    if share is None:
        return np.flatnonzero(corruptions.choose(key, pairs.id, len(longer) if size is None else size))
    usable = np.flatnonzero(longer >= 0)
    table = Table({"longer": longer[usable]}, {}, pairs.id[usable])
    return usable[mixed_errors.subset(key, table, pairs.y[usable], LONGER, share=share, size=size)]


def _damaged(key, pairs: Preferences, flags, side, damages: tuple[Damage, ...]) -> Preferences:
    sides = [list(pairs.first), list(pairs.second)]
    seeds = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (4,)))(pairs.id)
    prompts, seeds = np.array(pairs.prompt, object), np.asarray(seeds)
    by_id = np.argsort(pairs.id)
    for i in np.flatnonzero(flags):
        rng = np.random.default_rng(seeds[i])
        response, opposite = sides[side[i]][i], sides[1 - side[i]][i]
        elsewhere = by_id[prompts[by_id] != prompts[i]]
        other = (pairs.first, pairs.second)[rng.integers(2)][rng.choice(elsewhere)] if len(elsewhere) else response
        start = int(rng.integers(len(damages)))
        tried = [damages[(start + k) % len(damages)](rng, response, other) for k in range(len(damages))]
        usable = [text for text in tried if text not in (response, opposite, "")]
        if not usable:
            raise ValueError(f"damages: found none that changes pair {pairs.id[i]}, of {len(damages)}; expected one")
        sides[side[i]][i] = usable[0]
    return pairs._replace(first=sides[0], second=sides[1])
