"""Random numbers that stay the same for ever."""

import numpy as np
import pytest

from kernsym_jax.data.random_words import Purpose, permutation, uniforms, words


def test_words_are_pinned_so_that_everything_drawn_can_be_drawn_again():
    assert words(2, Purpose.ORDER, 7, 3).tolist() == [8893702929424106994, 13357943582879616415]
    assert words(2, Purpose.CROP, 7, 3).tolist() == [3845544696532098304, 9931676275916508706]


def test_streams_of_other_purposes_seeds_and_indices_share_nothing():
    streams = [
        words(50, purpose, seed, index)
        for purpose in Purpose
        for seed in (0, 1, 2**32 - 1)
        for index in (0, 1)
    ]
    assert len(set(np.concatenate(streams).tolist())) == 50 * len(streams)


def test_uniforms_are_spread_evenly_below_one():
    drawn = uniforms((100, 100), Purpose.NOISE, 0, 0)
    assert drawn.shape == (100, 100)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 10, (0, 1))
    assert np.abs(counts - 1000).max() < 150


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_permutation_holds_each_number_once(size):
    order = permutation(size, Purpose.LABELS, 3, 0)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(size))
