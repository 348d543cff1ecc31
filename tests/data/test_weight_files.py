"""Safetensors files of all kinds and defects, and the hub without a network."""

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import save_file

from d3mjax.data import weight_files

REVISION = "0123456789abcdef0123456789abcdef01234567"


def _saved(path, **tensors):
    save_file(tensors, path)
    return path


def test_half_precision_becomes_float32_and_integers_stay(tmp_path):
    values = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    kinds = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i64": np.int64}
    path = _saved(tmp_path / "x.safetensors", **{name: values.astype(kind) for name, kind in kinds.items()})
    tensors = weight_files.read_safetensors(path)
    assert sorted(tensors) == sorted(kinds)
    for name in ("f32", "f16", "bf16"):
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], values)
    np.testing.assert_array_equal(tensors["i64"], values.astype(np.int64))


@pytest.mark.parametrize("kind", [np.float64, ml_dtypes.float8_e4m3fn])
def test_other_types_are_refused(tmp_path, kind):
    path = _saved(tmp_path / "x.safetensors", a=np.ones(3, np.float32), b=np.ones(3, kind))
    with pytest.raises(ValueError, match=r"x\.safetensors: found tensor 'b' of type F.*expected one of F32, F16, BF16"):
        weight_files.read_safetensors(path)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated_files_are_named(tmp_path, size):
    path = _saved(tmp_path / "x.safetensors", a=np.ones(30, np.float32))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors: missing, truncated, or not a safetensors file"):
        weight_files.read_safetensors(path)


def test_files_that_are_missing_or_pickles_or_directories(tmp_path):
    (tmp_path / "pickle").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in ("pickle", "none", "."):
        with pytest.raises(ValueError, match="not a safetensors file"):
            weight_files.read_safetensors(tmp_path / name)


def test_the_hub_takes_a_commit_and_its_cache_first(tmp_path, monkeypatch):
    calls = []

    def download(repo, file, *, revision, local_files_only=False):
        calls.append((repo, file, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert weight_files.from_hub("timm/resnet18", REVISION, "model.safetensors") == tmp_path / "model.safetensors"
    assert calls == [("timm/resnet18", "model.safetensors", REVISION, first) for first in (True, False)]
    with pytest.raises(ValueError, match="revision: found 'main', expected the 40 digits of a commit"):
        weight_files.from_hub("timm/resnet18", "main", "model.safetensors")


def test_a_file_that_the_repository_has_not_is_none(monkeypatch):
    marks, tried = [None, object()], []

    def download(repo, file, *, revision, local_files_only=False):
        tried.append(local_files_only)
        raise LocalEntryNotFoundError("not here") if local_files_only else EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: marks[len(tried) > 2])
    for _ in range(2):  # then as the cache has noted
        assert weight_files.search_hub("a/b", REVISION, "tokenizer.json") is None
    assert tried == [True, False, True]
    with pytest.raises(ValueError, match=f"a/b@{REVISION}: found no tokenizer.json in the repository"):
        weight_files.from_hub("a/b", REVISION, "tokenizer.json")


def test_without_a_network_the_message_says_which_file_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    address = f"https://huggingface.co/a/b/resolve/{REVISION}/model.safetensors"
    with pytest.raises(ValueError, match=f"a/b/model.safetensors: not in the cache.*{address}.*path of that file"):
        weight_files.from_hub("a/b", REVISION, "model.safetensors")
    with pytest.raises(ValueError, match="Repo id"):
        weight_files.from_hub("a b", REVISION, "model.safetensors")
