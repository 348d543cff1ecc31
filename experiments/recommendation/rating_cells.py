"""Cells of interactions: recommenders trained on dirty samples, influence vectors, and single scores.

As `d3mjax.diagnosis.cells`, for samples of `ratings` instead of rows of a table. The cosine of channel 1 is that of the
features of user and item, numbers standardised and categories one-hot; influence is that of all parameters but the
embeddings, as published.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.sets import ratings
from d3mjax.data.sets.ratings import Ratings, Samples
from d3mjax.debiasing import propensity
from d3mjax.diagnosis import baseline_scores, oddity, vectors
from d3mjax.diagnosis.cells import EXTRAS, Cell, trained_by_folds
from d3mjax.networks import din
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split, Table, Trainer

BATCH = 128
NETWORKS = {"din": din.din, "dien": din.dien}
LABEL = ("loss", "margin", "path of margins", "left-out loss", "neighbours", "confident learning", "mean harm", "CNCI")
FEATURE = ("largest z", "PCID", "surprise", "far", "rare", "self-influence")
MINORITY = ("JTT error set", "self-influence", "left-out loss", "loss", "rare class")
SIGNALS = tuple(
    f"{letter}: {name}" for letter, names in zip("LFS", (LABEL, FEATURE, MINORITY), strict=True) for name in names
)
"""Scores that need no flags, for flipped labels (L), broken records (F), and the minority of the rule (S)."""


class Learner(NamedTuple):
    """A recommender, its training, and what it sees of samples."""

    model: Model
    trainer: Trainer
    steps: int  # of a training, a multiple of 4
    inputs: Callable[[Samples, Samples], Split]  # (samples, training samples) -> examples of the model


def learner(network: str, whole: Ratings, train: Samples, num_rows: int, *, epochs: int = 5) -> Learner:
    """DIN or DIEN by Adam (rate and decay 1e-3, batches of 128) on ``num_rows`` samples such as those of ``train``."""
    own = {name for columns in train.sets.values() for name in columns}
    levels = tuple(len(of) for name, of in train.table.levels.items() if name not in own)
    model = NETWORKS[network](din.Sizes(len(whole.users.name), len(whole.items.name), levels))
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(1e-3))
    batch = min(BATCH, num_rows)
    trainer = make_trainer(model, objectives.cross_entropy(), tx, sampling.shuffled(), batch_size=batch)
    unknown = lambda part: np.full(len(part.y), -1, np.int32)
    inputs = lambda part, by: Split(ratings.inputs(part, by, whole.items), part.y, unknown(part), part.table.id)
    return Learner(model, trainer, max(4, -(-epochs * num_rows // batch // 4) * 4), inputs)


def make_train(learned: Learner, **spread: Any) -> Callable[..., list[Cell]]:
    """``(key, [(train, validation)], [(train, validation)], [table]) -> [Cell]`` as `cells.make_train`.

    The samples as the model sees them, and features of user and item ``[n d]``. ``spread``: ``width`` and ``mesh`` of
    `ensemble.map_models`.
    """
    model, trainer, steps, _ = learned

    def one(key, parts: tuple[Split, Split], seen: tuple[Any, Any]):
        train, validation = parts
        variables, extras, logits, others = trained_by_folds(
            key, model, trainer, train, steps, attributed=din.without_embeddings
        )
        dense = din.without_embeddings(model, variables)
        labelled_as = lambda c: train._replace(y=jnp.full_like(train.y, c))
        product = lambda c: vectors.gram(*dense, labelled_as(c), validation)
        by_class = jax.lax.map(product, jnp.arange(2)).swapaxes(0, 1)
        return _tensor(logits, by_class, parts, seen), extras, logits, others, by_class.astype(jnp.float16)

    @jax.jit
    def compiled(key, numbers, parts, seen):
        keys = ensemble.model_keys(key, numbers)
        return ensemble.map_models(one, **spread)(keys, parts, seen)

    def train(key, parts: Sequence[Any], seen: Sequence[Any], raw: Sequence[Table]) -> list[Cell]:
        stacked = [jax.tree.map(lambda *a: np.stack(a), *both) for both in (parts, seen)]
        arrays = jax.device_get(compiled(key, np.arange(len(parts)), *stacked))
        made = []
        for channels, extras, *more, table in zip(*arrays, raw, strict=True):
            made.append(Cell(channels, np.concatenate([extras, oddity.scores(table)], 1).astype(np.float32), *more))
        return made

    return train


def _tensor(logits, by_class, parts: tuple[Split, Split], seen: tuple[Any, Any]) -> Float[Array, "n 4 t"]:
    """The four channels of `vectors` as float16."""
    train, validation = parts
    helped = jnp.take_along_axis(by_class, train.y[:, None, None], axis=1)[:, 0]
    lost = jnp.broadcast_to(objectives.losses(logits, train.y)[:, None], helped.shape)
    channels = -helped, vectors.cosine(*seen), vectors.agreement(train.y, validation.y), lost
    largest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(jnp.stack(channels, 1), -largest, largest).astype(jnp.float16)


def features(parts: Sequence[Samples]) -> tuple[Float[np.ndarray, "n d"], ...]:
    """What is recorded of user and item, as numbers that are standardised by the first of ``parts``."""
    encoder = tables.fit_encoder(parts[0].table)
    return tuple(tables.encode(encoder, part.table) for part in parts)


def signals(cell: Cell, train: Samples, validation: Samples, seen: Float[np.ndarray, "n d"]) -> np.ndarray:
    """`SIGNALS` as ranks in the cell ``[n s]``; ``seen`` are `features` of the training samples."""
    table, y = train.table, train.y
    numbers = [seen[:, span] for name, span in tables.slices(table).items() if name not in table.levels]
    softmax = np.asarray(jax.nn.softmax(cell.left_out, axis=1))
    of = lambda labels: np.take_along_axis(cell.by_class, np.asarray(labels)[:, None, None], 1)[:, 0].astype(np.float32)
    glitches = baseline_scores.glitches(of, y, validation.y, 2)
    extra = dict(zip(EXTRAS, cell.extras.T, strict=True))
    loss, margin = cell.vectors[:, 3, 0].astype(np.float32), outputs.hard_margin(jnp.asarray(cell.logits), y)
    label = (loss, -margin, -extra["path"], extra["left out"], baseline_scores.knn_disagreement(seen, y))
    confident, harm = baseline_scores.confident_learning(softmax, y), baseline_scores.mean_harm(of(y))
    label = (*label, confident, harm, glitches.cnci)
    feature = (baseline_scores.outliers(np.concatenate(numbers, axis=1)), glitches.pcid)
    feature = (*feature, extra["surprise"], extra["far"], extra["rare"], extra["norm"])
    rare = (baseline_scores.jtt_errors(cell.logits, y), extra["norm"], extra["left out"], loss)
    scores = (*label, *feature, *rare, baseline_scores.rare_class(y, 2))
    return np.stack([np.asarray(baseline_scores.loss_rank(np.asarray(a, np.float32))) for a in scores], 1)


def balanced(
    seed: int, train: Samples, seen: Float[np.ndarray, "n d"], chosen: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Weights of the ``chosen`` samples, as if users met all items alike (`propensity.kernel_balanced`); 1 for others.

    The population joins what is recorded of each user with an item that is drawn from all different ones.
    """
    spans = tables.slices(train.table)
    of_item = np.concatenate([np.arange(d.start, d.stop) for name, d in spans.items() if name in train.sides["item"]])
    items = np.unique(train.item, return_index=True)[1]
    population = seen.copy()
    population[:, of_item] = seen[np.random.default_rng(seed).choice(items, len(seen))][:, of_item]
    weights = np.ones(len(seen), np.float32)
    weights[chosen] = propensity.kernel_balanced(jax.random.key(seed), seen[chosen], population)
    return weights
