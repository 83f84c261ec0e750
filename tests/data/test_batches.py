"""The images of each batch: on the device, and streamed ahead of time from any step on."""

import collections
import itertools
import multiprocessing
import threading
import time

import jax
import numpy as np
import pytest

from kernsym_jax import data
from kernsym_jax.data.batches import StreamBatches, stream_evaluation
from kernsym_jax.data.decode import BrokenImage, View
from kernsym_jax.data.reading import Reader
from kernsym_jax.data.sources import find


@pytest.fixture
def numbered():
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    return data.ImageSet(pixels, np.arange(10, dtype=np.int32) % 3, ("a", "b", "c"))


@pytest.fixture
def batches(one_device):
    def make(numbered, seed=0, size=3, index=0, count=1):
        return data.DeviceBatches(numbered, size, one_device(seed, index, count))

    return make


def seen(stream, steps):
    return [np.asarray(b["image"]).ravel().tolist() for b in itertools.islice(stream, steps)]


def test_every_epoch_is_another_permutation_and_the_same_for_the_same_seed():
    orders = [data.epoch_order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(100))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(data.epoch_order(0, 1, 100), orders[1])


def test_the_order_is_pinned_so_that_a_run_can_be_repeated_years_later():
    assert data.epoch_order(7, 3, 8).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_an_epoch_sees_each_image_at_most_once_and_full_batches_only(batches, numbered):
    epoch = seen(batches(numbered).start(0), 3)
    flat = list(itertools.chain(*epoch))
    assert [len(batch) for batch in epoch] == [3, 3, 3]
    assert len(set(flat)) == 9


def test_a_stream_started_later_goes_on_as_the_first_would_have(batches, numbered):
    whole = seen(batches(numbered).start(0), 8)
    for step in range(8):
        assert seen(batches(numbered).start(step), 8 - step) == whole[step:]


def test_labels_stay_with_their_images(batches, numbered):
    batch = next(batches(numbered).start(4))
    assert (np.asarray(batch["image"]).ravel() % 3).tolist() == np.asarray(batch["label"]).tolist()


def test_evaluation_sees_every_image_once_and_fills_the_last_batch_with_weight_zero(numbered):
    parts = list(data.evaluation_batches(numbered, 4, jax.device_put))
    assert [part["image"].shape[0] for part in parts] == [4, 4, 4]
    weights = np.concatenate([part["weight"] for part in parts])
    pixels = np.concatenate([np.asarray(part["image"]).ravel() for part in parts])
    assert weights.tolist() == [1] * 10 + [0] * 2
    assert pixels[weights > 0].tolist() == list(range(10))


def test_processes_share_every_batch_in_training_and_evaluation(batches, numbered):
    whole = seen(batches(numbered, size=4).start(0), 5)
    parts = [seen(batches(numbered, size=4, index=index, count=2).start(0), 5) for index in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    whole = list(data.evaluation_batches(numbered, 4, jax.device_put))
    parts = [
        list(data.evaluation_batches(numbered, 4, jax.device_put, process_index=i, process_count=2))
        for i in (0, 1)
    ]
    for one, other, both in zip(*parts, whole, strict=True):
        for name in both:
            np.testing.assert_array_equal(np.concatenate([one[name], other[name]]), both[name])


def test_several_seeds_give_each_member_the_order_of_its_seed(batches, numbered):
    together = itertools.islice(batches(numbered, (5, 2)).start(2), 4)
    alone = [itertools.islice(batches(numbered, seed).start(2), 4) for seed in (5, 2)]
    for both, *each in zip(together, *alone, strict=True):
        assert both["image"].shape == (2, 3, 1, 1, 1)
        for member, batch in enumerate(each):
            np.testing.assert_array_equal(both["image"][member], batch["image"])
            np.testing.assert_array_equal(both["label"][member], batch["label"])


def test_the_time_that_callers_wait_is_counted_and_no_other(batches, numbered):
    stream = batches(numbered)
    batch = stream.start(0)
    for _ in range(3):
        next(batch)
    started = time.perf_counter()
    before = stream.waited
    assert before > 0
    while time.perf_counter() - started < 0.05:
        pass
    asked = time.perf_counter()
    next(batch)
    assert before < stream.waited <= before + time.perf_counter() - asked


def test_a_batch_that_processes_cannot_share_is_refused(batches, numbered):
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared by 2 processes"):
        batches(numbered, count=2)


def test_a_batch_larger_than_the_set_is_refused(batches, numbered):
    with pytest.raises(ValueError, match="a set of 10 training images fills no batch of 11"):
        batches(numbered, size=11)


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


def test_a_further_process_that_the_system_ends_is_reported_in_one_line(streamed, images):
    stream = streamed(Reader(images, View()), workers=1).start(0)
    next(stream)
    (reading,) = multiprocessing.active_children()
    reading.kill()
    with pytest.raises(OSError, match=r"one of the 1 processes that read images, .*data\.workers"):
        collections.deque(stream, maxlen=0)


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
    with pytest.raises(ValueError, match="a set of 10 training images fills no batch of 11"):
        streamed(Reader(images, View()), size=11)
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared by 2 processes"):
        streamed(Reader(images, View()), count=2)
