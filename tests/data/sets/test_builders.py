"""What TFDS keeps comes back bit for bit, and a damaged cache is named instead of read."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from d3mjax.data.sets import builders

NUM = 400


def config(seed=0):
    """Two splits of numbers and images; reading them twice is an error, as they are cached."""
    rng, read = np.random.default_rng(seed), []

    def arrays():
        assert not read
        read.append(True)
        images = rng.integers(0, 256, (NUM, 4, 4, 1)).astype(np.uint8)
        return {
            name: {"image": images[part], "y": np.arange(NUM, dtype=np.int32)[part]} for name, part in PARTS.items()
        }

    features = {"image": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8), "y": np.int32}
    return builders.CachedConfig(name=f"made_{seed}", read=arrays, features=features)


PARTS = {"train": slice(0, 300), "test": slice(300, NUM)}


def test_arrays_come_back_in_order(tmp_path):
    made = config()
    first, again = builders.load(made, tmp_path), builders.load(made, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (NUM, 4, 4, 1)).astype(np.uint8)
    for parts in (first, again):
        for name, part in PARTS.items():
            np.testing.assert_array_equal(parts[name]["image"], images[part])
            np.testing.assert_array_equal(parts[name]["y"], np.arange(NUM)[part])
            assert parts[name]["y"].dtype == np.int32


def test_damaged_records_are_named(tmp_path):
    made = config()
    builders.load(made, tmp_path)
    (file,) = tmp_path.rglob("*train.array_record*")
    raw = bytearray(file.read_bytes())
    raw[2000:2064] = bytes(b ^ 255 for b in raw[2000:2064])
    for damage in (bytes(raw), bytes(raw[:100]), b""):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"1\.0\.0: the cached records are damaged\. Delete this directory"):
            builders.load(made, tmp_path)


def test_a_damaged_description_is_named(tmp_path):
    made = config()
    builders.load(made, tmp_path)
    (file,) = tmp_path.rglob("cached/*/*/dataset_info.json")
    for damage in ("", "{bad", "{}"):
        file.write_text(damage)
        with pytest.raises(ValueError, match=rf"{tmp_path}/cached/made_0.*Delete this directory"):
            builders.load(made, tmp_path)


def test_sound_records_of_another_configuration_are_refused(tmp_path):
    for seed in (1, 2):
        builders.load(config(seed), tmp_path)
    one, two = (next(tmp_path.rglob(f"made_{seed}/**/*train.array_record*")) for seed in (1, 2))
    one.write_bytes(two.read_bytes())
    with pytest.raises(ValueError, match="damaged"):
        builders.load(config(1), tmp_path)
