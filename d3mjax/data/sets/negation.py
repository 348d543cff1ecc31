"""Negation in English sentences, by a list of words."""

from d3mjax.data.sets.multinli import NEGATIONS, words

WORDS = NEGATIONS | {"not", "none", "nowhere", "neither", "nor", "without"}
"""Those of MultiNLI's published groups, and others; words that end in n't count, too."""


def is_negated(sentence: str) -> bool:
    """Whether a sentence has one of `WORDS`, or a word that ends in n't, as letters in any case."""
    plain = sentence.replace("’", "'").replace("\x92", "'").lower()  # x92: the apostrophe of Windows read as Latin-1
    return "n't" in plain or not WORDS.isdisjoint(words(plain))
