"""Prompts and responses as tokens of a decoder: byte-level BPE from ``tokenizer.json`` or GGUF, templates of a chat.

    tokenizer = prompts.read_tokenizer("smollm/tokenizer.json")
    encode = prompts.make_encode(tokenizer, 512, template=prompts.CHATML)
    tokens, cut = encode(["What is the capital of France?"], ["Paris"])  # cut: texts that were longer

Needs the extra ``hub``: ``pip install 'd3mjax[hub]'``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.data.tokens import STEP, Encoded, rounded

_CONTROL = (3, 4)  # types of tokens in GGUF that are never split: control, and of the user
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, list[dict[str, Any]]] = {  # what cuts a text into words, by the name GGUF has for it
    "gpt-2": [_BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        _BYTES | {"use_regex": False},
    ],
}


class Template(NamedTuple):
    """What stands around a prompt and its response: ``before prompt between response after``."""

    before: str = ""
    between: str = ""
    after: str = ""
    special: tuple[str, ...] = ()  # tokens that the vocabulary must have


PLAIN = Template()
"""Nothing: a response follows its prompt at once, and has its own space before the first word."""
CHATML = Template(
    "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", ("<|im_start|>", "<|im_end|>")
)
"""One turn of a chat, without a system message, as SmolLM2 and many others were trained on."""


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a ``tokenizer.json``. Raises ValueError for a missing or damaged file."""
    try:
        return _library().Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except ImportError:
        raise
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{path}: missing or damaged ({error}), expected a tokenizer.json") from error


def tokenizer_of_gguf(metadata: Mapping[str, Any]) -> Any:
    """The byte-level BPE tokenizer in the metadata of a GGUF file.

    Raises:
      ValueError: another kind of tokenizer, or another way to cut texts into words than gpt-2, smollm and llama-bpe.
    """
    kind, split = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or split not in _SPLITS:
        raise ValueError(f"tokenizer: found {kind!r} with {split!r}, expected 'gpt2' with one of {sorted(_SPLITS)}")
    words, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    special = [{"id": i, "content": word} for i, word in enumerate(words) if types[i] in _CONTROL]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    facts = {
        "version": "1.0",
        "added_tokens": [token | flags for token in special],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[split]},
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": metadata["tokenizer.ggml.merges"],
            "ignore_merges": split == "llama-bpe",  # whole words of the vocabulary come first, as in Llama 3
        },
    }
    return _library().Tokenizer.from_str(json.dumps(facts))


def make_encode(
    tokenizer: Any, max_length: int, *, vocabulary: int, template: Template = PLAIN
) -> Callable[[Sequence[str], Sequence[str]], Encoded]:
    """``encode(prompts, responses) -> Encoded`` with tokens as `networks.decoders` reads them.

    ``encode(["", ""], texts)`` is of whole texts: all tokens but the first count. Prompts and responses are tokenised
    apart, so that a response has the same tokens after every prompt; those of ``template.after`` count as its last.
    ``T`` is the length of the longest text, rounded up to a multiple of `tokens.STEP`, and ``max_length`` at most. A
    longer text loses the beginning of its prompt, then the end of its response, and is counted.

    ``vocabulary``: rows of the network's embeddings.

    Raises:
      ValueError: a tokenizer with more tokens than the network, or without those of the template; a maximum below 8;
        from ``encode``: a response without tokens.
    """
    if max_length < STEP:
        raise ValueError(f"max_length: found {max_length}, expected at least {STEP}")
    if (size := tokenizer.get_vocab_size()) > vocabulary:
        raise ValueError(f"tokenizer: found {size:,} tokens, expected the network's {vocabulary:,} at most")
    if missing := [token for token in template.special if tokenizer.token_to_id(token) is None]:
        raise ValueError(
            f"template: found no {', '.join(missing)} in the vocabulary, expected the template of this model"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids_of = lambda texts: [row.ids for row in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def encode(prompts: Sequence[str], responses: Sequence[str]) -> Encoded:
        firsts = ids_of(template.before + prompt + template.between for prompt in prompts)
        lasts = ids_of(response + template.after for response in responses)
        pairs = list(zip(firsts, lasts, strict=True))
        if empty := [i for i, (first, last) in enumerate(pairs) if len(last) < (1 if first else 2)]:
            raise ValueError(
                f"responses: found {len(empty)} without a token that counts, at {empty[:5]}, expected text"
            )
        fitted = [_fitted(first, last, max_length) for first, last in pairs]
        length = min(max_length, rounded(max((len(first) + len(last) for first, last in fitted), default=0)))
        ids = np.zeros((len(fitted), length), np.int32)
        mask, counted = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for i, (first, last) in enumerate(fitted):
            end = len(first) + len(last)
            ids[i, :end], mask[i, :end], counted[i, max(len(first), 1) : end] = first + last, True, True
        cut = sum(before != after for before, after in zip(pairs, fitted, strict=True))
        return Encoded({"ids": ids, "mask": mask, "response": counted}, cut)

    return encode


def _fitted(first: list[int], last: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """The end of a prompt, its last token at least, and the beginning of its response."""
    last = last[: max_length - bool(first)]
    return first[max(0, len(first) + len(last) - max_length) :], last


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("tokens need tokenizers: pip install 'd3mjax[hub]'") from error
    return tokenizers
