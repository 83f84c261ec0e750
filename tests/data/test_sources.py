"""Every source gives real images with their labels, or says in one line why it cannot."""

import gzip
import os
import pathlib
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from kernsym_jax import data


def write_idx(path, array, magic=None):
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    content = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(content)


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count, suffix in (("train", 12, ".gz"), ("t10k", 5, "")):
        images = rng.integers(0, 256, (count, 6, 4), np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return tmp_path


def test_digits_are_split_by_class_and_never_overlap():
    train, test = (data.load("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (8, 8, 1)
    assert np.bincount(test.labels).tolist() == [36] * 10
    assert train.images.max() == 255
    assert train.classes == tuple("0123456789")
    again = data.load("digits", "test")
    np.testing.assert_array_equal(test.images, again.images)
    every = np.concatenate([train.images, test.images]).reshape(1797, 64)
    from sklearn.datasets import load_digits

    scans = load_digits().data
    assert sorted(map(tuple, np.round(scans * 255 / 16).astype(int))) == sorted(
        map(tuple, every.astype(int))
    )


def test_idx_files_are_read_plain_and_gzipped(idx_folder):
    train = data.load(f"idx:{idx_folder}", "train")
    test = data.load(f"idx:{idx_folder}", "test")
    assert train.images.shape == (12, 6, 4, 1)
    assert test.images.shape == (5, 6, 4, 1)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(train.images[..., 0], rng.integers(0, 256, (12, 6, 4), np.uint8))
    assert train.labels.tolist() == [0, 1, 2] * 4
    assert train.classes == ("0", "1", "2")


def test_fashion_mnist_as_debian_packages_it_is_read_where_it_is_installed():
    places = [
        place
        for place in pathlib.Path("/usr/share").glob("dataset*/fashion-mnist*")
        if list(place.glob("train-images-idx3-ubyte*"))
    ]
    if not places:
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    test = data.load(f"idx:{places[0]}", "test")
    assert test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "no t10k-labels-idx1-ubyte"),
        (
            lambda f: write_idx(f / "t10k-labels-idx1-ubyte", np.array([0, 1, 7, 1, 0], np.uint8)),
            "label 7 is out of range: 3 classes",
        ),
        (
            lambda f: write_idx(f / "t10k-labels-idx1-ubyte", np.array([0, 1], np.uint8)),
            "5 images but labels",
        ),
        (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"GIF89a"), "not an IDX file"),
        (
            lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(
                (f / "t10k-images-idx3-ubyte").read_bytes()[:-3]
            ),
            "declares 120 bytes",
        ),
        (
            lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(
                bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31)
            ),
            "damaged|declares",
        ),
        (
            lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(
                (f / "train-labels-idx1-ubyte.gz").read_bytes()[:-9]
            ),
            "damaged",
        ),
    ],
)
def test_damaged_idx_files_are_refused_by_name(idx_folder, damage, says):
    damage(idx_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        data.load(f"idx:{idx_folder}", "test")
    assert str(idx_folder) in str(caught.value)


def test_folders_are_read_in_the_order_of_their_names(image_folder):
    train = data.load(f"folder:{image_folder}", "train")
    test = data.load(f"folder:{image_folder}", "test")
    assert train.images.shape == (8, 5, 7, 3)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.classes == test.classes == ("cat", "dog")
    expected = np.asarray(Image.open(image_folder / "val" / "dog" / "1.png"))
    np.testing.assert_array_equal(test.images[3], expected)


def test_grey_images_have_one_channel_unless_others_have_colour(image_folder):
    for file in (image_folder / "train").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert data.load(f"folder:{image_folder}", "train").images.shape == (8, 5, 7, 1)
    Image.new("RGB", (7, 5), (9, 8, 7)).save(image_folder / "train" / "cat" / "0.png")
    mixed = data.load(f"folder:{image_folder}", "train")
    assert mixed.images.shape == (8, 5, 7, 3)
    assert mixed.images[0, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: (f / "train" / "cat" / "2.png").write_bytes(b"no image"),
            "2.png: not a readable",
        ),
        (
            lambda f: os.mkfifo(f / "train" / "cat" / "pipe.png"),
            "pipe.png: not a readable file",
        ),
        (
            lambda f: (f / "train" / "cat" / "gone.png").symlink_to("nowhere"),
            "gone.png: not a readable file",
        ),
        (
            lambda f: (f / "train" / "dog" / "notes.txt").write_text("no image"),
            "notes.txt: not a readable",
        ),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "train" / "dog" / "3.png"), "9×9 pixels"),
        (lambda f: (f / "val" / "cow").mkdir(), "differ in the classes cow"),
        (lambda f: [file.unlink() for file in (f / "val").rglob("*.png")], "no images"),
        (lambda f: (f / "val").rename(f / "other"), "no folder test or val"),
    ],
)
def test_damaged_image_folders_are_refused_by_name(image_folder, damage, says):
    damage(image_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        [data.load(f"folder:{image_folder}", split) for split in ("train", "test")]


def test_a_folder_of_class_folders_alone_is_a_test_split(image_folder):
    alone = data.load(f"folder:{image_folder / 'val'}", "test")
    np.testing.assert_array_equal(alone.images, data.load(f"folder:{image_folder}", "test").images)
    with pytest.raises(FileNotFoundError, match="no folder train"):
        data.load(f"folder:{image_folder / 'val'}", "train")


def test_images_below_further_folders_and_of_any_suffix_belong_to_their_class(image_folder):
    cat = image_folder / "train" / "cat"
    (cat / "indoors").mkdir()
    (cat / "2.png").rename(cat / "indoors" / "2.JPEG")
    (cat / ".hidden").write_bytes(b"of a file manager")
    images = data.load(f"folder:{image_folder}", "train")
    assert images.labels.tolist() == [0] * 4 + [1] * 4


def test_broken_images_are_skipped_with_their_names_on_request(image_folder, caplog):
    whole = data.load(f"folder:{image_folder}", "train")
    (image_folder / "train" / "cat" / "2.png").write_bytes(b"no image")
    (image_folder / "train" / "dog" / "0.png").write_bytes(b"")
    kept = data.load(f"folder:{image_folder}", "train", on_broken="skip")
    np.testing.assert_array_equal(kept.images, whole.images[[0, 1, 3, 5, 6, 7]])
    assert kept.labels.tolist() == [0] * 3 + [1] * 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert "skipped 2 of 8 files" in line
    assert "cat/2.png" in line
    assert "dog/0.png" in line
    for file in (image_folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image"):
        data.load(f"folder:{image_folder}", "train", on_broken="skip")
    with pytest.raises(ValueError, match="on_broken: one of fail, skip, got 'warn'"):
        data.load("digits", "train", on_broken="warn")


def test_any_source_is_scaled_as_it_is_read():
    images = data.load("digits", "test")
    scaled = data.load("digits", "test", image_size=16)
    assert scaled.images.shape == (360, 16, 16, 1)
    np.testing.assert_array_equal(scaled.labels, images.labels)
    np.testing.assert_allclose(
        scaled.images.mean((1, 2, 3)), images.images.mean((1, 2, 3)), rtol=0.1
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("cifar", "unknown data source 'cifar'; known are digits"),
        ("digits:x", "takes no place"),
        ("folder:/nowhere", "no such folder"),
        ("folder:/dev/null", "no such folder"),
        ("idx:/nowhere", "no train-images"),
    ],
)
def test_unknown_sources_are_refused(source, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        data.load(source, "train")


def test_channel_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    images[..., 2] = 51
    mean, deviation = data.channel_statistics(images)
    np.testing.assert_allclose(mean[:2], (images / 255).mean((0, 1, 2))[:2], atol=1e-6)
    np.testing.assert_allclose(deviation[:2], (images / 255).std((0, 1, 2))[:2], atol=1e-6)
    assert mean[2] == pytest.approx(0.2)
    assert deviation[2] == 1


@pytest.mark.parametrize("kind", ["folder", "masks", "idx"])
@pytest.mark.parametrize("name", ["images:with:colon", "gs:", "a//b", "file://c"])
def test_places_with_colons_and_double_slashes_are_local_paths(
    image_folder, idx_folder, tmp_path_factory, monkeypatch, kind, name
):
    parent = tmp_path_factory.mktemp("parent")
    place = parent / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "masks":
        for split in ("train", "val"):
            (image_folder / split / "dog").rename(image_folder / split / "images")
            (image_folder / split / "cat").rename(image_folder / split / "masks")
            for mask in (image_folder / split / "masks").iterdir():
                Image.new("L", (7, 5), 1).save(mask)
    shutil.copytree(image_folder, place)
    monkeypatch.chdir(parent)
    wanted = data.load(f"{kind}:{image_folder}", "test")
    for written in (name, f"{parent}/{name}", f"//{parent}//{name}"):
        found = data.load(f"{kind}:{written}", "test")
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.labels, wanted.labels)


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ((2**31, 2**31, 2**31), 100),
        ((2**10, 2**10, 2**10), 2**29),
        ((2**10, 2**9, 2**10), 2**29),
    ],
)
def test_an_idx_file_that_grows_without_end_is_refused_with_bounded_memory(
    idx_folder, bounded, shape, content
):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape))
        for _ in range(content // 2**20):
            file.write(bytes(2**20))
    with bounded(2**30), pytest.raises(ValueError, match=r"ubyte\.gz: declares \d+ bytes of shape"):
        data.load(f"idx:{idx_folder}", "train")


def test_a_link_that_leads_to_itself_is_a_broken_image(image_folder, caplog):
    loop = image_folder / "train" / "cat" / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(ValueError, match=r"loop\.png: not a readable file"):
        data.load(f"folder:{image_folder}", "train")
    assert len(data.load(f"folder:{image_folder}", "train", on_broken="skip")) == 8
    assert "loop.png" in caplog.text
