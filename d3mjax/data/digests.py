"""Digests of trees of arrays, by which stored data and results are found again."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def digest(tree: PyTree, *, header: str = "{path} {shape} {dtype};") -> str:
    """SHA-256 of a header and the bytes of every array of a tree, random keys included, in the order of the tree.

    The header is formatted with ``path`` (as ``jax.tree_util.keystr`` writes it), ``name`` (the same without brackets
    and quotes), ``shape`` and ``dtype``. Another header is another digest.
    """
    hashed = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        names = {"path": jax.tree_util.keystr(path), "name": jax.tree_util.keystr(path, simple=True, separator="/")}
        hashed.update(header.format(**names, shape=array.shape, dtype=array.dtype).encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()
