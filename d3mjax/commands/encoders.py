"""Options --text-encoder and --image-encoder: the user's texts and images as vectors of a frozen network.

columns, vectors = of_texts("minilm", columns, typed)
encoder = features.fit(columns, typed["--train"], texts=vectors)
x, note = of_images("resnet50.safetensors", "photos", {"--train": names}, size=224)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from jaxtyping import Float

from d3mjax.data import images
from d3mjax.data.columns import TEXT, Column
from d3mjax.runtime import encoders, progress

Vectors = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


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
    with _named("--text-encoder"):
        encoder = encoders.read_text_encoder(source)
    texts = list(dict.fromkeys(text for frame in typed.values() for name in names for text in frame[name]))
    with progress.shown(len(texts), "text", unit="text") as bar:
        bar(0, f"encoding {len(texts):,} texts by {encoder.network.name}")
        vectors, cut = encoders.encode(encoder, texts, progress=bar)
    position = {text: i for i, text in enumerate(texts)}
    note = f"encoded by {encoder.network.name} as {vectors.shape[1]} numbers"
    note += f"; {cut:,} of {len(texts):,} texts cut at {encoder.longest} tokens" if cut else ""
    noted = (c._replace(note="; ".join(filter(None, (c.note, note)))) if c.kind == TEXT else c for c in columns)
    return tuple(noted), lambda values: vectors[[position[text] for text in values]]


def principal(vectors: Vectors, train: Sequence[str], width: int) -> Vectors:
    """``vectors`` reduced to their first ``width`` principal components over the training texts."""
    x = np.asarray(vectors(train), np.float64)
    mean = x.mean(0)
    _, parts = np.linalg.eigh((x - mean).T @ (x - mean))
    basis = parts[:, ::-1][:, :width]
    return lambda texts: (vectors(texts) - mean) @ basis


def of_images(
    source: str, directory: str, names: Mapping[str, Sequence[str]], *, size: int
) -> tuple[dict[str, Float[np.ndarray, "n d"]], str]:
    """Features of the images ``directory / name`` by source, each resized to ``size``, and a note on the encoder.

    ``source``: a file of ResNet weights, or ``OWNER/NAME@REVISION`` of the hub.

    Raises:
      ValueError: an encoder, or images, that cannot be read.
    """
    with _named("--image-encoder"):
        encoder = encoders.read_image_encoder(source)
    every = [each for part in names.values() for each in part]
    images.check_files(directory, every)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, len(every), encoders.BLOCK):
            pixels = images.read(directory, every[first : first + encoders.BLOCK], size=size)
            yield (255 * np.asarray(pixels, np.float32)).round().astype(np.uint8)

    with progress.shown(len(every), "images", unit="image") as bar:
        bar(0, f"encoding {len(every):,} images by {encoder.name}")
        x = encoders.vectors(encoder, blocks(), progress=bar)
    ends = np.cumsum([len(part) for part in names.values()])[:-1]
    note = f"Images are encoded by {encoder.name} as {x.shape[1]:,} numbers, at {size} x {size} pixels."
    return dict(zip(names, np.split(x, ends), strict=True)), note


@contextmanager
def _named(option: str) -> Iterator[None]:
    """Errors of an encoder open with the option that names it."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ValueError(f"{option}: {error}") from error
