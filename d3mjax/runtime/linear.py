"""Datamodels on disk: sparse weights, as LASSO finds them, in one file."""

import io
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from d3mjax.runtime import store
from d3mjax.types import Linear


def save_linear(path: str | Path, linear: Linear) -> None:
    """Write datamodels as one `.npz`, whole or not at all, weights as CSR of shape ``[(l) t, n]``.

    ``scipy.sparse.load_npz(path)`` reads the weights alone, without making them dense.
    """
    weight = np.asarray(linear.weight)
    rows = scipy.sparse.csr_array(weight.reshape(-1, weight.shape[-1]))
    csr = {name: getattr(rows, name) for name in ("data", "indices", "indptr", "shape")}
    names = {"format": b"csr", "_is_array": True}  # what SciPy's reader asks for
    store.write_arrays(Path(path), {**csr, **names, "weight_shape": weight.shape, "bias": linear.bias})


def load_linear(path: str | Path) -> Linear:
    """Read what `save_linear` wrote, dense. Raises ValueError naming the file if it is damaged."""
    content = Path(path).read_bytes()  # NumPy leaves a damaged file open
    try:
        with np.load(io.BytesIO(content)) as archive:
            shape, bias = archive["weight_shape"], archive["bias"]
        weight = scipy.sparse.load_npz(io.BytesIO(content)).toarray().reshape(shape)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no datamodels: {error}") from error
    return Linear(jnp.asarray(weight), jnp.asarray(bias))
