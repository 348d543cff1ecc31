"""The loaders of published benchmarks, on small made files of the same layout."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from d3mjax.data import splits
from d3mjax.data.sets import celeba, images, multinli, waterbirds

PIL = pytest.importorskip("PIL.Image")
COLUMNS = ("img_id", "img_filename", "y", "split", "place", "place_filename")
SPLITS = np.repeat([0, 1, 2], [8, 16, 8])


@pytest.fixture
def birds(tmp_path):
    """32 images of one colour each, red = 8 * row; the four groups in turn."""
    source = tmp_path / "waterbird_complete95_forest2water2"
    (source / "001.Albatross").mkdir(parents=True)
    with open(source / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in range(32):
            name = f"001.Albatross/{row}.png"
            PIL.new("RGB", (40, 30), (8 * row, 0, 255)).save(source / name)
            writer.writerow([row + 1, name, row // 2 % 2, SPLITS[row], row % 2, "/f/forest/1.jpg"])
    return source


def load_birds(birds, **options: Any):
    options = {"counts": None} | options
    return waterbirds.load_waterbirds(0, source_dir=birds, size=7, data_dir=birds.parent, **options)


def test_waterbirds(birds):
    data = load_birds(birds, normalise=False)
    assert data.train.id.tolist() == list(range(8))
    assert sorted([*data.target.id, *data.selection.id]) == list(range(8, 24))
    assert data.test.id.tolist() == list(range(24, 32))
    for split in data:
        assert (split.x.shape[1:], split.x.dtype) == ((7, 7, 3), np.uint8)
        np.testing.assert_array_equal(
            split.x[..., 0], np.broadcast_to(8 * split.id[:, None, None], (len(split.id), 7, 7))
        )
        assert (split.x[..., 2] == 255).all()
        np.testing.assert_array_equal(split.group, split.id % 4)
        np.testing.assert_array_equal(split.y, split.group // 2)
    splits.check_data(data, 2, 4)
    (birds / "001.Albatross" / "3.png").unlink()  # decoded images are kept
    x = load_birds(birds).train.x
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[3, 0, 0], [(24 / 255 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225], rtol=1e-5)


def test_waterbirds_asserts_the_published_counts(birds):
    with pytest.raises(
        ValueError, match=r"train\.group: found counts \[2, 2, 2, 2\], expected the published \[3498, 184"
    ):
        load_birds(birds, counts=waterbirds.COUNTS)
    load_birds(birds, counts={"train": (2,) * 4, "val": (4,) * 4, "test": (2,) * 4})
    assert [sum(counts) for counts in waterbirds.COUNTS.values()] == [4795, 1199, 5794]  # 11,788 as in CUB


def test_waterbirds_names_what_is_missing(birds, tmp_path):
    with pytest.raises(ValueError, match=r"source_dir: found no .*none/metadata\.csv"):
        load_birds(tmp_path / "none")
    (birds / "001.Albatross" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3\.png: missing or not an image"):
        load_birds(birds)
    for text in ("img_id,y\n1,0\n", ",".join(COLUMNS) + "\n1,a.png,bird,0,0,b.jpg\n"):
        (birds / "metadata.csv").write_text(text)
        with pytest.raises(ValueError, match=r"metadata\.csv: damaged"):
            load_birds(birds)


def test_resize_and_centre():
    image = np.zeros((218, 178, 3), np.uint8)
    image[20:198] = np.arange(178)[:, None, None]
    middle = images.centre(image, 178, 178)
    np.testing.assert_array_equal(middle[:, 0, 0], np.arange(178))
    small = images.resize(middle, 89, 2)
    assert small.shape == (89, 2, 3)
    assert abs(small[40, 0, 0] - 80.5) < 1  # rows 80 and 81


ATTRIBUTES = {"Blond_Hair": 1, "Young": 2, "Male": 4}  # each is a bit of the row's number


@pytest.fixture
def made_celeb_a(tmp_path, monkeypatch):
    """TFDS's own builder with made rows: 8, 16 and 8 images of one grey, 5 * number."""
    builder = tfds.builder_cls("celeb_a")

    features: Any = builder(data_dir=tmp_path).info.features

    def generate(first, last):
        for number in range(first, last):
            file = io.BytesIO()
            PIL.new("RGB", (178, 218), (5 * number,) * 3).save(file, "jpeg")
            yield (
                f"{number:06}.jpg",
                {
                    "image": io.BytesIO(file.getvalue()),
                    "landmarks": dict.fromkeys(features["landmarks"], 0),
                    "attributes": {name: bool(number & ATTRIBUTES.get(name, 0)) for name in features["attributes"]},
                    "identity": {"Identity_No": number},
                },
            )

    def made(self, dl_manager):
        return {"train": generate(0, 8), "validation": generate(8, 24), "test": generate(24, 32)}

    monkeypatch.setattr(builder, "_split_generators", made)
    return tmp_path


def test_celeba(made_celeb_a):
    load = {"size": 5, "normalise": False, "data_dir": made_celeb_a}
    blond = celeba.load_celeba_blond(0, counts=None, **load)
    age = celeba.load_celeba_age(0, sex_counts={"train": (4, 4), "val": (8, 8), "test": (4, 4)}, **load)
    for data, bit in ((blond, 1), (age, 2)):
        splits.check_data(data, 2, 4)
        assert [len(split.y) for split in data] == [8, 8, 8, 8]
        assert sorted(np.concatenate([split.id for split in data])) == list(range(32))
        for split in data:
            assert (split.x.shape[1:], split.x.dtype) == ((5, 5, 3), np.uint8)
            number = np.round(split.x[:, 2, 2, 0] / 5).astype(int)  # JPEG may be off by one
            np.testing.assert_array_equal(split.y, (number & bit) > 0)
            np.testing.assert_array_equal(split.group, 2 * split.y + ((number & 4) > 0))
    assert [sorted(np.round(s.x[:, 0, 0, 0] / 5)) for s in (blond.train, blond.test)] == [[*range(8)], [*range(24, 32)]]


def test_celeba_asserts_the_published_counts(made_celeb_a):
    with pytest.raises(ValueError, match=r"train\.group: found counts \[2, 2, 2, 2\], expected the published \[71629"):
        celeba.load_celeba_blond(size=5, data_dir=made_celeb_a)
    with pytest.raises(
        ValueError, match=r"train\.male: found counts \[4, 4\], expected the published \[94509, 68261\]"
    ):
        celeba.load_celeba_age(size=5, data_dir=made_celeb_a)
    assert [sum(counts) for counts in celeba.BLOND_COUNTS.values()] == [162_770, 19_867, 19_962]


def test_blond_pairs(made_celeb_a):
    load = {"size": 5, "normalise": False, "data_dir": made_celeb_a}
    sets = celeba.load_blond_pairs(num_reference=3, counts=None, **load)
    assert [len(part.y) for part in sets] == [3, 1, 2]
    # Blond is bit 1 and male bit 4 of the numbers 8..23 in validation, 24..31 in test, in TFDS's own order.
    numbers = lambda x: np.round(x[:, 2, 2, 0] / 5).astype(int).tolist()
    for side, val, test in (("x", [9, 11, 17, 19], [25, 27]), ("flipped", [13, 15, 21, 23], [29, 31])):
        reference, selection, report = (numbers(getattr(part, side)) for part in sets)
        assert sorted(reference + selection) == val
        assert sorted(report) == test
    assert all((part.y == 1).all() for part in sets)
    for many in (0, 4):
        with pytest.raises(ValueError, match=rf"num_reference: found {many}, expected 1\.\.3 of 4 pairs"):
            celeba.load_blond_pairs(num_reference=many, counts=None, **load)
    with pytest.raises(ValueError, match=r"val\.group: found counts \[4, 4, 4, 4\], expected the published \[8535"):
        celeba.load_blond_pairs(**load)


def test_celeba_says_where_to_get_it(tmp_path, monkeypatch):
    def broken(self, dl_manager):
        raise RuntimeError("no network")

    monkeypatch.setattr(tfds.builder_cls("celeb_a"), "_split_generators", broken)
    with pytest.raises(ValueError, match=r"data_dir: found no celeb_a in .*no network.*Prepare it elsewhere"):
        celeba.load_celeba_blond(data_dir=tmp_path)


@pytest.fixture(params=["txt", "csv"])
def celeba_folder(request, tmp_path):
    """32 images of one grey, 5 * number, in the published folder (txt), or as Kaggle packs it (csv)."""
    names = [f"{number:06}.png" for number in range(32)]
    nested = "img_align_celeba/" * (1 + (request.param == "csv"))
    (tmp_path / nested).mkdir(parents=True)
    for number, name in enumerate(names):
        PIL.new("RGB", (178, 218), (5 * number,) * 3).save(tmp_path / nested / name)
    attributes = [[name, *(1 if i & bit else -1 for bit in ATTRIBUTES.values())] for i, name in enumerate(names)]
    partition = [[name, code] for name, code in zip(names, SPLITS, strict=True)]
    header = ["image_id", *ATTRIBUTES]
    if request.param == "txt":
        write_list(tmp_path / "list_attr_celeba.txt", [[32], list(ATTRIBUTES), *attributes], "  ")
        write_list(tmp_path / "list_eval_partition.txt", partition, " ")
    else:
        write_list(tmp_path / "list_attr_celeba.csv", [header, *attributes], ",")
        write_list(tmp_path / "list_eval_partition.csv", [["image_id", "partition"], *partition], ",")
    return tmp_path, request.param, tmp_path / nested


def write_list(path, rows, blank):
    path.write_text("".join(blank.join(map(str, row)) + "\n" for row in rows))


def test_celeba_from_its_folder(celeba_folder):
    source, _, folder = celeba_folder
    load = {"size": 5, "normalise": False, "source_dir": source, "data_dir": source / "tfds"}
    blond = celeba.load_celeba_blond(0, counts=None, **load)
    age = celeba.load_celeba_age(0, sex_counts={"train": (4, 4), "val": (8, 8), "test": (4, 4)}, **load)
    for data, bit in ((blond, 1), (age, 2)):
        assert [len(split.y) for split in data] == [8, 8, 8, 8]
        assert sorted(np.concatenate([data.target.id, data.selection.id]).tolist()) == list(range(8, 24))
        assert (data.train.id.tolist(), data.test.id.tolist()) == ([*range(8)], [*range(24, 32)])
        for split in data:
            assert (split.x == 5 * split.id[:, None, None, None].astype(np.uint8)).all()
            np.testing.assert_array_equal(split.y, (split.id & bit) > 0)
            np.testing.assert_array_equal(split.group, 2 * split.y + ((split.id & 4) > 0))
    assert celeba.load_blond_pairs(num_reference=3, counts=None, **load).report.x.shape == (2, 5, 5, 3)
    (folder / "000003.png").unlink()
    (folder / "000007.png").unlink()
    with pytest.raises(ValueError, match=r"000003\.png: missing, one of 2 of 32 images that are"):
        celeba.load_celeba_blond(0, counts=None, **{**load, "size": 6})


def test_damaged_lists_of_celeba_are_named(celeba_folder):
    source, kind, _ = celeba_folder
    path = source / f"list_eval_partition.{kind}"
    text = path.read_text()
    load = lambda: celeba.load_celeba_blond(size=5, source_dir=source, data_dir=source, counts=None)
    for damaged in (text.replace("000004.png", "4.png"), text.replace(" 2", " two").replace(",2", ",two"), ""):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"the lists are damaged \(.*expected those of CelebA"):
            load()
    path.unlink()
    with pytest.raises(ValueError, match=r"found neither list_eval_partition\.txt nor list_eval_partition\.csv in"):
        load()


SENTENCES = ("He came.", "She said: No!", "It is another nobody-knows.")  # the last has no word of NEGATIONS


@pytest.fixture
def nli(tmp_path):
    """48 labelled rows and one without a label (row 3) over the three files; 16 rows are of each split."""
    texts = []
    for row in range(49):
        label = "-" if row == 3 else multinli.LABELS[row % 3]
        texts.append(
            {"gold_label": label, "sentence1": f"Row {row}.", "sentence2": SENTENCES[row // 3 % 3], "genre": "x"}
        )
    for name, part in zip(multinli._FILES, (texts[:20], texts[20:30], texts[30:]), strict=True):
        (tmp_path / name).write_text("".join(json.dumps(text) + "\n" for text in texts if text in part))
    rows = [i for i in range(49) if i != 3]
    write_metadata(tmp_path, [[i, i % 3, int(i // 3 % 3 == 1), k % 3] for k, i in enumerate(rows)])
    return tmp_path


def write_metadata(source, rows):
    with open(source / "metadata_random.csv", "w", newline="") as file:
        csv.writer(file).writerows([["", "gold_label", "sentence2_has_negation", "split"], *rows])


def test_multinli(nli):
    data = multinli.load_multinli(
        0, source_dir=nli, encode=lambda a, b: {"a": np.array(a), "b": np.array(b)}, counts=None
    )
    assert sorted(np.concatenate([split.id for split in data])) == [i for i in range(49) if i != 3]
    assert [len(split.y) for split in data] == [16, 8, 8, 16]
    for split in data:
        assert split.x["a"].tolist() == [f"Row {i}." for i in split.id]
        assert split.x["b"].tolist() == [SENTENCES[i // 3 % 3] for i in split.id]
        np.testing.assert_array_equal(split.y, split.id % 3)
        np.testing.assert_array_equal(split.group, 2 * split.y + (split.id // 3 % 3 == 1))
    with pytest.raises(ValueError, match=r"train\.group: found counts .*expected the published \[57498, 11158"):
        multinli.load_multinli(source_dir=nli)
    assert sum(map(sum, multinli.COUNTS.values())) == 392_702 + 9_815 + 9_832


def test_multinli_refuses_metadata_of_other_text(nli):
    with open(nli / "metadata_random.csv", newline="") as file:
        _, *rows = csv.reader(file)
    for column in (1, 2):
        changed = [list(row) for row in rows]
        changed[5][column] = str(1 - int(changed[5][column]) % 2)  # row 6: contradiction, no negation
        write_metadata(nli, changed)
        with pytest.raises(ValueError, match="label or negation differs from the text's, first in row 6"):
            multinli.load_multinli(source_dir=nli, counts=None)
    write_metadata(nli, [["100", "0", "0", "0"]])
    with pytest.raises(ValueError, match="found 49 rows of text"):
        multinli.load_multinli(source_dir=nli, counts=None)
    for name in (multinli._FILES[1], "metadata_random.csv"):
        (nli / name).write_text("{bad\n1\n")
        with pytest.raises(ValueError, match=rf"{name}: missing or damaged"):
            multinli.load_multinli(source_dir=nli, counts=None)


def test_hashed_words():
    codes = multinli.hash_words(["One, two one", "Two"], ["", "one two three four"], length=3, vocabulary=1000)
    assert (codes.shape, codes.dtype) == ((2, 2, 3), np.int32)
    one, two = codes[0, 0, :2]
    assert codes[0, 0].tolist() == [one, two, one]
    assert codes[1, 0].tolist() == [two, 0, 0]
    assert codes[1, 1, :2].tolist() == [one, two]  # the fourth word is cut
    assert ((codes >= 0) & (codes <= 1000)).all()
