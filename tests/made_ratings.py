"""Small made ratings: three kinds of items as sets, users of two kinds, numbers and categories on both sides."""

import numpy as np

from d3mjax.data.sets.ratings import Ratings, Raw, from_columns

KINDS = ("loud", "quiet", "short")


def made(users=40, items=60, per_user=25, seed=0) -> Ratings:
    """Every user rates distinct items at times of their own; ids are texts."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), per_user)
    item = np.concatenate([rng.permutation(items)[:per_user] for _ in range(users)])
    sets = [[kind for kind in KINDS if rng.random() < 0.5] for _ in range(items)]
    age = np.array(["old", "young"])[np.arange(users) % 2]
    brand = np.array([f"brand {i % 4}" for i in range(items)])
    return from_columns(
        [f"u{i:02}" for i in user],
        [f"i{i:02}" for i in item],
        rng.integers(1, 6, len(user)),
        rng.permutation(len(user)) // 2,
        scale=(1, 5),
        users=Raw([f"u{i:02}" for i in range(users)], {"age": age}),
        items=Raw(
            [f"i{i:02}" for i in range(items)], {"price": rng.normal(size=items), "brand": brand}, {"kinds": sets}
        ),
    )
