"""Sources are found in the directories of the environment, checked, and missed with the command that brings them."""

import hashlib
import os

import pytest

from experiments import local_data
from experiments.local_data import SOURCES, Source, find


@pytest.fixture
def directories(tmp_path, monkeypatch):
    """Two directories of the environment, and an empty ``.data``."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setenv(local_data.VARIABLE, os.pathsep.join(map(str, (first, second))))
    monkeypatch.setattr(local_data, "FILLED", tmp_path / "filled")
    digest = hashlib.sha256(b"good").hexdigest()
    monkeypatch.setitem(SOURCES, "folder", Source("some/folder", "make folder", {"file.txt": digest}))
    monkeypatch.setitem(SOURCES, "file", Source("file.tgz", "make file", {"": digest}))
    return first, second, tmp_path / "filled"


def test_the_first_directory_wins_and_data_is_last(directories):
    for directory in reversed(directories):
        directory.mkdir(exist_ok=True)
        (directory / "sick").mkdir()
        assert find("sick") == local_data.search("sick") == directory / "sick"
    assert local_data.search("waterbirds") is None


def test_files_are_checked(directories):
    folder = directories[1] / "some" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"file.txt: found no file, expected one of SHA-256 .* Origin: make folder"):
        find("folder")
    (folder / "file.txt").write_bytes(b"good")
    (directories[0] / "file.tgz").write_bytes(b"good")
    assert (find("folder"), find("file")) == (folder, directories[0] / "file.tgz")
    (directories[0] / "file.tgz").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"file.tgz: found SHA-256 .*, expected .* Origin: make file"):
        find("file")


def test_what_is_missing_names_directories_and_origin(directories, monkeypatch):
    with pytest.raises(ValueError, match=r"found no packages/.*first.*second.*filled.*D3MJAX_DATA.*Origin: make data"):
        find("minilm")
    with pytest.raises(ValueError, match="found the name 'sikc', expected one of"):
        find("sikc")
    monkeypatch.delenv(local_data.VARIABLE)
    assert local_data.directories() == (directories[2],)


def test_the_command_counts_what_is_missing(directories, capsys):
    (directories[0] / "sick").mkdir()
    assert local_data.main(["sick", "mnist"]) == 1
    assert local_data.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(SOURCES)
    assert lines[0] == f"sick: {directories[0] / 'sick'}"
