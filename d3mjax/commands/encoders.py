"""Frozen encoders of the user's text: published weights of a directory or of the hub, and what they make of columns.

    columns, vectors = of_texts("minilm", columns, typed)
    encoder = features.fit(columns, typed["--train"], texts=vectors)

A directory holds ``config.json``, ``model.safetensors``, and ``vocab.txt`` or ``tokenizer.json``, as the hub has them.
Vectors are kept by the contents of weights and texts (`data.cache`), in ``features`` beside the compiled programs.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, PyTree

from d3mjax.data import cache, tokens, weight_files
from d3mjax.data.columns import TEXT, Column
from d3mjax.networks import transformers
from d3mjax.runtime import cache as kept
from d3mjax.runtime import progress
from d3mjax.types import Model

LONGEST = 256  # tokens of a text; what is longer is cut
FILES = ("config.json", "model.safetensors")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
Vectors = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


class TextEncoder(NamedTuple):
    """A network of published weights, its tokenizer, and what names it."""

    name: str  # with the first digits of the SHA-256 of the weights
    model: Model
    variables: PyTree[np.ndarray]
    tokenize: Callable[[Sequence[str]], tokens.Encoded]
    longest: int  # tokens


def of_texts(
    source: str, columns: Sequence[Column], typed: Mapping[str, pd.DataFrame]
) -> tuple[tuple[Column, ...], Vectors]:
    """The columns with a note on the encoder at those of text, and ``texts -> vectors`` for every text of ``typed``.

    Each different text is encoded once.

    Raises:
      ValueError: no column of text; an encoder that cannot be read.
    """
    names = [column.name for column in columns if column.kind == TEXT]
    if not names:
        raise ValueError("--text-encoder: found no column of free text, expected one, or its name by --text")
    encoder = read_text_encoder(source)
    texts = sorted(set().union(*(frame[name] for frame in typed.values() for name in names)))
    vectors, cut = encode(encoder, texts)
    position = {text: i for i, text in enumerate(texts)}
    note = f"encoded by {encoder.name} as {vectors.shape[1]} numbers"
    note += f"; {cut:,} of {len(texts):,} texts cut at {encoder.longest} tokens" if cut else ""
    noted = (c._replace(note="; ".join(filter(None, (c.note, note)))) if c.kind == TEXT else c for c in columns)
    return tuple(noted), lambda values: vectors[[position[text] for text in values]]


def read_text_encoder(source: str) -> TextEncoder:
    """The encoder of a directory, or of the hub's ``OWNER/NAME@REVISION``; `sentence_encoder` of its configuration.

    Raises:
      ValueError: files that are missing, damaged or of another architecture; a revision that is no commit; no network;
        packages that are not installed, with the extra that has them.
    """
    try:
        return _read(source)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--text-encoder: {error}") from error


def encode(encoder: TextEncoder, texts: Sequence[str]) -> tuple[Float[np.ndarray, "n d"], int]:
    """Vectors of the texts, from the cache where they are there, and how many texts were cut."""
    encoded = encoder.tokenize(texts)
    with _directory() as directory, progress.shown(len(texts), "text") as bar:
        bar(0, f"encoding {len(texts):,} texts by {encoder.name}")
        options = {"name": encoder.name, "batches": tokens.by_length, "progress": bar}
        vectors = cache.features(encoder.model, encoder.variables, encoded.tokens, directory, **options)
    return vectors, encoded.cut


def principal(vectors: Vectors, train: Sequence[str], width: int) -> Vectors:
    """``vectors`` reduced to their first ``width`` principal components over the training texts."""
    x = np.asarray(vectors(train), np.float64)
    mean = x.mean(0)
    _, parts = np.linalg.eigh((x - mean).T @ (x - mean))
    basis = parts[:, ::-1][:, :width]
    return lambda texts: (vectors(texts) - mean) @ basis


@contextmanager
def _directory() -> Iterator[Path]:
    """Where vectors are kept; a temporary directory if nothing is to be kept."""
    directory = kept.directory()
    if directory is not None:
        yield directory / "features"
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _read(source: str) -> TextEncoder:
    paths = _local(Path(source)) if Path(source).is_dir() else _of_hub(source)
    config = _config(paths["config.json"])
    model = transformers.sentence_encoder(config)
    with paths["model.safetensors"].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = weight_files.read_safetensors(paths["model.safetensors"])
    longest = min(LONGEST, config.positions)
    tokenizer = next(paths[name] for name in TOKENIZERS if name in paths)
    name = re.sub(r"[^\w.-]+", "-", source.rstrip("/").split("@")[0]).strip("-.")
    return TextEncoder(
        f"{name}-{digest[:12]}",
        model,
        transformers.from_published(model, tensors),
        tokens.read_tokenizer(tokenizer, longest),
        longest,
    )


def _local(directory: Path) -> dict[str, Path]:
    paths = {name: directory / name for name in (*FILES, *TOKENIZERS) if (directory / name).is_file()}
    missing = [name for name in FILES if name not in paths]
    missing += [] if set(TOKENIZERS) & paths.keys() else [" or ".join(TOKENIZERS)]
    if missing:
        raise ValueError(f"found no {', no '.join(missing)} in {directory}, expected the files as the hub has them")
    return paths


def _of_hub(source: str) -> dict[str, Path]:
    repo, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"found {source!r}, expected a directory, or OWNER/NAME@REVISION of the hub")
    if not revision:
        raise ValueError(
            f"found {source!r}, which is no directory; of the hub expected {repo}@ and 40 digits of a commit"
        )
    return {name: weight_files.from_hub(repo, revision, name) for name in (*FILES, TOKENIZERS[0])}


def _config(path: Path) -> transformers.BertConfig:
    """Sizes from the ``config.json`` of BERT or DistilBERT."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}), expected JSON") from error
    kind, distilled = values.get("model_type"), values.get("model_type") == "distilbert"
    activation = values.get("activation" if distilled else "hidden_act", "gelu")
    if kind not in ("bert", "distilbert") or activation != "gelu":
        raise ValueError(
            f"{path}: found model_type {kind!r} with activation {activation!r}, expected bert or distilbert with gelu"
        )
    names = ("dim", "n_layers", "n_heads", "hidden_dim") if distilled else _BERT
    try:
        width, blocks, heads, inner = (values[name] for name in names)
        sizes = {"vocabulary": values["vocab_size"], "positions": values["max_position_embeddings"]}
    except KeyError as error:
        raise ValueError(f"{path}: found no {error}, expected it beside {sorted(names)}") from error
    return transformers.BertConfig(
        width=width,
        blocks=blocks,
        heads=heads,
        inner=inner,
        types=0 if distilled else values.get("type_vocab_size", 2),
        epsilon=values.get("layer_norm_eps", 1e-12),
        **sizes,
    )


_BERT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
