"""Noise: bytes and labels that are independent of everything."""

import numpy as np
import pytest

from kernsym_jax import data


def test_bytes_and_labels_are_uniform_and_independent():
    noise = data.load("noise:size=16,channels=3,classes=4,n=2000,test=500", "train")
    assert noise.images.shape == (2000, 16, 16, 3)
    counts = np.bincount(noise.images.ravel(), minlength=256)
    expected = noise.images.size / 256
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert np.abs(np.bincount(noise.labels) - 500).max() < 5 * np.sqrt(500)
    flat = noise.images.reshape(2000, -1).astype(float)
    for other in (np.roll(flat, 1, axis=1), np.roll(flat, 1, axis=0)):
        assert abs(np.corrcoef(flat.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(flat.size)
    means = np.array([flat[noise.labels == label].mean() for label in range(4)])
    assert np.abs(means - 127.5).max() < 5 * 74 / np.sqrt(flat.size / 4)


def test_splits_and_seeds_draw_apart_and_repeat_themselves():
    source = "noise:size=5,channels=1,classes=3,n=7,test=7"
    train, test, other = (
        data.load(source, split, seed=seed)
        for split, seed in (("train", 0), ("test", 0), ("train", 1))
    )
    assert (train.images != test.images).mean() > 0.9
    assert (train.images != other.images).mean() > 0.9
    np.testing.assert_array_equal(data.load(source, "train").images, train.images)
    # Pinned, so that an experiment can be repeated years later.
    assert train.images[0, 0, :, 0].tolist() == [185, 232, 99, 255, 208]
    assert train.labels.tolist() == [0, 1, 1, 1, 1, 0, 1]


def test_fake_images_have_the_size_and_classes_of_imagenet_unless_told_otherwise():
    fake = data.load("fake:n=3", "train")
    assert fake.images.shape == (3, 224, 224, 3)
    assert len(fake.classes) == 1000
    small = data.load("fake:size=8,channels=1,classes=2,test=6", "test")
    assert small.images.shape == (6, 8, 8, 1)
    assert len(small.classes) == 2


@pytest.mark.parametrize("source", ["noise:seize=4", "fake:n=-1", "noise:n=1.5", "fake:big"])
def test_unknown_settings_are_refused(source):
    with pytest.raises(ValueError, match=r"the source (noise|fake)"):
        data.load(source, "train")
