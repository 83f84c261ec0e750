"""What a run gets from `data.open_dataset`, kept on the device or streamed."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from kernsym_jax import data


def epoch(dataset, first=0):
    stream = dataset.train.start(first)
    batches = list(itertools.islice(stream, dataset.train.steps_per_epoch))
    stream.close()
    return tuple(np.concatenate([np.asarray(b[name]) for b in batches]) for name in batches[0])


def evaluated(dataset):
    batches = list(dataset.evaluation())
    kept = np.concatenate([np.asarray(batch["weight"]) for batch in batches]) > 0
    return tuple(
        np.concatenate([np.asarray(batch[name]) for batch in batches])[kept]
        for name in ("image", "label")
    )


@pytest.fixture
def source(image_folder):
    return f"folder:{image_folder}"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_sees_the_images_of_the_source_with_their_labels(opened, source, streaming):
    dataset = opened(source=source, streaming=streaming)
    train, test = (data.load(source, split) for split in ("train", "test"))
    assert dataset.classes == ("cat", "dog")
    assert dataset.image_shape == (5, 7, 3)
    assert (dataset.train_size, dataset.test_size) == (8, 4)
    assert dataset.train.steps_per_epoch == 2
    assert (dataset.mean, dataset.std) == data.channel_statistics(train.images)
    images, labels = epoch(dataset)
    order = data.epoch_order(0, 0, 8)
    np.testing.assert_array_equal(images, train.images[order])
    np.testing.assert_array_equal(labels, train.labels[order])
    images, labels = evaluated(dataset)
    np.testing.assert_array_equal(images, test.images)
    np.testing.assert_array_equal(labels, test.labels)
    first = dataset.take_static(10)
    np.testing.assert_array_equal(first["image"], train.images[np.arange(10) % 8])
    np.testing.assert_array_equal(first["label"], train.labels[np.arange(10) % 8])


def test_a_limit_keeps_training_images_evenly_spread_over_the_set(opened, source):
    dataset = opened(source=source, limit=4)
    train = data.load(source, "train")
    assert (dataset.train_size, dataset.test_size) == (4, 4)
    images, labels = epoch(dataset)
    order = np.array([0, 2, 5, 7])[data.epoch_order(0, 0, 4)]
    np.testing.assert_array_equal(images, train.images[order])
    np.testing.assert_array_equal(labels, train.labels[order])
    assert opened(source=source, limit=100).train_size == 8
    with pytest.raises(ValueError, match="limit needs a set that is decoded before the run"):
        opened(source=source, limit=4, streaming=True)


def test_a_set_of_more_bytes_than_the_device_takes_is_streamed(opened, source):
    whole = 8 * 5 * 7 * 3
    assert isinstance(opened(source=source, device_bytes=whole).train, data.DeviceBatches)
    assert not isinstance(opened(source=source, device_bytes=whole - 1).train, data.DeviceBatches)
    assert isinstance(opened(source="digits", device_bytes=1437 * 64).train, data.DeviceBatches)
    assert not isinstance(
        opened(source="digits", device_bytes=1437 * 64 - 1).train, data.DeviceBatches
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_whole_set_is_rotated_both_splits(opened, source, streaming, degrees):
    plain = opened(source=source, streaming=streaming)
    turned = opened(source=source, streaming=streaming, rotate=degrees)
    for part in (epoch, evaluated):
        expected, labels = part(plain)
        found, same_labels = part(turned)
        np.testing.assert_array_equal(found, np.rot90(expected, degrees // 90, (1, 2)))
        np.testing.assert_array_equal(same_labels, labels)
    assert turned.image_shape == epoch(turned)[0].shape[1:]
    assert turned.mean == plain.mean


@pytest.fixture
def many_images(tmp_path):
    """2×2 grey images: 27 of each of ten classes to train on, 1 to test on."""
    for split, count in (("train", 27), ("test", 1)):
        for label in range(10):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (2, 2), 9 * index + label).save(folder / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_random_labels_are_the_training_labels_shuffled_by_the_data_seed(
    opened, many_images, streaming
):
    def labelled(random, seed):
        return opened(
            source=f"folder:{many_images}",
            streaming=streaming,
            random_labels=random,
            batch_size=90,
            data_seed=seed,
        )

    plain, one, again, other = (
        labelled(*setting) for setting in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    (images, labels), tested = epoch(plain), evaluated(plain)[1]
    assert len(labels) == 270
    drawn = []
    for shuffled in (one, again, other):
        same_images, found = epoch(shuffled)
        np.testing.assert_array_equal(same_images, images)
        np.testing.assert_array_equal(np.bincount(found), np.bincount(labels))
        np.testing.assert_array_equal(evaluated(shuffled)[1], tested)
        drawn.append(found)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    for left, right in ((labels, drawn[0]), (labels, drawn[2]), (drawn[0], drawn[2])):
        assert np.mean(left == right) < 0.25


@pytest.mark.parametrize("streaming", [False, True])
def test_crops_set_the_size_of_what_a_network_gets(opened, streaming):
    crop = {"crop_size": 6, "eval_crop": 0.75, "source": "digits", "streaming": streaming}
    dataset = opened(**crop)
    test = data.load("digits", "test")
    assert dataset.image_shape == (6, 6, 1)
    np.testing.assert_array_equal(evaluated(dataset)[0], test.images[:, 1:7, 1:7])
    train = data.load("digits", "train")
    np.testing.assert_array_equal(dataset.take_static(3)["image"], train.images[:3, 1:7, 1:7])
    batch = next(dataset.train.start(0))["image"]
    varied = data.augment(batch, jax.random.key(0), dataset.augment)
    assert varied.shape == (4, 6, 6, 1)
    # Whoever streams gets windows that are cut already, and does not cut them again.
    assert batch.shape[1:] == ((6, 6, 1) if streaming else (8, 8, 1))
    assert dataset.augment.crop_size == (0 if streaming else 6)


def test_several_seeds_give_batches_with_a_leading_axis(opened):
    dataset = opened(seed=(0, 5), source="digits")
    alone = [opened(seed=seed, source="digits") for seed in (0, 5)]
    together = next(dataset.train.start(3))
    assert together["image"].shape == (2, 4, 8, 8, 1)
    for member, one in enumerate(alone):
        batch = next(one.train.start(3))
        for name in batch:
            np.testing.assert_array_equal(together[name][member], batch[name])


@pytest.fixture
def uneven_source(image_folder):
    """Images of different sizes, large enough to be cropped."""
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        pixels = rng.integers(0, 256, (12 + number, 20 - number, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return f"folder:{image_folder}"


def test_images_of_different_sizes_are_refused_with_what_helps(opened, uneven_source):
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"config\.data\.image_size"):
            opened(source=uneven_source, streaming=streaming)


def test_images_of_different_sizes_are_scaled_as_they_are_read_or_cropped_as_they_are_streamed(
    opened, uneven_source
):
    kept = opened(source=uneven_source, image_size=8)
    streamed = opened(source=uneven_source, image_size=8, streaming=True)
    assert kept.image_shape == streamed.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(epoch(kept)[0], epoch(streamed)[0])
    cropped = opened(source=uneven_source, crop_size=10, streaming=True)
    assert cropped.image_shape == (10, 10, 3)
    images, _ = epoch(cropped)
    assert images.shape == (8, 10, 10, 3)
    assert len({image.tobytes() for image in images}) == 8
    np.testing.assert_array_equal(epoch(cropped)[0], images)
    assert (epoch(cropped, 2)[0] != images).any()


def test_grey_images_of_one_split_become_colour_images_if_the_other_has_colour(
    opened, image_folder
):
    for file in (image_folder / "val").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    for streaming in (False, True):
        images, _ = evaluated(opened(source=f"folder:{image_folder}", streaming=streaming))
        assert images.shape == (4, 5, 7, 3)
        assert (images == images[..., :1]).all()


def test_broken_images_are_fatal_or_skipped_by_config(opened, image_folder, caplog):
    (image_folder / "train" / "dog" / "notes.txt").write_text("no image")
    source = f"folder:{image_folder}"
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"dog/notes\.txt: not a readable image"):
            epoch(opened(source=source, streaming=streaming, batch_size=9))
    assert opened(source=source, on_broken="skip").train_size == 8
    assert "skipped 1 of 9 files" in caplog.text
    assert "dog/notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"mean": (0.5, 0.5)}, "config.data.mean: 2 numbers for 1 channels"),
        ({"std": (0.0,)}, "config.data.std must be above 0"),
        ({"on_broken": "ignore"}, "on_broken: one of fail, skip, got 'ignore'"),
        ({"rotate": 45}, "rotate: one of"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale: two numbers above 0"),
        ({"data_seed": -1}, "config.data.seed must lie in 0"),
        ({"batch_size": 2000}, "a set of 1437 training images fills no batch of 2000"),
        ({"source": "textures:group=d5"}, "group is one of none, fliplr"),
    ],
)
def test_impossible_settings_are_refused(opened, keys, says):
    with pytest.raises(ValueError, match=says):
        opened(**{"source": "digits", **keys})


def test_splits_of_different_sizes_are_refused(opened, image_folder):
    for file in (image_folder / "val").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(ValueError, match=r"training images of shape .5, 7, 3.*test images of"):
        opened(source=f"folder:{image_folder}")
    with pytest.raises(ValueError, match=r"val/cat/0\.png: 9×9 pixels, where others have 7×5"):
        opened(source=f"folder:{image_folder}", streaming=True)
