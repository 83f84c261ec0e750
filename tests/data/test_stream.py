"""Streamed batches: those that a set on the device would give, ahead of time, from any step on."""

import itertools
import threading

import numpy as np
import pytest

from kernsym_jax import data
from kernsym_jax.data.picture import BrokenImage, View
from kernsym_jax.data.reader import Reader
from kernsym_jax.data.sources import find
from kernsym_jax.data.stream import StreamBatches, stream_evaluation

CROPS = View(crop_size=6, crop_scale=(0.2, 0.9), eval_crop=0.5)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 8, 8, 1), np.uint8)
    return data.ImageSet(pixels, np.arange(10, dtype=np.int32) % 3, ("a", "b", "c"))


@pytest.fixture
def streamed(one_device):
    def make(reader, seed=0, size=3, index=0, count=1, workers=0):
        return StreamBatches(reader, size, one_device(seed, index, count), workers=workers)

    return make


def taken(batches, step, count):
    stream = batches.start(step)
    found = [
        {name: np.asarray(array) for name, array in batch.items()}
        for batch in itertools.islice(stream, count)
    ]
    stream.close()
    return found


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("seed", [4, (4, 9)])
def test_a_stream_gives_the_batches_of_a_set_on_the_device(streamed, one_device, images, seed):
    kept = data.DeviceBatches(images, 3, one_device(seed))
    stream = streamed(Reader(images, View()), seed)
    assert stream.steps_per_epoch == kept.steps_per_epoch == 3
    same(taken(stream, 0, 8), taken(kept, 0, 8))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stream_started_later_goes_on_as_the_first_would_have_windows_included(
    streamed, images, step
):
    reader = Reader(images, CROPS)
    whole = taken(streamed(reader), 0, 7)
    assert whole[0]["image"].shape == (3, 6, 6, 1)
    same(taken(streamed(reader), step, 7 - step), whole[step:])


def test_windows_are_other_ones_in_each_epoch_and_for_each_seed(streamed, images):
    reader = Reader(images, CROPS)
    first = {}
    for seed in (0, 1):
        for batch in taken(streamed(reader, seed, 10), 0, 2):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                first.setdefault(image.tobytes(), label)
    assert len(first) == 40


def test_a_population_sees_what_its_members_would_see_alone(streamed, images):
    reader = Reader(images, CROPS)
    together = taken(streamed(reader, (3, 8)), 2, 3)
    for member, seed in enumerate((3, 8)):
        alone = taken(streamed(reader, seed), 2, 3)
        same([{k: v[member] for k, v in batch.items()} for batch in together], alone)


def test_processes_share_every_batch(streamed, images):
    reader = Reader(images, CROPS)
    whole = taken(streamed(reader, size=4), 0, 4)
    parts = [taken(streamed(reader, size=4, index=index, count=2), 0, 4) for index in (0, 1)]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*parts, strict=True)
    ]
    same(joined, whole)


def test_further_processes_read_the_same(streamed, images):
    reader = Reader(images, CROPS)
    same(taken(streamed(reader, workers=1), 2, 3), taken(streamed(reader), 2, 3))


def test_evaluation_sees_every_image_once_in_the_middle_and_fills_up_with_weight_zero(
    one_device, images
):
    reader = Reader(images, View(crop_size=4, eval_crop=0.5))
    for count in (1, 2):
        parts = [
            list(stream_evaluation(reader, 4, one_device(0, index, count)))
            for index in range(count)
        ]
        assert [len(part) for part in parts] == [3] * count
        batches = [batch for step in zip(*parts, strict=True) for batch in step]
        weight, label, image = (
            np.concatenate([np.asarray(batch[name]) for batch in batches])
            for name in ("weight", "label", "image")
        )
        assert weight.tolist() == [1] * 10 + [0] * 2
        np.testing.assert_array_equal(label[:10], images.labels)
        np.testing.assert_array_equal(image[:10], images.images[:, 2:6, 2:6])


def test_a_stream_tells_how_long_it_was_waited_for_and_ends_with_its_threads(streamed, images):
    before = threading.active_count()
    batches = streamed(Reader(images, View()))
    assert batches.waited == 0
    stream = batches.start(0)
    next(stream)
    assert batches.waited > 0
    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(5)
    assert threading.active_count() <= before


@pytest.fixture
def broken_folder(image_folder):
    (image_folder / "train" / "cat" / "1.png").write_bytes(b"no image")
    (image_folder / "val" / "dog" / "0.png").write_bytes(b"")
    return f"folder:{image_folder}"


def test_a_broken_image_ends_the_run_by_name_or_gives_its_place_to_the_next(
    streamed, one_device, broken_folder, caplog
):
    train, test = (find(broken_folder, split) for split in ("train", "test"))
    with pytest.raises(BrokenImage, match=r"cat/1\.png: not a readable image"):
        taken(streamed(Reader(train, View()), size=8), 0, 1)
    with pytest.raises(BrokenImage, match=r"dog/0\.png: not a readable image"):
        list(stream_evaluation(Reader(test, View()), 2, one_device()))
    (batch,) = taken(streamed(Reader(train, View(), "skip"), size=8), 0, 1)
    readable = data.load(broken_folder, "train", on_broken="skip").images
    seen = [next(i for i, one in enumerate(readable) if (one == x).all()) for x in batch["image"]]
    # Of the 7 that are left, the one after the broken one is seen twice.
    assert sorted(seen) == [0, 1, 1, 2, 3, 4, 5, 6]
    weights = [
        np.asarray(batch["weight"]).tolist()
        for batch in stream_evaluation(Reader(test, View(), "skip"), 2, one_device())
    ]
    assert weights == [[1, 1], [0, 1]]
    assert "skipped" in caplog.text


def test_labels_follow_a_given_order_from_arrays_and_files(images, image_folder):
    order = np.array([3, 0, 1, 2, 4, 5, 6, 7, 8, 9], np.int32)
    labels = [Reader(images, View(), label_order=order).read(index)[1] for index in range(4)]
    assert labels == images.labels[order[:4]].tolist()
    order = np.arange(8, dtype=np.int32)[::-1]
    reader = Reader(find(f"folder:{image_folder}", "train"), View(), label_order=order)
    assert [reader.read(index)[1] for index in range(8)] == [1] * 4 + [0] * 4


def test_impossible_batches_are_refused(streamed, images):
    with pytest.raises(ValueError, match="batches of 11 from a training set of 10"):
        streamed(Reader(images, View()), size=11)
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared by 2 processes"):
        streamed(Reader(images, View()), count=2)
