"""Images with masks, from folders and archives to batches."""

import itertools
import tarfile

import numpy as np
import pytest
from PIL import Image

from kernsym_jax import data
from kernsym_jax.data import reading
from kernsym_jax.data.decode import View, look_at
from kernsym_jax.data.sources import find

COUNTS = {"train": 6, "val": 3}
CODING = data.MaskCoding(void=(7,))


def picture(split, index):
    """6×8 pixels; the values of the mask are 0, 1, 2 and 7, those of the image tell them."""
    rng = np.random.default_rng([sorted(COUNTS).index(split), index])
    mask = rng.choice(np.array([0, 1, 2, 7], np.uint8), (6, 8))
    return np.stack([30 * mask, np.full_like(mask, index), mask + 100], -1), mask


@pytest.fixture
def folder(tmp_path):
    for split, count in COUNTS.items():
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index in range(count):
            image, mask = picture(split, index)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{index}.png")
    return tmp_path


def labels_of(mask):
    return np.where(mask == 7, data.VOID, mask)


def loaded(folder, split="train", **keys):
    return data.load(f"masks:{folder}", split, **{"coding": CODING, **keys})


@pytest.fixture
def masked(opened, folder):
    """Opens the folder of images with masks."""

    def open_with(**keys):
        keys = {"source": f"masks:{folder}", "void": (7,), "batch_size": 3, **keys}
        return opened(eval_batch_size=2, **keys)

    return open_with


def epoch(dataset):
    stream = dataset.train.start(0)
    batches = list(itertools.islice(stream, dataset.train.steps_per_epoch))
    stream.close()
    return tuple(np.concatenate([np.asarray(b[name]) for b in batches]) for name in batches[0])


def fits(images, masks):
    """Whether every pixel of the images is what `picture` gives it for its label."""
    values = np.where(masks == data.VOID, 7, masks)
    return (images[..., 2] == values + 100).all()


def test_every_image_comes_with_the_mask_of_its_name(folder):
    for split, count in (("train", 6), ("test", 3)):
        found = loaded(folder, split)
        assert found.masks
        assert found.classes == ("0", "1", "2")
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.uint8)
        source = "val" if split == "test" else split
        for index in range(count):
            image, mask = picture(source, index)
            np.testing.assert_array_equal(found.images[index], image)
            np.testing.assert_array_equal(found.labels[index], labels_of(mask))


def test_the_test_split_is_preferred_to_the_validation_split(folder):
    (folder / "val").rename(folder / "test")
    for kind in ("images", "masks"):
        (folder / "val" / kind).mkdir(parents=True)
        Image.new("L", (8, 6)).save(folder / "val" / kind / "other.png")
    assert len(loaded(folder, "test")) == 3


def test_a_place_of_images_and_masks_alone_is_a_test_split(folder):
    alone = loaded(folder / "val", "test")
    np.testing.assert_array_equal(alone.labels, loaded(folder, "test").labels)
    with pytest.raises(FileNotFoundError, match="no folder train in it"):
        loaded(folder / "val", "train")


def test_splits_and_their_folders_may_be_links(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "train").symlink_to(folder / "train")
    (linked / "val").mkdir()
    for kind in ("images", "masks"):
        (linked / "val" / kind).symlink_to(folder / "val" / kind)
    # One that leads back up is passed over.
    (folder / "val" / "masks" / "up").symlink_to(folder)
    for split in ("train", "test"):
        np.testing.assert_array_equal(loaded(linked, split).labels, loaded(folder, split).labels)
    identity = find(f"masks:{linked}", "train", coding=CODING).identity
    before = identity()
    Image.new("L", (8, 6), 1).save(folder / "train" / "masks" / "5.png")
    assert identity() != before


@pytest.mark.parametrize(("name", "mode"), [("set.tar", "w"), ("set.tar.gz", "w:gz")])
def test_an_archive_is_read_as_its_folder_is(folder, tmp_path_factory, name, mode):
    (folder / "train" / "masks" / ".DS_Store").write_bytes(b"of a file manager")
    path = tmp_path_factory.mktemp("packed") / name
    with tarfile.open(path, mode) as archive:
        for split in COUNTS:
            archive.add(folder / split, f"./street/{split}")
    for split in ("train", "test"):
        packed, plain = (loaded(place, split) for place in (path, folder))
        np.testing.assert_array_equal(packed.images, plain.images)
        np.testing.assert_array_equal(packed.labels, plain.labels)


def test_names_without_suffix_are_equal_also_below_further_folders(folder):
    for kind, suffix in (("images", "jpg"), ("masks", "bmp")):
        (folder / "val" / kind / "town").mkdir()
        place = folder / "val" / kind / "town" / f"a.left.{suffix}"
        Image.new("L", (8, 6), 1).save(place)
    found = loaded(folder, "test")
    assert len(found) == 4
    assert (found.labels[3] == 1).all()


@pytest.mark.parametrize(
    ("coding", "classes", "wanted"),
    [
        (data.MaskCoding(values=(2, 0, 1), void=(7,)), ("2", "0", "1"), [1, 2, 0, 255]),
        (data.MaskCoding(values=(7, 2), void=(0, 1)), ("7", "2"), [255, 255, 1, 0]),
        (data.MaskCoding(void=(0,)), tuple("1234567"), [255, 0, 1, 6]),
        (data.MaskCoding(), tuple("01234567"), [0, 1, 2, 7]),
        (data.MaskCoding((7,), classes=("a", "b", "h")), ("a", "b", "h"), [0, 1, 2, 255]),
        (data.MaskCoding((0,), (2, 1, 7), ("b", "a", "h")), ("b", "a", "h"), [255, 1, 0, 2]),
    ],
)
def test_values_classes_and_what_does_not_count_are_as_the_coding_says(
    folder, coding, classes, wanted
):
    found = loaded(folder, coding=coding)
    assert found.classes == classes
    _, mask = picture("train", 4)
    labels = np.zeros(8, np.uint8)
    labels[[0, 1, 2, 7]] = wanted
    np.testing.assert_array_equal(found.labels[4], labels[mask])


@pytest.mark.parametrize("mode", ["P", "I;16", "I", "1"])
def test_masks_are_indices_of_palettes_and_whole_numbers_of_any_width(folder, mode):
    values = np.arange(48).reshape(6, 8) % 2
    kind, factor = {"P": (np.uint8, 2), "1": (bool, 1), "I;16": (np.uint16, 1000)}.get(
        mode, (np.int32, 30_000)
    )
    mask = Image.fromarray((values * factor).astype(kind))
    if mode == "P":
        # Every index has the same colour, which does not matter.
        mask.putpalette([9, 9, 9] * 3)
    assert mask.mode == mode
    (folder / "val" / "masks" / "1.png").unlink()
    mask.save(folder / "val" / "masks" / "1.tif")
    others = tuple(value for value in (1, 2, 1000, 30_000) if value != factor)
    coding = data.MaskCoding((7,), (factor, 0, *others))
    np.testing.assert_array_equal(loaded(folder, "test", coding=coding).labels[1], 1 - values)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_gets_masks_in_training_and_evaluation(masked, folder, streaming):
    dataset = masked(streaming=streaming)
    assert dataset.masks
    assert dataset.classes == ("0", "1", "2")
    assert (dataset.image_shape, dataset.train_size, dataset.test_size) == ((6, 8, 3), 6, 3)
    train, order = loaded(folder), data.epoch_order(0, 0, 6)
    images, masks = epoch(dataset)
    np.testing.assert_array_equal(images, train.images[order])
    np.testing.assert_array_equal(masks, train.labels[order])
    assert masks.dtype == np.uint8
    batches = list(dataset.evaluation())
    assert [np.asarray(batch["weight"]).tolist() for batch in batches] == [[1, 1], [1, 0]]
    labels = np.concatenate([np.asarray(batch["label"]) for batch in batches])[:3]
    np.testing.assert_array_equal(labels, loaded(folder, "test").labels)
    for static, wanted in (
        (dataset.take_static(2)["label"], train.labels[:2]),
        (dataset.take_test(3)["label"], labels),
    ):
        np.testing.assert_array_equal(static, wanted)
        assert static.dtype == np.uint8


def test_class_labels_are_no_masks(opened):
    assert not opened().masks


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_turns_images_and_masks_alike(masked, folder, streaming, degrees):
    images, masks = epoch(masked(streaming=streaming, rotate=degrees))
    plain_images, plain_masks = epoch(masked())
    np.testing.assert_array_equal(images, np.rot90(plain_images, degrees // 90, (1, 2)))
    np.testing.assert_array_equal(masks, np.rot90(plain_masks, degrees // 90, (1, 2)))


@pytest.mark.parametrize("streaming", [False, True])
def test_whole_images_are_scaled_to_a_height_and_width_and_masks_by_nearest_neighbour(
    masked, folder, streaming
):
    images, masks = epoch(masked(streaming=streaming, scale_to=(12, 24)))
    plain_images, plain_masks = epoch(masked())
    assert images.shape == (6, 12, 24, 3)
    np.testing.assert_array_equal(masks, plain_masks.repeat(2, 1).repeat(3, 2))
    for image, plain in zip(images, plain_images, strict=True):
        np.testing.assert_array_equal(image, look_at(plain, View(scale_to=(12, 24))))
    assert masked(streaming=streaming, scale_to=(4, 6), rotate=90).image_shape == (6, 4, 3)
    turned = epoch(masked(streaming=streaming, scale_to=(12, 24), rotate=90))
    np.testing.assert_array_equal(turned[1], np.rot90(masks, 1, (1, 2)))


def test_the_central_square_is_that_of_the_image(folder):
    found = loaded(folder, image_size=6)
    plain = loaded(folder)
    np.testing.assert_array_equal(found.labels, plain.labels[:, :, 1:7])
    np.testing.assert_array_equal(found.images, plain.images[:, :, 1:7])
    assert loaded(folder, image_size=3).labels.shape == (6, 3, 3)


def test_windows_are_cut_alike_out_of_images_and_masks_while_they_are_streamed(masked, folder):
    for index in range(6):
        # A gradient shows where a window lies.
        ramp = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
        Image.fromarray(ramp).save(folder / "train" / "images" / f"{index}.png")
        Image.fromarray(ramp // 20).save(folder / "train" / "masks" / f"{index}.png")
    for file in (folder / "val").rglob("*.png"):
        Image.new("L", (80, 60)).save(file)
    keys = {"crop_size": 12, "crop_scale": (0.1, 0.5), "streaming": True, "void": (9,)}
    images, masks = epoch(masked(mask_values=tuple(range(7)), **keys))
    assert images.shape == (6, 12, 12, 1)
    assert masks.shape == (6, 12, 12)
    assert len({mask.tobytes() for mask in masks}) == 6
    assert np.abs(images[..., 0] / 20 - masks - 0.5).max() < 0.75


def test_splits_share_one_size_and_a_broken_pair_is_skipped_or_fatal_by_name(
    masked, folder, caplog
):
    (folder / "train" / "masks" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/masks/2\.png: not a readable image"):
        loaded(folder)
    found = loaded(folder, on_broken="skip")
    assert found.images[:, 0, 0, 1].tolist() == [0, 1, 3, 4, 5]
    assert "train/masks/2.png" in caplog.text
    assert fits(found.images, found.labels)
    streamed = masked(streaming=True, on_broken="skip", batch_size=6)
    images, masks = epoch(streamed)
    assert fits(images, masks)
    assert 2 not in images[:, 0, 0, 1]


def test_what_is_decoded_once_is_found_again_unless_the_coding_is_another(folder, own_cache):
    def decoded(coding):
        encoded = find(f"masks:{folder}", "train", coding=coding)
        return reading.decode_cached(encoded, View(), "fail", worth_seconds=0.0).images

    first, again = decoded(CODING), decoded(CODING)
    assert isinstance(again.labels, np.memmap)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.classes == first.classes
    assert decoded(data.MaskCoding()).classes == tuple("01234567")
    assert len(list(own_cache.iterdir())) == 2
    Image.new("L", (8, 6), 1).save(folder / "train" / "masks" / "5.png")
    assert (decoded(CODING).labels[5] == 1).all()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: (f / "train/masks/3.png").unlink(),
            r"train/images/3\.png: no mask of that name for this image$",
        ),
        (
            lambda f: [(f / "train/images" / f"{i}.png").unlink() for i in (1, 3, 4)],
            r"train/masks/1\.png: no image of that name for this mask, and 2 more like it$",
        ),
        (
            lambda f: Image.new("L", (8, 7)).save(f / "train/masks/3.png"),
            r"train/masks/3\.png: a mask of 8×7 pixels for an image of 8×6 \(.*images/3\.png\)",
        ),
        (
            lambda f: Image.new("L", (8, 6), 5).save(f / "val/masks/1.png"),
            r"val/masks/1\.png: the value 5 at row 0, column 0 is neither of a class \(0, 1, 2\) "
            r"nor void \(7\)",
        ),
        (
            lambda f: Image.new("RGB", (8, 6)).save(f / "train/masks/3.png"),
            r"train/masks/3\.png: a mask is an image of one channel of whole numbers.*mode RGB",
        ),
        (
            lambda f: Image.new("F", (8, 6)).save(f / "train/masks/3.png", "TIFF"),
            r"train/masks/3\.png: a mask is an image of one channel.*mode F",
        ),
        (
            lambda f: Image.new("L", (8, 6)).save(f / "train/images/3.bmp"),
            r"train/images/3\.\w+ and train/images/3\.\w+ have one name",
        ),
        (
            lambda f: [file.unlink() for file in (f / "val").rglob("*.png")],
            "no files in its folder val/images",
        ),
        (lambda f: (f / "val/masks").rename(f / "val/labels"), "no folder val/masks in it"),
        (lambda f: (f / "val").rename(f / "more"), "no folder test or val or validation in it"),
        (
            lambda f: [Image.new("L", (8, 6), 7).save(x) for x in (f / "train/masks").iterdir()],
            "no pixel of the masks counts",
        ),
        (lambda f: Image.new("I;16", (8, 6), 999).save(f / "train/masks/3.png"), "up to 999"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_does_not_fit_is_refused_by_name_in_one_line(masked, folder, streaming, damage, says):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        list(masked(streaming=streaming).evaluation())
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"void": ("7",)}, r"config.data.void: whole numbers 0 to 65535, got \('7',\)"),
        ({"mask_values": (0, -1)}, "config.data.mask_values: whole numbers"),
        ({"mask_values": (0, 7)}, "name a value twice"),
        ({"mask_values": (0, 1), "classes": ("a",)}, "1 names in config.data.classes for 2 values"),
        ({"mask_values": tuple(range(8, 300))}, "at most 255 classes, got 292"),
        ({"classes": (1, 2)}, r"config.data.classes: names, got \(1, 2\)"),
        ({"random_labels": True}, "random_labels shuffles class labels; 'masks:.*' has masks"),
        ({"scale_to": (4,)}, "scale_to: height and width in pixels"),
        ({"scale_to": (4, 6), "image_size": 4}, "scale_to and image_size exclude each other"),
        ({"source": "digits"}, "void, mask_values and classes are for masks; 'digits' has class"),
        ({"source": "masks:/nowhere"}, "/nowhere: no such folder or archive"),
    ],
)
def test_impossible_settings_are_refused(masked, folder, keys, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        masked(**keys)


def test_masks_in_memory_have_the_size_of_their_images_and_labels_of_their_classes():
    images = np.zeros((2, 3, 4, 1), np.uint8)
    labels = np.full((2, 3, 4), data.VOID, np.uint8)
    assert data.ImageSet(images, labels, ("a",)).masks
    with pytest.raises(ValueError, match=r"2 images of \(3, 4\) but labels of shape \(2, 4, 3\)"):
        data.ImageSet(images, labels.swapaxes(1, 2), ("a",))
    with pytest.raises(ValueError, match="label 3 is out of range"):
        data.ImageSet(images, np.where(np.eye(3, 4), 3, labels).astype(np.uint8), ("a", "b"))
    with pytest.raises(ValueError, match="masks must be uint8, got int32"):
        data.ImageSet(images, labels.astype(np.int32), ("a",))


def test_preparing_looks_for_pairs_and_not_at_values(folder):
    data.prepare(f"masks:{folder}")
    (folder / "val" / "masks" / "0.png").unlink()
    with pytest.raises(ValueError, match="no mask of that name"):
        data.prepare(f"masks:{folder}")


def test_camvid_has_eleven_classes_and_void(shared, tmp_path):
    few = tmp_path / "camvid.tar"
    camvid = shared / "data" / "camvid_240x180.tar.gz"
    with tarfile.open(camvid) as whole, tarfile.open(few, "w") as packed:
        for member in whole:
            if member.isdir() or "0001TP_0085" in member.name or "0001TP_00669" in member.name:
                packed.addfile(member, whole.extractfile(member) if member.isreg() else None)
    test = data.load(f"masks:{few}", "test", scale_to=(45, 60), coding=data.MaskCoding((11,)))
    assert test.images.shape[1:] == (45, 60, 3)
    assert test.labels.shape == test.images.shape[:3]
    assert set(np.unique(test.labels)) <= {*range(len(test.classes)), data.VOID}
    # Road, the fourth class, is most of the bottom of the middle of a street scene.
    assert np.mean(test.labels[:, 35:, 25:35] == 3) > 0.6
