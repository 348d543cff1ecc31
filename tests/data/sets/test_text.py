"""SICK and rated sentences, on small made files of the published layouts."""

import made_text
import numpy as np
import pytest

from d3mjax.data import splits
from d3mjax.data.sets import multinli, sentences, sick
from d3mjax.data.sets.negation import is_negated

COUNTS = {"train": (20, 8, 12, 7, 9), "trial": (5, 2, 3, 3, 6), "test": (6, 4, 5, 3, 2)}


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("The room has no window.", True),
        ("Nobody, never!", True),
        ("He isn't here", True),
        ("He isn’t here", True),
        ("He ISN\x92T here", True),
        ("He went without me", True),
        ("A note on northern knots", False),
        ("An ant in a tent", False),
    ],
)
def test_negation(sentence, negated):
    assert is_negated(sentence) is negated


def test_words_of_multinli_are_negations():
    assert all(is_negated(f"It is {word.upper()}.") for word in multinli.NEGATIONS)


def lengths(first, second):
    return np.array([[len(a), len(b)] for a, b in zip(first, second, strict=True)], np.float32)


def load(directory, seed=0, **options):
    return sick.load_sick(seed, source_dir=directory, encode=lengths, **{"counts": COUNTS, **options})


def test_sick(tmp_path):
    directory = made_text.sick(tmp_path / "sick", COUNTS)
    data = load(directory)
    splits.check_data(data, 3, 5)
    pool = np.add(COUNTS["train"], COUNTS["trial"])
    fifth = np.round(0.2 * pool)
    for split, expected in zip(data, (pool - 2 * fifth, fifth, fifth, COUNTS["test"]), strict=True):
        np.testing.assert_array_equal(splits.group_sizes(split, 5), expected)
        np.testing.assert_array_equal(split.y, np.array([0, 0, 1, 2, 2])[split.group])
    pairs = sick.read_sick(directory)
    by_id = dict(zip(pairs.id.tolist(), zip(pairs.first, pairs.second, strict=True), strict=True))
    for row, number in zip(data.selection.x, data.selection.id.tolist(), strict=True):
        assert row.tolist() == [len(text) for text in by_id[number]]
    assert data.test.id.tolist() == sorted(data.test.id.tolist()) == pairs.id[pairs.part == 2].tolist()
    assert load(directory, 1).target.id.tolist() != data.target.id.tolist() == load(directory).target.id.tolist()


def test_pairs_of_the_same_sentences_stay_together(tmp_path):
    directory = made_text.sick(tmp_path / "sick", COUNTS)
    train = directory / "SICK_train.txt"
    lines = train.read_text().splitlines()
    swapped = [line.split("\t") for line in lines[1:]]
    more = [f"{1000 + i}\t{b}\t{a}\t{score}\t{label}" for i, (_, a, b, score, label) in enumerate(swapped)]
    train.write_text("\n".join([*lines, *more]) + "\n")
    for seed in range(3):
        data = load(directory, seed, counts=None)
        assert [len(split.y) for split in data] == [79, 26, 26, 20]
        mirrored = {1000 + i: int(number) for i, (number, *_) in enumerate(swapped)}
        for split in data[:3]:
            ids = set(split.id.tolist())
            assert {mirrored[i] for i in ids if i >= 1000} == {i for i in ids if i in mirrored.values()}


def test_groups_by_the_second_sentence_and_published_counts(tmp_path):
    directory = made_text.sick(tmp_path / "sick", COUNTS)
    test = directory / "SICK_test_annotated.txt"
    test.write_text(test.read_text().replace("test\t", "test not\t", 1))  # of a first sentence
    assert splits.group_sizes(load(directory, counts=None).test, 5).tolist() == [5, 5, 5, 3, 2]
    assert splits.group_sizes(load(directory, negated=sick.in_second).test, 5).tolist() == [6, 4, 5, 3, 2]
    with pytest.raises(ValueError, match=r"test\.group: found counts \[5, 5, 5, 3, 2\], expected the published \[6, 4"):
        load(directory)
    for counts in (sick.COUNTS, sick.COUNTS_BY_SECOND):
        assert [sum(part) for part in counts.values()] == [4500, 500, 4927]
        published = [[2536, 1299, 665], [282, 144, 74], [2793, 1414, 720]]
        assert [[a + b, c, d + e] for a, b, c, d, e in counts.values()] == published


def test_sick_names_what_is_wrong(tmp_path):
    directory = made_text.sick(tmp_path / "sick", COUNTS)
    with pytest.raises(ValueError, match=r"none.SICK_train\.txt: missing or damaged"):
        load(tmp_path / "none")
    trial = directory / "SICK_trial.txt"
    for text in (made_text.HEADER + "\n7\ta\tb\t3\tMAYBE\n", "pair_ID\n7\n", made_text.HEADER + "\n7\ta\n"):
        trial.write_text(text)
        with pytest.raises(ValueError, match=r"SICK_trial\.txt: missing or damaged"):
            load(directory)


def count_letters(texts):
    return np.array([[len(text)] for text in texts], np.float32)


def test_rated_sentences_are_read_once_each(tmp_path):
    texts = {name: [("Very good", 2.5)] for name in made_text.corpora(1)}
    texts["tweets"] = [("very GOOD", -1.0), ("Caf\xe9, not bad", 0.9), ("so so", 0.5)]
    texts["amazonReviewSnippets"] = [("bad\u0020one", -0.6)]
    path = made_text.rated(tmp_path / "vader.tar.gz", texts)
    rated = sentences.read_rated(path, counts=None)
    assert rated.text == ["Very good", "bad one", "Caf\xe9, not bad", "so so"]
    assert rated.rating.tolist() == [2.5, -0.6, 0.9, 0.5]
    assert rated.domain.tolist() == [0, 1, 3, 3]
    assert rated.id.tolist() == [0, 1, 4, 5]
    data = sentences.load_sentences(0, path=path, encode=count_letters, sizes=(1, 1, 1), counts=None)
    by_id = {int(i): (y, g, x) for s in data for i, y, g, x in zip(s.id, s.y, s.group, s.x[:, 0], strict=True)}
    assert by_id == {0: (1, 2, 9), 1: (0, 0, 7), 4: (1, 3, 13)}
    with pytest.raises(ValueError, match=r"found \{'films': 1, .* sentences, expected the published \{'films': 10605"):
        sentences.read_rated(path)
    assert sum(sentences.COUNTS.values()) == 23_703


def test_natural_groups(tmp_path):
    path = made_text.rated(tmp_path / "vader.tar.gz", made_text.corpora(12))
    options = {"path": path, "encode": count_letters, "sizes": (60, 40, 40), "counts": None}
    by_negation = sentences.load_sentences(3, **options)
    by_domain = sentences.load_sentences(3, **options, groups=sentences.label_by_domain)
    splits.check_data(by_negation, 2, len(sentences.NEGATION_NAMES))
    splits.check_data(by_domain, 2, len(sentences.DOMAIN_NAMES))
    assert [len(split.y) for split in by_domain] == [60, 40, 40, 52]
    total = lambda data, groups: np.sum([splits.group_sizes(split, groups) for split in data], axis=0).tolist()
    assert total(by_negation, 4) == [48] * 4
    assert total(by_domain, 8) == [24] * 8
    for a, b in zip(by_negation, by_domain, strict=True):
        np.testing.assert_array_equal(a.id, b.id)
        np.testing.assert_array_equal(b.group % 4, b.id // 48)
        np.testing.assert_array_equal(a.group % 2, b.id // 12 % 2)


def test_planted_negation_takes_films_of_the_sizes_asked_for(tmp_path):
    path = made_text.rated(tmp_path / "vader.tar.gz", made_text.corpora(21))
    sizes = sentences.Sizes((2, 8, 8, 2), (3,) * 4, (4,) * 4, (5,) * 4)
    options = {"path": path, "encode": count_letters, "counts": None}
    data = sentences.load_planted_negation(0, **options, sizes=sizes)
    splits.check_data(data, 2, 4)
    for split, expected in zip(data, sizes, strict=True):
        assert splits.group_sizes(split, 4).tolist() == list(expected)
        assert split.id.max() < 84  # films come first
    more = sentences.load_planted_negation(0, **options, sizes=sizes._replace(target=(4,) * 4))
    for a, b in ((more.test, data.test), (more.selection, data.selection)):
        np.testing.assert_array_equal(a.id, b.id)
    with pytest.raises(ValueError, match=r"sizes: found \(5, 4, 3, 10\), expected non-negative, adding up to <= 21"):
        sentences.load_planted_negation(0, **options, sizes=sizes._replace(train=(10, 8, 8, 10)))


def test_damaged_distributions_are_named(tmp_path):
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with pytest.raises(ValueError, match=r"tar\.gz: missing or damaged .*, expected vaderSentiment-3\.3\.2"):
        sentences.read_rated(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"tar\.gz: missing or damaged"):
        sentences.read_rated(path)
    made_text.rated(path, {"tweets": [("a", 1.0)]})
    with pytest.raises(ValueError, match=r"missing or damaged .*movieReviewSnippets"):
        sentences.read_rated(path)
    whole = made_text.rated(path, made_text.corpora(12)).read_bytes()
    for damaged, reason in (
        (whole[: len(whole) // 2], "EOFError"),
        (whole[:100] + bytes(50) + whole[150:], "error.*decompressing"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"tar\.gz: missing or damaged .*{reason}"):
            sentences.read_rated(path)


def rated_by_several(path):
    """Twelve sentences a corpus of films; the first three people rate 2, the last is of the other sign, or says 0."""
    texts = made_text.corpora(12)
    films = texts["movieReviewSnippets"]
    signs = [1 if rating > 0 else -1 for _, rating in films]
    ratings = [[2 * s, 2 * s, 2 * s, -s if i % 2 else 0] for i, s in enumerate(signs)]
    ratings[0] = [1, -1, 0, 0]  # mean 0
    return made_text.rated(path / "vader.tar.gz", texts, {"movieReviewSnippets": ratings}), signs


def test_single_ratings_are_joined_by_name_and_their_mean_is_the_rating(tmp_path):
    path, signs = rated_by_several(tmp_path)
    rated, ratings = sentences.read_ratings(path, "films", counts=None)
    assert len(rated.text) == len(ratings) == 48
    assert [np.sign(of.sum()) for of in ratings[1:]] == signs[1:]
    np.testing.assert_allclose(rated.rating, [of.mean() for of in ratings])


def test_labels_of_one_person_are_wrong_where_they_oppose_the_mean(tmp_path):
    path, signs = rated_by_several(tmp_path)
    encode = lambda texts: np.arange(len(texts), dtype=np.float32)[:, None]
    options = {"path": path, "encode": encode, "sizes": (24, 8, 8), "counts": None}
    data, wrong = sentences.load_rated_once(3, **options)
    right = np.array(signs) > 0
    assert 0 not in np.concatenate([part.id for part in data])  # its mean is 0
    assert len(np.unique(np.concatenate([part.id for part in data]))) == 47
    for part in (data.target, data.test):
        np.testing.assert_array_equal(part.y, right[part.id])
    np.testing.assert_array_equal(data.train.id[data.train.y != right[data.train.id]], wrong)
    assert set(wrong % 2) == {1}  # only a person of the other sign makes an error, one of four
    np.testing.assert_array_equal(data.train.x[:, 0], data.train.id)
    shares = [len(sentences.load_rated_once(seed, **options)[1]) / 24 for seed in range(40)]
    assert abs(np.mean(shares) - 0.5 / 4) < 4 * np.sqrt(0.125 * 0.875 / (40 * 24))
    again = sentences.load_rated_once(3, **options)[0]
    np.testing.assert_array_equal(data.train.y, again.train.y)
