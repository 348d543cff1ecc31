"""A decoder of random weights and benchmarks of made sentences, for smoke runs: of no use but to run everything."""

from itertools import product
from typing import Any

import jax
import numpy as np

from d3mjax.data import prompts
from d3mjax.data.sets.stereotypes import Sentences
from d3mjax.networks import decoders
from experiments.language_models import LanguageModel

TERMS = {
    "gender": ("aunt", "uncle", "nephew"),
    "profession": ("baker", "pilot", "clerk", "nurse"),
    "race": ("northerner", "southerner", "easterner", "westerner"),
    "religion": ("monk", "nun"),
}
STEREOTYPES, OTHERS, UNRELATED = ("kind", "loud", "neat"), ("bold", "calm", "late"), ("liquid", "square", "seven")
BEGIN = "<|endoftext|>"


def language() -> LanguageModel:
    """Two blocks of width 16 on words; every word of `benchmarks` is in the vocabulary."""
    import tokenizers

    words = sorted(
        {word for rows in benchmarks().values() for side in rows[:3] for text in side for word in text.split()}
    )
    vocabulary = {word: i for i, word in enumerate((BEGIN, "table", *words))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=BEGIN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([BEGIN])
    sizes: dict[str, Any] = {
        "vocabulary": len(vocabulary),
        "width": 16,
        "blocks": 2,
        "heads": 4,
        "key_heads": 2,
        "inner": 24,
    }
    config = decoders.LlamaConfig(**sizes, positions=64)
    model, one = decoders.log_probs(config), {"ids": np.zeros((1, 8), np.int32)}
    x = one | {name: np.ones((1, 8), bool) for name in ("mask", "response")}
    variables = jax.tree.map(lambda a: 8 * a if a.ndim > 1 else a, model.init(jax.random.key(0), x))
    encode = prompts.make_encode(tokenizer, 64, vocabulary=config.vocabulary)
    return LanguageModel(config, model, jax.tree.map(np.asarray, variables), encode, tokenizer)


def benchmarks() -> dict[str, Sentences]:
    """Rows in the place of StereoSet, CrowS-Pairs and Wino-test."""
    people = [(term, kind) for kind, terms in TERMS.items() for term in terms]
    cells = [(person, k) for person, k in product(people, range(3))]
    sides = [tuple(f"the {term} is {w[k]} today" for (term, _), k in cells) for w in (STEREOTYPES, OTHERS, UNRELATED)]
    terms, kinds = zip(*(person for person, _ in cells), strict=True)
    ids = lambda rows: np.arange(len(rows), dtype=np.int32)
    stereoset = Sentences._make([*sides, terms, kinds, ids(terms)])
    swaps = [(a, b, kind) for (a, kind), (b, other) in product(people, people) if kind == other and a < b]
    said = [(f"my {a} is {w} again", f"my {b} is {w} again", kind) for (a, b, kind) in swaps for w in STEREOTYPES]
    first, second, kinds = zip(*said, strict=True)
    crows = Sentences(first, second, (), kinds, kinds, ids(kinds))
    pronouns = [tuple(f"the {term} left because {p} is late" for term, _ in people) for p in ("he", "she")]
    gender = ("gender",) * len(people)
    return {
        "stereoset": stereoset,
        "crows": crows,
        "wino": Sentences._make([*pronouns, (), gender, gender, ids(gender)]),
    }
