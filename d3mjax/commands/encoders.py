"""Frozen encoders of the user's text and images: published weights of files or of the hub, and what they make of them.

    columns, vectors = of_texts("minilm", columns, typed)
    encoder = features.fit(columns, typed["--train"], texts=vectors)
    x, note = of_images("resnet50.safetensors", "photos", {"--train": names}, size=224)

A directory for text holds ``config.json``, ``model.safetensors``, and ``tokenizer.json`` or ``vocab.txt``, as the hub
has them; ``modules.json`` of sentence-transformers with the modules that it names, or ``1_Pooling/config.json``, and
``tokenizer_config.json`` are read where there are any. Outputs are kept by the
contents of weights, options and inputs (`data.cache`), in ``features`` beside the compiled programs.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, PyTree

from d3mjax.data import cache, images, tokens, weight_files
from d3mjax.data.columns import TEXT, Column
from d3mjax.data.sets import images as photographs
from d3mjax.networks import resnets, transformers
from d3mjax.networks.transformers import Dense
from d3mjax.runtime import cache as kept
from d3mjax.runtime import progress
from d3mjax.types import Model

LONGEST = 256  # tokens of a text; what is longer is cut
FILES = ("config.json", "model.safetensors")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
CASE = "tokenizer_config.json"  # what is absent has the defaults
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
POOLS = {"mean": transformers.mean_of_tokens, "cls": transformers.first_token}
Search = Callable[[str], Path | None]
Vectors = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
BLOCK = 512  # images in memory


class TextEncoder(NamedTuple):
    """A network of published weights, its tokenizer, and what names it."""

    name: str  # with the first digits of the SHA-256 of the weights
    model: Model
    variables: PyTree[np.ndarray]
    config: tuple[Any, ...]  # what the outputs depend on beside the weights
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
      ValueError: missing or damaged files, weights of another architecture, a revision that is not a commit, a failed
        download, or missing packages (the message names the extra).
    """
    try:
        return _read(source)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--text-encoder: {error}") from error


def encode(encoder: TextEncoder, texts: Sequence[str]) -> tuple[Float[np.ndarray, "n d"], int]:
    """Vectors of the texts, from the cache where they are there, and how many texts were cut."""
    encoded = encoder.tokenize(texts)
    with _directory() as directory, progress.shown(len(texts), "text", unit="text") as bar:
        bar(0, f"encoding {len(texts):,} texts by {encoder.name}")
        options = {"name": encoder.name, "config": encoder.config, "batches": tokens.by_length, "progress": bar}
        vectors = cache.make_features(encoder.model, encoder.variables, directory, **options)(encoded.tokens)
    return vectors, encoded.cut


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
    model, variables, config, name = read_image_encoder(source)
    every = [each for part in names.values() for each in part]
    images.check_files(directory, every)
    with _directory() as kept_in, progress.shown(len(every), "images", unit="image") as bar:
        bar(0, f"encoding {len(every):,} images by {name}")
        features = cache.make_features(model, variables, kept_in, name=name, config=config, progress=bar)
        blocks = []
        for first in range(0, len(every), BLOCK):
            pixels = images.read(directory, every[first : first + BLOCK], size=size)
            blocks.append(features((255 * np.asarray(pixels, np.float32)).round().astype(np.uint8)))
    x = np.concatenate(blocks)
    ends = np.cumsum([len(part) for part in names.values()])[:-1]
    note = f"Images are encoded by {name} as {x.shape[1]:,} numbers, at {size} x {size} pixels."
    return dict(zip(names, np.split(x, ends), strict=True)), note


def read_image_encoder(source: str) -> tuple[Model, PyTree[np.ndarray], resnets.ResnetConfig, str]:
    """The ResNet of a file of weights, which maps bytes ``[b h w 3]`` to features; its variables, options and name.

    Raises as `read_text_encoder`.
    """
    try:
        path = Path(source) if Path(source).is_file() else _repository(source, "a file")("model.safetensors")
        if path is None:
            raise ValueError(f"found no model.safetensors in {source}")
        tensors = weight_files.read_safetensors(path)
        config = _resnet(tensors, path)
        network = resnets.encoder(config)  # outside `lax.scan`, `convolve_lax` is the fastest on CPUs, too
        variables = resnets.from_published(network, tensors)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--image-encoder: {error}") from error
    return resnets.of_bytes(network, mean=photographs.MEAN, std=photographs.STD), variables, config, _name(source, path)


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
    search = _local(Path(source)) if Path(source).is_dir() else _repository(source, "a directory")
    paths = {name: path for name in FILES if (path := search(name))}
    missing = [name for name in FILES if name not in paths]
    tokenizer = next(filter(None, map(search, TOKENIZERS)), None)
    if missing or tokenizer is None:
        missing += [] if tokenizer else [" or ".join(TOKENIZERS)]
        raise ValueError(f"found no {', no '.join(missing)} in {source}, expected the files as the hub has them")
    config, tensors = _config(paths["config.json"]), weight_files.read_safetensors(paths["model.safetensors"])
    pool, dense, unit, more = _modules(search)
    model = transformers.sentence_encoder(config, pool=pool, dense=dense, unit=unit)
    longest = min(LONGEST, config.positions)
    lower_case = tokenizer.suffix == ".json" or _lower_case(search(CASE))
    return TextEncoder(
        _name(source, paths["model.safetensors"]),
        model,
        transformers.from_published(model, tensors | more),
        (config, pool, dense, unit),
        tokens.read_tokenizer(tokenizer, longest, lower_case=lower_case),
        longest,
    )


def _local(directory: Path) -> Search:
    return lambda file: directory / file if (directory / file).is_file() else None


def _repository(source: str, local: str) -> Search:
    """``file -> path`` for the files of ``OWNER/NAME@REVISION``; ``local``: what else was expected."""
    repo, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"found {source!r}, expected {local}, or OWNER/NAME@REVISION of the hub")
    if not revision:
        raise ValueError(f"found {source!r}, not {local}; of the hub expected {repo}@ and the 40 digits of a commit")
    return lambda file: weight_files.search_hub(repo, revision, file)


def _name(source: str, weights: Path) -> str:
    """The last part of the source, and the first digits of the SHA-256 of the weights."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    last = Path(source.split("@")[0]).name.removesuffix(".safetensors")
    return f"{re.sub('[^A-Za-z0-9_.-]+', '-', last)}-{digest[:12]}"


def _resnet(tensors: Mapping[str, np.ndarray], path: Path) -> resnets.ResnetConfig:
    """The configuration by the names and shapes of the tensors."""
    blocks = [{name.split(".")[1] for name in tensors if name.startswith(f"layer{stage}.")} for stage in range(1, 5)]
    if "conv1.weight" not in tensors or not all(blocks):
        first = ", ".join(list(tensors)[:3])
        raise ValueError(f"{path}: found tensors {first}, ..., expected conv1.weight and layer1 to layer4 of a ResNet")
    sizes: Any = tuple(map(len, blocks))
    width, deep = len(tensors["conv1.weight"]), "layer1.0.conv3.weight" in tensors
    return resnets.ResnetConfig(sizes, bottleneck=deep, width=width)


def _json(path: Path, *, kind: type = dict) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}), expected JSON") from error
    if not isinstance(values, kind):
        expected = {dict: "object", list: "array"}[kind]
        raise ValueError(f"{path}: found {type(values).__name__}, expected a JSON {expected}")
    return values


def _lower_case(path: Path | None) -> bool:
    return path is None or bool(_json(path).get("do_lower_case", True))


def _modules(search: Search) -> tuple[Callable, tuple[Dense, ...], bool, dict[str, np.ndarray]]:
    """Pooling, dense layers, whether vectors have length 1, and the tensors of the layers, by `MODULES`.

    Without that file the pooling is of `POOLING`, or the mean, and vectors have length 1.
    """
    listed = search(MODULES)
    if listed is None:
        return _pool(search(POOLING)), (), True, {}
    modules = [(str(module["type"]).split(".")[-1], str(module["path"])) for module in _json(listed, kind=list)]
    kinds = [kind for kind, _ in modules]
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)) or modules[0][1]:
        raise ValueError(
            f"{listed}: found modules {', '.join(kinds)}, expected Transformer in the directory itself, Pooling, any "
            "number of Dense, and at most one Normalize"
        )
    layers, tensors = [], {}
    for i, (_, path) in enumerate(module for module in modules if module[0] == "Dense"):
        layer, of_layer = _dense(path, search)
        layers.append(layer)
        tensors |= {f"dense_{i}.{name}": tensor for name, tensor in of_layer.items()}
    return _pool(search(f"{modules[1][1]}/config.json")), tuple(layers), kinds[-1] == "Normalize", tensors


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"Identity": jnp.asarray, "Tanh": jnp.tanh, "ReLU": jax.nn.relu, "GELU": _exact_gelu}


def _dense(directory: str, search: Search) -> tuple[Dense, dict[str, np.ndarray]]:
    """A dense layer of sentence-transformers, and its tensors."""
    paths = [search(f"{directory}/{name}") for name in FILES]
    if None in paths:
        raise ValueError(f"found no {directory}/{FILES[paths.index(None)]}, which {MODULES} needs")
    config, weights = paths
    values = _json(config)
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).split(".")[-1]
    if activation not in ACTIVATIONS:
        raise ValueError(f"{config}: found activation {activation}, expected one of {', '.join(ACTIVATIONS)}")
    layer = Dense(values["out_features"], ACTIVATIONS[activation], values.get("bias", True))
    return layer, weight_files.read_safetensors(weights)


def _pool(path: Path | None) -> Callable:
    """The member of `POOLS` named by the pooling file of sentence-transformers; the mean without such a file."""
    if path is None:
        return POOLS["mean"]
    prefix, values = "pooling_mode_", _json(path)
    modes = [key.removeprefix(prefix) for key, value in values.items() if key.startswith(prefix) and value]
    modes = [re.sub("_tokens?$", "", mode) for mode in [*modes, *filter(None, [values.get("pooling_mode")])]]
    if len(modes) != 1 or modes[0] not in POOLS:
        raise ValueError(f"{path}: found pooling by {' and '.join(modes) or 'nothing'}, expected {' or '.join(POOLS)}")
    return POOLS[modes[0]]


def _config(path: Path) -> transformers.BertConfig:
    """Sizes from the ``config.json`` of BERT or DistilBERT."""
    values = _json(path)
    kind, distilled = values.get("model_type"), values.get("model_type") == "distilbert"
    activation = values.get("activation" if distilled else "hidden_act", "gelu")
    if kind not in ("bert", "distilbert") or activation != "gelu":
        raise ValueError(
            f"{path}: found model_type {kind!r} with activation {activation!r}, expected bert or distilbert with gelu"
        )
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(f"{path}: found position_embedding_type {positions!r}, expected absolute")
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
