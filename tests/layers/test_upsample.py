"""The way back up puts pixels where the way down took them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import layers
from kernsym_jax.layers import Downsample, polyphase

STATIC = ("size", "stride", "first", "padding")


@functools.partial(jax.jit, static_argnames=STATIC)
def upsample(x, size, stride=2, phases=None, first=0.0, padding="zero"):
    return layers.upsample(x, size, stride=stride, phases=phases, first=first, padding=padding)


def random_map(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def one_hot(*chosen, of=4):
    return jax.nn.one_hot(jnp.array(chosen), of)


def test_pixels_lie_at_their_phase_with_averages_between_them():
    x = jnp.array([2.0, 4.0, 8.0]).reshape(1, 3, 1, 1)
    up = upsample(x, (6, 2), phases=one_hot(0))
    np.testing.assert_array_equal(up[0, :, 0, 0], [2, 3, 4, 6, 8, 8])
    up = upsample(x, (6, 2), phases=one_hot(2))
    np.testing.assert_array_equal(up[0, :, 0, 0], [2, 2, 3, 4, 6, 8])
    up = upsample(x, (6, 2), phases=one_hot(2), padding="circular")
    np.testing.assert_array_equal(up[0, :, 0, 0], [5, 2, 3, 4, 6, 8])
    up = upsample(x, (6, 2), phases=one_hot(0), first=0.5)
    np.testing.assert_array_equal(up[0, :, 0, 0], [2, 2.5, 3.5, 5, 7, 8])


def test_without_phases_the_map_lies_in_the_middle():
    x = jnp.array([2.0, 4.0, 8.0]).reshape(1, 3, 1, 1)
    for size, wanted in {
        5: [2, 3, 4, 6, 8],
        6: [2, 2.5, 3.5, 5, 7, 8],
        7: [2, 2, 3, 4, 6, 8, 8],
    }.items():
        up = upsample(x, (size, 1))
        np.testing.assert_array_equal(up[0, :, 0, 0], wanted)


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("size", [(5, 8), (6, 7), (9, 10)])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_flipped_map_gives_a_flipped_result(padding, size, stride):
    x = random_map(2, 3, 4, 2)
    up = upsample(x, size, stride=stride, padding=padding)
    assert up.shape == (2, *size, 2)
    flipped = upsample(x[:, ::-1, ::-1], size, stride=stride, padding=padding)
    np.testing.assert_allclose(flipped, up[:, ::-1, ::-1], atol=1e-6)
    turned = upsample(x.swapaxes(1, 2), size[::-1], stride=stride, padding=padding)
    np.testing.assert_allclose(turned, up.swapaxes(1, 2), atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_every_component_comes_back_to_its_own_pixels(size):
    x = random_map(4, *size, 3)
    phases = one_hot(0, 1, 2, 3)
    kept, _ = Downsample("aps").apply({}, x, phases=phases)
    up = upsample(kept, size, phases=phases)
    assert up.shape == x.shape
    for sample, (row, column) in enumerate(itertools.product((0, 1), (0, 1))):
        where = np.s_[sample, row::2, column::2]
        np.testing.assert_array_equal(up[where], x[where])


def test_a_mixture_of_components_comes_back_as_the_mixture_of_each():
    x, shares = random_map(1, 6, 6, 2), jnp.array([[0.1, 0.2, 0.3, 0.4]])
    each = [upsample(x, (6, 6), phases=one_hot(phase)) for phase in range(4)]
    wanted = sum(share * up for share, up in zip(shares[0], each, strict=True))
    np.testing.assert_allclose(upsample(x, (6, 6), phases=shares), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["aps", "lps"])
@pytest.mark.parametrize("first", [0.0, 0.5])
def test_down_and_up_again_commute_with_every_circular_shift(method, first):
    x = random_map(1, 6, 4, 2)
    shifts = list(itertools.product(range(6), range(4)))
    rolled = jnp.concatenate([jnp.roll(x, shift, (1, 2)) for shift in shifts])
    down = Downsample(method)
    kept, phases = down.apply(down.init(jax.random.key(1), x), rolled)
    assert len(set(np.asarray(phases).argmax(1))) == 4
    up = upsample(kept, (6, 4), phases=phases, first=first, padding="circular")
    back = [np.roll(one, (-dy, -dx), (0, 1)) for one, (dy, dx) in zip(up, shifts, strict=True)]
    np.testing.assert_allclose(back, [back[0]] * len(back), atol=1e-6)


def test_the_type_of_the_map_is_kept_and_an_empty_one_refused():
    x = polyphase(random_map(1, 4, 4, 1).astype(jnp.bfloat16), 2)[0]
    for phases in (None, one_hot(3)):
        assert upsample(x, (4, 4), phases=phases).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"^up1: the input map is empty \(0x4\)"):
        layers.upsample(jnp.zeros((1, 0, 4, 1)), (4, 4), layer="up1")
