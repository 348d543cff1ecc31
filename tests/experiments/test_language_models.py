"""Language models from files made here: GGUF and folders of the hub give the same; bad input."""

import jax
import made_decoders
import numpy as np
import planted
import pytest

from d3mjax.data import prompts
from experiments import language_models, local_data

PROMPTS, RESPONSES = ["the cat", "a dog", ""], [" in a house", " is in", "the end"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return language_models.read(made_decoders.write_gguf(tmp_path_factory.mktemp("model") / "made.gguf"))


def score(language, tokens):
    return jax.jit(language.model.apply)(language.variables, tokens)[0]


def test_a_folder_of_the_hub_gives_the_same(language, tmp_path):
    other = language_models.read(made_decoders.write_folder(tmp_path / "hub"))
    assert other.config == language.config._replace(epsilon=other.config.epsilon)  # float32 in GGUF
    planted.equal(other.variables, language.variables)
    encoded = [each.encode(PROMPTS, RESPONSES) for each in (language, other)]
    planted.equal(encoded[0].tokens, encoded[1].tokens)
    planted.close(score(language, encoded[0].tokens), score(other, encoded[1].tokens), terms=100)


def test_smollm2_is_the_file_of_the_package(tmp_path, monkeypatch):
    folder = tmp_path / local_data.SOURCES["smollm2"].path
    folder.mkdir(parents=True)
    path = made_decoders.write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"found SHA-256 .*, expected b179c9523d0e6a0f"):
        language_models.smollm2()
    source = local_data.SOURCES["smollm2"]._replace(sha256={})
    monkeypatch.setitem(local_data.SOURCES, "smollm2", source)
    chat = language_models.smollm2(max_length=16, template=prompts.CHATML)
    assert chat.config == language_models.read(path).config
    tokens, cut = chat.encode(["the cat", "a" * 50], ["in", "out"])
    assert (tokens["ids"].shape[1], cut) == (16, 2)


def test_states_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    memory = tmp_path / "meminfo"
    monkeypatch.setattr(language_models, "MEMORY", memory)
    assert language_models.free_memory() is None
    memory.write_text("MemTotal: 4 kB\nMemAvailable:       2 kB\n", encoding="ascii")
    assert language_models.free_memory() == 2048
    with pytest.raises(ValueError, match=r"states: found 0\.0 GB of free memory, expected .* for 3 texts"):
        language_models.check_memory(3, 16, 8)


def test_folders_that_are_no_models_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"found no config.json, tokenizer.json, \*.safetensors"):
        language_models.read(tmp_path)
    folder = made_decoders.write_folder(tmp_path / "hub")
    for part in folder.glob("*.safetensors"):
        part.unlink()
    with pytest.raises(ValueError, match=r"hub: found no \*.safetensors, expected a model of the hub"):
        language_models.read(folder)
    small = made_decoders.CONFIG._replace(vocabulary=20)
    with pytest.raises(ValueError, match=f"found {len(made_decoders.WORDS)} tokens, expected the network's 20 at most"):
        language_models.read(made_decoders.write_folder(tmp_path / "small", small))


def test_a_made_model_guesses_nearly_uniformly(language):
    tokens, _ = language.encode([""], ["the cat is in a house, and the dog is not."])
    mean = -float(score(language, tokens)[0]) / tokens["response"].sum()
    assert abs(mean - np.log(len(made_decoders.WORDS))) < 1.5
