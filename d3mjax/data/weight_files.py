"""Published weights: tensors of safetensors files, and files of the Hugging Face hub at a pinned revision.

No pickles: a file of weights runs no code. `networks.weights` converts tensors to the variables of our networks.
Needs the extra ``hub``: ``pip install 'd3mjax[hub]'``.
"""

import re
from pathlib import Path

import numpy as np

_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # positions and counts of batches beside the weights
_NEEDED = "weights need safetensors and huggingface_hub: pip install 'd3mjax[hub]'"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a ``.safetensors`` file by name; float16 and bfloat16 become float32, integers stay.

    Raises:
      ValueError: a file that is missing, truncated or no safetensors file, or a tensor of another type (quantised
        weights and float64 among them).
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return {name: _tensor(file, name, path) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: missing, truncated, or not a safetensors file ({error})") from error


def _tensor(file, name: str, path: str | Path) -> np.ndarray:
    kind = file.get_slice(name).get_dtype()
    if kind not in _FLOATS + _INTEGERS:
        raise ValueError(f"{path}: found tensor {name!r} of type {kind}, expected one of {', '.join(_FLOATS)}")
    tensor = file.get_tensor(name)
    return tensor.astype(np.float32) if kind in _FLOATS else tensor


def from_hub(repo: str, revision: str, file: str) -> Path:
    """Path of ``file`` of the hub's repository ``repo`` at commit ``revision``, downloaded unless it is in the cache.

    ``revision``: all 40 digits of a commit; branches and tags move.

    Raises:
      ValueError: a revision that is not a commit, a file missing from the repository, or a failed download (for
        example without a network); the message gives the address of the file, and the alternative to the hub.
    """
    path = search_hub(repo, revision, file)
    if path is None:
        raise ValueError(f"{repo}@{revision}: found no {file} in the repository")
    return path


def search_hub(repo: str, revision: str, file: str) -> Path | None:
    """As `from_hub`; None for a file missing from the repository, which the cache records."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"revision: found {revision!r}, expected the 40 digits of a commit")
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        if huggingface_hub.try_to_load_from_cache(repo, file, revision=revision) is not None:
            return None  # the mark of a file that was asked for, and is absent
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        address = f"https://huggingface.co/{repo}/resolve/{revision}/{file}"
        raise ValueError(
            f"{repo}/{file}: not in the cache of the hub, and the download failed ({type(error).__name__}). "
            f"Download {address} on a machine with a network, and give the path of that file in place of the hub id."
        ) from error
