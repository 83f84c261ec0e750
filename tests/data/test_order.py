"""Which images are seen when."""

import itertools
import time

import jax
import numpy as np
import pytest

from kernsym_jax import data


@pytest.fixture
def images():
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    return data.ImageSet(pixels, np.arange(10, dtype=np.int32) % 3, ("a", "b", "c"))


@pytest.fixture
def batches(one_device):
    def make(images, seed=0, size=3, index=0, count=1):
        return data.DeviceBatches(images, size, one_device(seed, index, count))

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


def test_an_epoch_sees_each_image_at_most_once_and_full_batches_only(batches, images):
    epoch = seen(batches(images).start(0), 3)
    flat = list(itertools.chain(*epoch))
    assert [len(batch) for batch in epoch] == [3, 3, 3]
    assert len(set(flat)) == 9


def test_a_stream_started_later_goes_on_as_the_first_would_have(batches, images):
    whole = seen(batches(images).start(0), 8)
    for step in range(8):
        assert seen(batches(images).start(step), 8 - step) == whole[step:]


def test_labels_stay_with_their_images(batches, images):
    batch = next(batches(images).start(4))
    assert (np.asarray(batch["image"]).ravel() % 3).tolist() == np.asarray(batch["label"]).tolist()


def test_evaluation_sees_every_image_once_and_fills_the_last_batch_with_weight_zero(images):
    parts = list(data.evaluation_batches(images, 4, jax.device_put))
    assert [part["image"].shape[0] for part in parts] == [4, 4, 4]
    weights = np.concatenate([part["weight"] for part in parts])
    pixels = np.concatenate([np.asarray(part["image"]).ravel() for part in parts])
    assert weights.tolist() == [1] * 10 + [0] * 2
    assert pixels[weights > 0].tolist() == list(range(10))


def test_processes_share_every_batch_in_training_and_evaluation(batches, images):
    whole = seen(batches(images, size=4).start(0), 5)
    parts = [seen(batches(images, size=4, index=index, count=2).start(0), 5) for index in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    whole = list(data.evaluation_batches(images, 4, jax.device_put))
    parts = [
        list(data.evaluation_batches(images, 4, jax.device_put, process_index=i, process_count=2))
        for i in (0, 1)
    ]
    for one, other, both in zip(*parts, whole, strict=True):
        for name in both:
            np.testing.assert_array_equal(np.concatenate([one[name], other[name]]), both[name])


def test_several_seeds_give_each_member_the_order_of_its_seed(batches, images):
    together = itertools.islice(batches(images, (5, 2)).start(2), 4)
    alone = [itertools.islice(batches(images, seed).start(2), 4) for seed in (5, 2)]
    for both, *each in zip(together, *alone, strict=True):
        assert both["image"].shape == (2, 3, 1, 1, 1)
        for member, batch in enumerate(each):
            np.testing.assert_array_equal(both["image"][member], batch["image"])
            np.testing.assert_array_equal(both["label"][member], batch["label"])


def test_the_time_that_callers_wait_is_counted_and_no_other(batches, images):
    stream = batches(images)
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


def test_a_batch_that_processes_cannot_share_is_refused(batches, images):
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared by 2 processes"):
        batches(images, count=2)


def test_a_batch_larger_than_the_set_is_refused(batches, images):
    with pytest.raises(ValueError, match="batches of 11 from a training set of 10"):
        batches(images, size=11)
