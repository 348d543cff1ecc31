"""Sentences and pairs of sentences as tokens of BERT, DistilBERT and MiniLM, padded to one length.

    encode = read_tokenizer("bert/vocab.txt", 128)
    tokens, cut = encode(premises, hypotheses)  # cut: pairs that were longer

Needs the extra ``hub``: ``pip install 'd3mjax[hub]'``.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

Tokens = dict[str, np.ndarray]
"""``ids`` Int32[n T], ``types`` Int32[n T] (1 for the second sentence), ``mask`` Bool[n T] (False for padding)."""

STEP = 8  # lengths are rounded up to multiples, so that few programs are compiled
_EXPECTED = "BERT's vocab.txt or tokenizer.json"


class Encoded(NamedTuple):
    """Tokens of all texts, and how many texts were longer than the maximum."""

    tokens: Tokens
    cut: int


def read_tokenizer(path: str | Path, max_length: int, *, lower_case: bool = True) -> Callable[..., Encoded]:
    """``encode(first, second=None) -> Encoded`` by a ``vocab.txt`` of WordPiece or a ``tokenizer.json``.

    ``lower_case`` is of ``vocab.txt``: texts lose capitals and accents first, as ``do_lower_case`` of the hub's
    ``tokenizer_config.json``. A ``tokenizer.json`` has its own rules.

    ``T`` is the length of the longest text, rounded up to a multiple of `STEP`, and ``max_length`` at most. A longer
    text is cut, of a pair the longer sentence first, and counted.

    Raises:
      ValueError: a file that is missing or damaged, or without special tokens; a maximum below 8.
    """
    if max_length < STEP:
        raise ValueError(f"max_length: found {max_length}, expected at least {STEP}")
    tokenizer = _read(Path(path), lower_case)
    padding = tokenizer.token_to_id("[PAD]")
    if padding is None:
        raise ValueError(f"{path}: found no token '[PAD]', expected {_EXPECTED}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)

    def encode(first: Sequence[str], second: Sequence[str] | None = None) -> Encoded:
        texts = list(first) if second is None else list(zip(first, second, strict=True))
        rows = tokenizer.encode_batch(texts)
        length = min(max_length, rounded(max((len(row) for row in rows), default=0)))
        ids = np.full((len(rows), length), padding, np.int32)
        types, mask = np.zeros_like(ids), np.zeros(ids.shape, bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], types[i, : len(row)], mask[i, : len(row)] = row.ids, row.type_ids, True
        return Encoded({"ids": ids, "types": types, "mask": mask}, sum(bool(row.overflowing) for row in rows))

    return encode


def by_length(tokens: Tokens, *, size: int = 64) -> Iterator[tuple[Int[np.ndarray, " b"], Tokens]]:
    """Batches ``(rows, tokens)`` of ``size`` texts of similar length, without the columns that are padding in all.

    Tokens of the last batch are padded with its last text to ``size``. For networks whose outputs do not depend on
    padding, such as `transformers.sentence_encoder`, and whose shape has no ``T``.
    """
    lengths = np.asarray(tokens["mask"]).sum(1)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        length = rounded(int(lengths[rows].max()))
        yield rows, {name: np.asarray(a)[padded, :length] for name, a in tokens.items()}


def rounded(length: int) -> int:
    """``length`` rounded up to a multiple of `STEP`, `STEP` at least."""
    return max(STEP, -(-length // STEP) * STEP)


def _read(path: Path, lower_case: bool) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("tokens need tokenizers: pip install 'd3mjax[hub]'") from error
    try:
        if path.suffix == ".json":
            return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        words = path.read_text(encoding="utf-8").splitlines()
        return tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(words)}, lowercase=lower_case)
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(
            f"{path}: missing or damaged ({error}), expected BERT's vocab.txt or tokenizer.json"
        ) from error
