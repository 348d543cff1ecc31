"""Preferences as examples of two classes: models whose logits are the two sides, so that everything else applies.

A pair is an example ``x = {"first": ..., "second": ...}`` whose label ``y`` is the index of the preferred side. The
cross-entropy of its two logits is

    -log sigmoid(logit_y - logit_other)

with `bradley_terry` the loss of a reward model, with `pairwise` that of direct preference optimisation (DPO):

    model = pairwise(decoders.log_probs(config), beta=0.1)
    both = cache.make_features(bradley_terry(decoders.log_probs(config)), variables, directory, name=..., config=...)
    split = with_reference(split, both(split.x))   # log-probabilities before training, in blocks that are kept on disk

The margin ``logit_y - logit_other`` is `outputs.hard_margin`, the preference accuracy the share of positive ones. The
loss does not change when sides and label are swapped.
Sources: Bradley and Terry, 1952; Rafailov et al., "Direct preference optimization", NeurIPS 2023.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d3mjax.types import AnyArray, Model, Split


def bradley_terry(scorer: Model) -> Model:
    """Logits ``[b 2]``: the score of each side by one ``scorer``, whose output is ``[b]`` or ``[b 1]``.

    ``x`` is a dict of two trees of the same shapes, "first" and "second", whose rows are inputs of ``scorer``; other
    entries are not read. Both sides are one batch of 2 b rows, in training, too.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> from d3mjax.training import preferences
    >>> model = preferences.bradley_terry(d3mjax.mlp((), 1))
    >>> x = {"first": jnp.ones((4, 3)), "second": jnp.zeros((4, 3))}
    >>> logits, _ = model.apply(model.init(jax.random.key(0), x), x)
    >>> logits.shape
    (4, 2)
    """

    def sides(x):
        shapes = [jax.tree.map(jnp.shape, x[side]) for side in ("first", "second")]
        if shapes[0] != shapes[1]:
            raise ValueError(f"x: found sides of shapes {shapes[0]} and {shapes[1]}, expected the same")
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x["first"], x["second"])

    def apply(variables, x, *, train=False):
        scores, variables = scorer.apply(variables, sides(x), train=train)
        return scores.reshape(2, -1).T, variables

    return Model(lambda key, x: scorer.init(key, sides(x)), apply)


def pairwise(log_probs: Model, beta: float) -> Model:
    """DPO: logits ``[b 2] = beta (log p(response | prompt) - reference)``, ``log_probs`` giving one number a text.

    ``x`` has, beside the sides, "reference" ``[b 2]``: what ``log_probs`` gives before training (`with_reference`).
    ``beta`` is per nat, positive: how much a response may gain before the loss is small.

    Raises:
      ValueError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta: found {beta}, expected a positive number")
    both = bradley_terry(log_probs)

    def apply(variables, x, *, train=False):
        values, variables = both.apply(variables, x, train=train)
        return beta * (values - x["reference"]), variables

    return Model(both.init, apply)


def with_reference(pairs: Split, log_probs: Float[AnyArray, "n 2"]) -> Split:
    """The pairs with ``log_probs`` of both sides before training as ``x["reference"]``.

    Raises:
      FloatingPointError: log-probabilities that are not finite, naming the ids of their pairs.
    """
    values = np.asarray(log_probs)
    if len(bad := np.asarray(pairs.id)[~np.isfinite(values).all(1)]):
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        named = ", ".join(map(str, bad[:5].tolist()))
        raise FloatingPointError(f"log_probs: found values that are not finite for pairs {named}{more}")
    return pairs._replace(x={**pairs.x, "reference": values})
