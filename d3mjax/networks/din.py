"""Deep interest networks: whether a user takes an item, from the items that the user took before.

    model = din(sizes_of(x, num_users, num_items))     # x as `data.sets.ratings.inputs` makes it
    seen, variables = without_embeddings(model, variables)   # for attribution: gradients of the dense part alone

Both weigh the history by its relevance to the candidate. DIN sums it; DIEN reads it by a gated recurrent unit (GRU),
and its states by a second one, whose update gate is multiplied by the relevance. Positions of -1 are not part of
a history. Sources: Zhou et al., "Deep interest network", KDD 2018, and "Deep interest evolution network", AAAI 2019,
without its auxiliary loss; sizes are those of DeMix.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax.tree_util import keystr
from jaxtyping import Array, Bool, Float, PyTree

from d3mjax.networks.adapt import from_linen
from d3mjax.types import AnyArray, Model

FROZEN = "embeddings"
"""The collection that holds embeddings where they are not attributed."""


class Sizes(NamedTuple):
    """How many rows each embedding has."""

    users: int
    items: int
    levels: tuple[int, ...]  # of each category


class Widths(NamedTuple):
    """Widths of layers, and the share of units that training drops."""

    embedding: int = 8
    attention: tuple[int, ...] = (64, 32)
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.6


def din(sizes: Sizes, *, widths: Widths = Widths()) -> Model:
    """DIN: ``{"user", "item", "history", "levels", "numbers", "members", "history_members"} -> logits [b 2]``.

    An item is its embedding beside the mean embedding of its members (genres), if there are any. The MLP reads user,
    candidate, the history weighted by a softmax of the attention MLP, levels and numbers. A user, item or level below 0
    is unknown: its embedding is zero.
    """
    return from_linen(_Interest(sizes, widths, _summed))


def dien(sizes: Sizes, *, widths: Widths = Widths()) -> Model:
    """DIEN: as `din`, with two recurrent units in place of the sum."""
    return from_linen(_Interest(sizes, widths, _evolved))


def without_embeddings(model: Model, variables: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The same function, whose parameters are all but the embeddings: for attribution, which differentiates these.

    Embeddings have few rows in common between examples, and most of the parameters; DeMix leaves them out.
    """
    of = lambda embedding: jax.tree.map_with_path(
        lambda path, leaf: leaf if ("embedding" in keystr(path)) == embedding else None, variables["params"]
    )

    def apply(variables: Mapping[str, Any], x: PyTree, *, train: bool = False) -> tuple[Any, Mapping[str, Any]]:
        merge = lambda a, b: b if a is None else a
        params = jax.tree.map(merge, variables["params"], variables[FROZEN], is_leaf=lambda a: a is None)
        state = {name: value for name, value in variables.items() if name != FROZEN}
        logits, after = model.apply({**state, "params": params}, x, train=train)
        kept = {name: variables[name] for name in ("params", FROZEN)}
        return logits, {**after, **kept} if train else variables

    return Model(model.init, apply), {**variables, "params": of(False), FROZEN: of(True)}


class _Interest(linen.Module):
    sizes: Sizes
    widths: Widths
    read: Callable[..., Float[Array, "b d"]]  # (candidate, history, mask, attention) -> interest

    @linen.compact
    def __call__(self, x: Mapping[str, AnyArray], train: bool = False) -> Float[Array, "b 2"]:
        width = self.widths.embedding
        embed = lambda name, rows: linen.Embed(rows, width, embedding_init=linen.initializers.normal(0.1), name=name)
        items = embed("item_embedding", self.sizes.items)
        groups = x["members"].shape[1]
        members = embed("member_embedding", groups) if groups else None

        def item(rows, sets):
            vector = _looked_up(items, rows)
            if members is None:
                return vector
            sets = sets.astype(vector.dtype)
            count = jnp.maximum(sets.sum(-1, keepdims=True), 1)
            return jnp.concatenate([vector, jnp.matmul(sets, members.embedding, precision="highest") / count], axis=-1)

        candidate = item(x["item"], x["members"])
        history, mask = item(x["history"], x["history_members"]), x["history"] >= 0
        interest = self.read(candidate, history, mask, self.widths.attention)
        parts = [_looked_up(embed("user_embedding", self.sizes.users), x["user"]), candidate, interest]
        for k, rows in enumerate(self.sizes.levels):
            parts.append(_looked_up(embed(f"level_embedding_{k}", rows), x["levels"][:, k]))
        hidden = jnp.concatenate([*parts, x["numbers"]], axis=-1)
        for units in self.widths.hidden:
            hidden = linen.relu(linen.Dense(units)(hidden))
            hidden = linen.Dropout(self.widths.dropout, deterministic=not train)(hidden)
        return linen.Dense(2, name="logits")(hidden)


def _looked_up(embedding: linen.Embed, rows: AnyArray) -> Float[Array, "*b e"]:
    rows = jnp.asarray(rows)
    return jnp.where((rows >= 0)[..., None], embedding(jnp.maximum(rows, 0)), 0)


def _relevance(
    candidate: Float[Array, "b d"], history: Float[Array, "b h d"], mask: Bool[AnyArray, "b h"], widths: Sequence[int]
) -> Float[Array, "b h"]:
    """Softmax over the history of an MLP of both vectors, their difference and product; all 0 without a history."""
    of = jnp.broadcast_to(candidate[:, None], history.shape)
    hidden = jnp.concatenate([of, history, of - history, of * history], axis=-1)
    for k, units in enumerate(widths):
        hidden = linen.relu(linen.Dense(units, name=f"attention_{k}")(hidden))
    scores = linen.Dense(1, name="attention")(hidden)[..., 0]
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), 0)


def _summed(candidate, history, mask, widths) -> Float[Array, "b d"]:
    """Interest of DIN."""
    weight = _relevance(candidate, history, mask, widths)
    return (weight[..., None] * history).sum(1)


def _evolved(candidate, history, mask, widths) -> Float[Array, "b d"]:
    """Interest of DIEN: the last state of the second unit."""
    size = history.shape[-1]
    states = _Recurrent(size, name="extraction")(history, mask, jnp.ones(mask.shape))
    weight = _relevance(candidate, states, mask, widths)
    return _Recurrent(size, name="evolution")(states, mask, weight)[:, -1]


class _Recurrent(linen.Module):
    """A GRU whose update gate is multiplied by ``attention``; it keeps its state where ``mask`` is False."""

    size: int

    @linen.compact
    def __call__(
        self, x: Float[Array, "b h d"], mask: Bool[AnyArray, "b h"], attention: Float[Array, "b h"]
    ) -> Float[Array, "b h {self.size}"]:
        size, start = self.size, linen.initializers.lecun_normal()
        of_input = self.param("input", start, (x.shape[-1], 3 * size))
        of_state = self.param("state", start, (size, 3 * size))
        bias = self.param("bias", linen.initializers.zeros, (3 * size,))
        inputs = jnp.matmul(x, of_input, precision="highest") + bias[None, None]
        gates, reset_part = of_state[:, : 2 * size], of_state[:, 2 * size :]

        def step(state, at):
            given, known, attended = at
            update, reset = jnp.split(linen.sigmoid(given[:, : 2 * size] + jnp.matmul(state, gates)), 2, axis=-1)
            proposed = jnp.tanh(given[:, 2 * size :] + jnp.matmul(reset * state, reset_part))
            share = attended[:, None] * update
            state = jnp.where(known[:, None], (1 - share) * state + share * proposed, state)
            return state, state

        along = lambda a: jnp.moveaxis(jnp.asarray(a), 1, 0)
        first = jnp.zeros((x.shape[0], size), inputs.dtype)
        _, states = jax.lax.scan(step, first, (along(inputs), along(mask), along(attention)))
        return jnp.moveaxis(states, 0, 1)
