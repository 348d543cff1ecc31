"""Language models from files: SmolLM2 as `make data` brings it, and any Llama or GPT-2 of the user's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from d3mjax.data import gguf, prompts, weight_files
from d3mjax.data.tokens import Encoded
from d3mjax.networks import decoder_files, decoders
from d3mjax.types import Model
from experiments import local_data

MEMORY = Path("/proc/meminfo")


class LanguageModel(NamedTuple):
    """A decoder, its variables, and its tokens."""

    config: decoders.Config
    model: Model  # `decoders.log_probs`
    variables: PyTree[np.ndarray]  # of the whole network
    encode: Callable[..., Encoded]  # (prompts, responses) -> tokens and how many were cut
    tokenizer: Any


def smollm2(*, max_length: int = 256, template: prompts.Template = prompts.PLAIN) -> LanguageModel:
    """SmolLM2-135M-Instruct, 4 bits a weight as published; ``max_length`` tokens of a text at most."""
    return read(next(local_data.find("smollm2").glob("*.gguf")), max_length=max_length, template=template)


def read(path: Path, *, max_length: int = 256, template: prompts.Template = prompts.PLAIN) -> LanguageModel:
    """The model of a GGUF file, or of a folder with ``config.json``, ``tokenizer.json`` and ``*.safetensors``.

    Raises:
      ValueError: files that are missing or damaged, another architecture, or a tokenizer with more tokens than the
        network.
    """
    if path.suffix == ".gguf":
        tensors, metadata = gguf.read_gguf(path)
        config, tokenizer = decoder_files.config_of_gguf(metadata, tensors), prompts.tokenizer_of_gguf(metadata)
    else:
        missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
        if missing or not (parts := sorted(path.glob("*.safetensors"))):
            raise ValueError(f"{path}: found no {', '.join([*missing, '*.safetensors'])}, expected a model of the hub")
        config = decoder_files.config_of_json(json.loads((path / "config.json").read_text(encoding="utf-8")))
        tokenizer = prompts.read_tokenizer(path / "tokenizer.json")
        tensors = {name: tensor for part in parts for name, tensor in weight_files.read_safetensors(part).items()}
    model = decoders.log_probs(config)
    variables = decoder_files.from_published(model, tensors, config)
    length = min(max_length, config.positions)
    encode = prompts.make_encode(tokenizer, length, vocabulary=config.vocabulary, template=template)
    return LanguageModel(config, model, variables, encode, tokenizer)


def check_memory(count: int, length: int, width: int) -> None:
    """Raise ``ValueError`` where twice the float32 states of ``count`` texts are more than the free memory."""
    needed = 2 * 4 * count * length * width
    if (free := free_memory()) is not None and needed > free:
        raise ValueError(
            f"states: found {free / 1e9:.1f} GB of free memory, expected {needed / 1e9:.1f} GB for {count:,} texts of "
            f"{length} tokens; take fewer or shorter texts"
        )


def free_memory() -> int | None:
    """Bytes that new work can take, as Linux estimates them; None elsewhere."""
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
