"""Frozen encoders of texts and images: published weights of a directory or of the hub, and the vectors they make.

    vectors = encode_texts("minilm", ["a film", "a dull film"])      # d3mjax.encode_texts
    features = encode_images("resnet50.safetensors", pixels)         # d3mjax.encode_images

A directory for text holds ``config.json``, ``model.safetensors``, and ``tokenizer.json`` or ``vocab.txt``, as the hub
has them; ``modules.json`` of sentence-transformers with the modules that it names, or ``1_Pooling/config.json``, and
``tokenizer_config.json`` are read where there are any. Outputs are kept by the contents of weights, options and inputs
(`data.cache`), block by block, in ``features`` beside the compiled programs. Needs the extra ``hub``.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from d3mjax.data import cache, tokens, weight_files
from d3mjax.data.sets import images as photographs
from d3mjax.networks import resnets, transformers
from d3mjax.networks.transformers import Dense
from d3mjax.runtime import cache as kept
from d3mjax.types import Model

FILES = ("config.json", "model.safetensors")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
CASE = "tokenizer_config.json"  # what is absent has the defaults
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
POOLS = {"mean": transformers.mean_of_tokens, "cls": transformers.first_token}
Count = Callable[[int], object]
Search = Callable[[str], Path | None]
BLOCK = 512  # images in memory, and texts kept in one file


class Encoder(NamedTuple):
    """A frozen network of published weights, and what names it."""

    name: str  # with the first digits of the SHA-256 of the weights
    model: Model
    variables: PyTree[np.ndarray]
    config: Any  # what the outputs depend on beside the weights


class TextEncoder(NamedTuple):
    """A frozen encoder of texts with its tokenizer."""

    network: Encoder
    tokenize: Callable[[Sequence[str]], tokens.Encoded]
    longest: int  # tokens


def encode_texts(source: str | Path, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Vectors of texts by a frozen BERT, DistilBERT or MiniLM of a directory, or of the hub's ``OWNER/NAME@REVISION``.

    Each different text is encoded once, cut at 256 tokens, and kept on disk: a second call reads the vectors, and of
    changed or longer lists of texts computes the blocks of 512 that differ. `read_text_encoder` has the files of a
    directory, and what is raised; an empty list raises ValueError, too. Needs ``pip install 'd3mjax[hub]'``.

    >>> import d3mjax
    >>> d3mjax.encode_texts("all-MiniLM-L6-v2", ["a fine film", "not a fine film"]).shape  # doctest: +SKIP
    (2, 384)
    """
    return encode(read_text_encoder(source), texts)[0]


def encode_images(source: str | Path, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """Features of RGB images, 0 to 255, by a frozen ResNet of a safetensors file, or of the hub.

    They are normalised as for ImageNet, and not resized: ResNets are published for 224 x 224. Kept on disk as the
    vectors of `encode_texts`. Raises as `read_image_encoder`; no image raises ValueError, too.

    >>> import d3mjax, numpy as np
    >>> d3mjax.encode_images("resnet50.safetensors", np.zeros((3, 224, 224, 3), np.uint8)).shape  # doctest: +SKIP
    (3, 2048)
    """
    return vectors(read_image_encoder(source), (images[i : i + BLOCK] for i in range(0, len(images), BLOCK)))


def read_text_encoder(source: str | Path, *, longest: int = 256) -> TextEncoder:
    """The encoder of a directory, or of the hub's ``OWNER/NAME@REVISION``; `sentence_encoder` of its configuration.

    ``longest``: tokens at which texts are cut, at most the positions of the network.

    Raises:
      ValueError: missing or damaged files, weights of another architecture, a revision that is not a commit, or a
        failed download.
      ImportError: missing packages (the message names the extra).
    """
    source = str(source)
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
    variables = transformers.from_published(model, tensors | more)
    longest, lower_case = min(longest, config.positions), tokenizer.suffix == ".json" or _lower_case(search(CASE))
    return TextEncoder(
        Encoder(_name(source, paths["model.safetensors"]), model, variables, (config, pool, dense, unit)),
        tokens.read_tokenizer(tokenizer, longest, lower_case=lower_case),
        longest,
    )


def read_image_encoder(source: str | Path) -> Encoder:
    """The ResNet of a file of weights, which maps bytes ``[b h w 3]`` to features. Raises as `read_text_encoder`."""
    source = str(source)
    path = Path(source) if Path(source).is_file() else _repository(source, "a file")("model.safetensors")
    if path is None:
        raise ValueError(f"found no model.safetensors in {source}")
    tensors = weight_files.read_safetensors(path)
    config = _resnet(tensors, path)
    network = resnets.encoder(config)  # outside `lax.scan`, `convolve_lax` is the fastest on CPUs, too
    variables = resnets.from_published(network, tensors)
    model = resnets.of_bytes(network, mean=photographs.MEAN, std=photographs.STD)
    return Encoder(_name(source, path), model, variables, config)


def encode(
    encoder: TextEncoder, texts: Sequence[str], *, directory: Path | None = None, progress: Count = lambda rows: None
) -> tuple[Float[np.ndarray, "n d"], int]:
    """Vectors of the texts, each different one encoded once, and how many of the different ones were cut.

    Options as of `vectors`.
    """
    different, cut = list(dict.fromkeys(texts)), []

    def blocks() -> Iterator[tokens.Tokens]:
        for first in range(0, len(different), BLOCK):
            encoded = encoder.tokenize(different[first : first + BLOCK])
            cut.append(encoded.cut)
            yield encoded.tokens

    options = {"batches": tokens.by_length, "directory": directory, "progress": progress}
    of_different = vectors(encoder.network, blocks(), **options)
    position = {text: i for i, text in enumerate(different)}
    return of_different[[position[text] for text in texts]], sum(cut)


def vectors(
    encoder: Encoder,
    blocks: Iterable[PyTree[np.ndarray]],
    *,
    batches: cache.Batches = cache.in_order,
    directory: Path | None = None,
    progress: Count = lambda rows: None,
) -> Float[np.ndarray, "n d"]:
    """Outputs of the network on blocks of inputs, each block from the files in ``directory`` where it is there.

    ``directory``: None for ``features`` beside the compiled programs, or nowhere where ``D3MJAX_CACHE`` is ``off``.
    ``progress`` counts the rows that are done. Raises ValueError without blocks, and as `cache.make_features`.
    """
    with _directory() if directory is None else nullcontext(directory) as kept_in:
        options = {"name": encoder.name, "config": encoder.config, "batches": batches, "progress": progress}
        features = cache.make_features(encoder.model, encoder.variables, kept_in, **options)
        made = [features(block) for block in blocks]
    if not made:
        raise ValueError(f"{encoder.name}: found nothing to encode, expected at least one text or image")
    return np.concatenate(made)


@contextmanager
def _directory() -> Iterator[Path]:
    """Where vectors are kept; a temporary directory if nothing is to be kept."""
    directory = kept.directory()
    if directory is not None:
        yield directory / "features"
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


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
    config, weights = (search(f"{directory}/{name}") for name in FILES)
    if config is None or weights is None:
        raise ValueError(f"found no {directory}/{FILES[config is not None]}, which {MODULES} needs")
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
