"""Images of a folder arrive as pixels in [0, 1], in the order of their names, and bad ones are named."""

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import images

PIL = pytest.importorskip("PIL.Image")
COLOURS = {"red.png": (255, 0, 0), "b/blue.jpg": (0, 0, 254), "grey.bmp": (51, 51, 51)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name, colour in COLOURS.items():
        PIL.new("RGB", (40, 20), colour).save(tmp_path / name)
    return tmp_path


def test_pixels_by_hand(folder):
    x = images.read(folder, list(COLOURS), size=8)
    assert (x.shape, x.dtype) == ((3, 8, 8, 3), np.float32)
    expected = np.array(list(COLOURS.values()))[:, None, None] / 255
    np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), atol=1.5 / 255)  # JPEG rounds


@pytest.mark.parametrize("bound", [12 * 64 * 3, 12 * 64 * 3 - 1])
def test_half_precision_beyond_a_bound(folder, monkeypatch, bound):
    whole = images.read(folder, list(COLOURS), size=8)
    monkeypatch.setattr(images, "LARGEST", bound)
    x = images.read(folder, list(COLOURS), size=8)
    assert x.dtype == (np.float32 if bound == whole.nbytes else np.float16)
    np.testing.assert_array_equal(x, whole.astype(x.dtype))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, 0.2),
        ("I;16", 257 * 51, 0.2),
        ("RGBA", (0, 0, 0, 0), 1.0),
        ("LA", (0, 255), 0.0),
        ("P", 0, 0.0),
        ("1", 1, 1.0),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    PIL.new(mode, (8, 8), value).save(tmp_path / "a.png")
    x = images.read(tmp_path, ["a.png"], size=8)
    np.testing.assert_allclose(x, np.full((1, 8, 8, 3), expected), atol=1e-6)


def test_rotation_is_undone(tmp_path):
    image = PIL.fromarray(np.array([[[255, 255, 255]] * 8] * 4 + [[[0, 0, 0]] * 8] * 4, np.uint8))  # white above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    x = images.read(tmp_path, ["a.png"], size=8)
    assert (x[0, 0, 0, 0], x[0, 7, 0, 0]) == (0, 1)


def test_missing_and_damaged_images_are_counted_and_named(folder):
    with pytest.raises(ValueError, match=r"found 2 of 5 images missing or damaged: x\.png \(no such file\), b/y\.png"):
        images.read(folder, [*COLOURS, "x.png", "b/y.png"], size=8)
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no image")
    with pytest.raises(
        ValueError, match=r"found 2 of 5 images missing or damaged: cut\.png \(.*\), text\.jpg \(cannot"
    ):
        images.read(folder, [*COLOURS, "cut.png", "text.jpg"], size=8)


def test_column_of_names(folder):
    frame = pd.DataFrame({"y": ["1", "0", "1"], "file": list(COLOURS), "place": ["a", "b", "a"]})
    assert images.name_column(frame, folder) == "file"
    with pytest.raises(ValueError, match=r"found no column that names files in .*\['y', 'place'\]"):
        images.name_column(frame.drop(columns="file"), folder)


@pytest.mark.parametrize("values", [["0", "1", "2", "0"], [0, 1, 2, 0], ["train", "val", "test", "train"]])
def test_parts_of_metadata(values):
    frame = pd.DataFrame({"img_filename": list("abcd"), "split": values})
    parts = {name: images.part(frame, name)["img_filename"].tolist() for name in images.PARTS}
    assert parts == {"train": ["a", "d"], "val": ["b"], "test": ["c"]}
    with pytest.raises(ValueError, match="found no row of part 'test'"):
        images.part(frame.head(2), "test")
    with pytest.raises(ValueError, match=r"found columns \['img_filename'\], expected 'split'"):
        images.part(frame.drop(columns="split"), "train")
