"""Tokens of prompts and responses against ids worked out by hand, from a vocabulary of ten words."""

import json

import numpy as np
import planted
import pytest

from d3mjax.data import prompts

WORDS = ["<|end|>", "a", "b", "c", "Ġ", "ab", "Ġa", "1", "2", "!"]
MERGES = ["a b", "Ġ a"]
GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [3, *[1] * 9],
    "tokenizer.ggml.merges": MERGES,
}
CHAT = prompts.Template("<|end|>", "!", "<|end|>", ("<|end|>",))


@pytest.fixture
def tokenizer():
    return prompts.tokenizer_of_gguf(GGUF)


def encoder(tokenizer, max_length=8, **options):
    return prompts.make_encode(tokenizer, max_length, vocabulary=10, **options)


def test_tokens_and_what_counts(tokenizer):
    (x, cut) = encoder(tokenizer)(["ab", "", "c12"], [" ac", "abc", "b"])
    assert cut == 0
    padding = [0] * 4
    planted.equal(x["ids"], [[5, 6, 3, 0, *padding], [5, 3, 0, 0, *padding], [3, 7, 8, 2, *padding]])
    planted.equal(x["mask"].sum(1), [3, 2, 4])
    counted = np.zeros((3, 8), bool)
    counted[0, 1:3] = counted[1, 1] = counted[2, 3] = True  # of a whole text, all but the first
    planted.equal(x["response"], counted)
    assert (x["ids"].dtype, x["mask"].dtype, x["response"].dtype) == (np.int32, bool, bool)


def test_text_comes_back_from_its_tokens(tokenizer):
    assert tokenizer.decode(tokenizer.encode("ab a12!<|end|>").ids, skip_special_tokens=False) == "ab a12!<|end|>"


def test_a_template_stands_around_prompt_and_response(tokenizer):
    (x, _) = encoder(tokenizer, template=CHAT)(["a"], ["b"])
    planted.equal(x["ids"], [[0, 1, 9, 2, 0, 0, 0, 0]])
    planted.equal(np.flatnonzero(x["response"][0]), [3, 4])


def test_long_texts_lose_the_beginning_of_the_prompt_then_the_end_of_the_response(tokenizer):
    (x, cut) = encoder(tokenizer)(["cccccba", "ab", "c"], ["111", "1" * 9, "2"])
    assert cut == 2
    planted.equal(x["ids"], [[3, 3, 3, 2, 1, 7, 7, 7], [5, *[7] * 7], [3, 8, *[0] * 6]])
    planted.equal(x["response"].sum(1), [3, 7, 1])


def test_a_tokenizer_file_gives_the_same_tokens(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    encoded = [encoder(t)(["ab 12"], ["c a"]).tokens for t in (tokenizer, prompts.read_tokenizer(path))]
    planted.equal(*encoded)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("smollm", [[7, 8], [4, 7], [3, 1]]),  # single digits
        ("gpt-2", [[10], [11], [3, 1]]),  # numbers, with the space before
        ("llama-bpe", [[10], [4, 7], [12]]),  # numbers, and whole words without merges
    ],
)
def test_other_ways_to_cut_texts_into_words(split, expected):
    words = {"tokens": [*WORDS, "12", "Ġ1", "ca"], "token_type": [3, *[1] * 12], "merges": [*MERGES, "1 2", "Ġ 1"]}
    metadata = GGUF | {f"tokenizer.ggml.{name}": value for name, value in (words | {"pre": split}).items()}
    tokenizer = prompts.tokenizer_of_gguf(metadata)
    assert [tokenizer.encode(text).ids for text in ("12", " 1", "ca")] == expected


def test_bad_input_names_what_was_found(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="tokenizer: found 10 tokens, expected the network's 9 at most"):
        prompts.make_encode(tokenizer, 8, vocabulary=9)
    with pytest.raises(ValueError, match=r"template: found no <\|im_start\|>, <\|im_end\|> in the vocabulary"):
        encoder(tokenizer, template=prompts.CHATML)
    with pytest.raises(ValueError, match="max_length: found 7, expected at least 8"):
        encoder(tokenizer, 7)
    with pytest.raises(ValueError, match=r"responses: found 2 without a token that counts, at \[1, 2\]"):
        encoder(tokenizer)(["", "a", ""], ["ab c", "", "a"])
    with pytest.raises(ValueError, match="found 'llama' with 'smollm', expected 'gpt2' with one of"):
        prompts.tokenizer_of_gguf(GGUF | {"tokenizer.ggml.model": "llama"})
    with pytest.raises(ValueError, match="found 'gpt2' with 'qwen2'"):
        prompts.tokenizer_of_gguf(GGUF | {"tokenizer.ggml.pre": "qwen2"})
    damaged = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="missing or damaged"):
        prompts.read_tokenizer(damaged)
    damaged.write_text(json.dumps({"model": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="missing or damaged"):
        prompts.read_tokenizer(damaged)
