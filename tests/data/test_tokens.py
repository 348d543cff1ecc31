"""Tokens by hand, pairs, truncation and padding; batches of one length cover every text once."""

import json

import made_text
import numpy as np
import pytest
import tokenizers

from d3mjax.data import tokens


@pytest.fixture
def vocabulary(tmp_path):
    return made_text.vocabulary(tmp_path / "vocab.txt")


def words(vocabulary, row):
    names = vocabulary.read_text().splitlines()
    return [names[i] for i in row]


def test_word_pieces_in_lower_case(vocabulary):
    encode = tokens.read_tokenizer(vocabulary, 16)
    encoded, cut = encode(["A man's Dogs XY", "good"])
    assert cut == 0
    assert encoded["ids"].shape == (2, 16)
    assert words(vocabulary, encoded["ids"][0])[:9] == ["[CLS]", "a", "man", "'", "s", "dog", "##s", "[UNK]", "[SEP]"]
    assert words(vocabulary, encoded["ids"][1]) == ["[CLS]", "good", "[SEP]", *["[PAD]"] * 13]
    assert encoded["mask"].sum(1).tolist() == [9, 3]


def test_word_pieces_with_capitals_and_accents(vocabulary):
    vocabulary.write_text(vocabulary.read_text() + "Dog\n\u00e9\n")
    text = ["Dog dog \u00e9 GOOD"]
    plain, cased = (tokens.read_tokenizer(vocabulary, 8, lower_case=lower)(text).tokens for lower in (True, False))
    assert words(vocabulary, plain["ids"][0])[1:5] == ["dog", "dog", "e", "good"]
    assert words(vocabulary, cased["ids"][0])[1:5] == ["Dog", "dog", "\u00e9", "[UNK]"]


def test_pairs(vocabulary):
    encode = tokens.read_tokenizer(vocabulary, 64)
    encoded, cut = encode(["a man", "old"], ["a dog is eating", "bad film"])
    assert encoded["ids"].shape == (2, 16)
    assert words(vocabulary, encoded["ids"][0][:9]) == [
        "[CLS]",
        "a",
        "man",
        "[SEP]",
        "a",
        "dog",
        "is",
        "eating",
        "[SEP]",
    ]
    np.testing.assert_array_equal(encoded["types"][0], [0] * 4 + [1] * 5 + [0] * 7)
    np.testing.assert_array_equal(encoded["types"][1], [0] * 3 + [1] * 3 + [0] * 10)
    assert encoded["mask"].sum(1).tolist() == [9, 6]
    assert cut == 0


def test_long_texts_are_cut_and_counted(vocabulary):
    encode = tokens.read_tokenizer(vocabulary, 12)
    encoded, cut = encode(["a man " * 10, "good", "a dog is eating a good old"], ["bad", "bad", "no film"])
    assert cut == 1  # the third has 12 tokens
    assert encoded["ids"].shape == (3, 12)
    kept = "[CLS] a man a man a man a man [SEP] bad [SEP]"  # of the longer sentence
    assert words(vocabulary, encoded["ids"][0]) == kept.split()
    assert encoded["mask"][[0, 2]].all()


def test_a_tokenizer_file_gives_the_same_tokens(vocabulary, tmp_path):
    path = tmp_path / "tokenizer.json"
    names = vocabulary.read_text().splitlines()
    made = tokenizers.BertWordPieceTokenizer({name: i for i, name in enumerate(names)}, lowercase=True)
    made.enable_padding(length=30)  # of the file, not of ours
    made.save(str(path))
    texts = ["A man is not eating", "good"], ["a dog", "bad bad bad"]
    ours, theirs = (tokens.read_tokenizer(file, 10)(*texts) for file in (vocabulary, path))
    assert ours.cut == theirs.cut == 0
    for name in ("ids", "types", "mask"):
        np.testing.assert_array_equal(ours.tokens[name], theirs.tokens[name])


def test_bad_files_are_named(vocabulary, tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt: missing or damaged"):
        tokens.read_tokenizer(tmp_path / "none.txt", 16)
    (tmp_path / "vocab.txt").write_text("a\nman\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: missing or damaged .*, expected BERT's vocab\.txt or"):
        tokens.read_tokenizer(tmp_path / "vocab.txt", 16)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: missing or damaged"):
        tokens.read_tokenizer(tmp_path / "tokenizer.json", 16)
    with pytest.raises(ValueError, match="max_length: found 4, expected at least 8"):
        tokens.read_tokenizer(made_text.vocabulary(tmp_path / "good.txt"), 4)


def test_batches_by_length_cover_every_text_once(vocabulary):
    encode = tokens.read_tokenizer(vocabulary, 64)
    rng = np.random.default_rng(0)
    encoded, _ = encode([" ".join(["dog"] * count) for count in rng.integers(1, 60, 23)])
    seen, longest = [], []
    for rows, batch in tokens.by_length(encoded, size=5):
        assert {len(a) for a in batch.values()} == {5}
        width = batch["ids"].shape[1]
        np.testing.assert_array_equal(batch["ids"][: len(rows)], encoded["ids"][rows][:, :width])
        assert not encoded["mask"][rows][:, width:].any()
        assert width % 8 == 0
        assert width - encoded["mask"][rows].sum(1).max() < 8
        seen += rows.tolist()
        longest.append(width)
    assert sorted(seen) == list(range(23))
    assert longest == sorted(longest)
