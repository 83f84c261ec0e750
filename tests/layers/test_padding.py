import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import layers

NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def test_the_modes_are_the_eight_of_the_contract():
    assert set(layers.PADDINGS) == {
        *("zero", "same", "reflect", "replicate"),
        *("symmetric", "circular", "partial", "valid"),
    }


@pytest.mark.parametrize("padding", [p for p in layers.PADDINGS if p not in ("same", "valid")])
@pytest.mark.parametrize(("kernel", "dilation", "wanted"), [(1, 1, 0), (2, 1, 0), (3, 2, 2)])
def test_the_default_amount_is_half_the_reach_on_both_sides(padding, kernel, dilation, wanted):
    amounts = layers.layer_padding(
        (9, 9), (kernel, 3), (2, 2), padding, dilation=(dilation, dilation)
    )
    assert amounts == ((wanted, wanted), (dilation, dilation))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "wanted"),
    [(224, 7, 2, (2, 3)), (225, 7, 2, (3, 3)), (32, 3, 1, (1, 1)), (32, 1, 2, (0, 0))],
)
def test_same_follows_tensorflows_rule(size, kernel, stride, wanted):
    amounts = layers.layer_padding((size,) * 2, (kernel,) * 2, (stride,) * 2, "same")
    assert amounts == (wanted, wanted)


@pytest.mark.parametrize("padding", layers.PADDINGS)
def test_an_explicit_zero_means_no_padding_under_every_mode(padding):
    amounts = layers.layer_padding((8, 8), (3, 3), (2, 2), padding, pad=(0, 0))
    assert amounts == ((0, 0), (0, 0))


@pytest.mark.parametrize("padding", NUMPY_MODES)
def test_maps_are_extended_as_numpy_does(padding):
    x = np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
    padded = layers.pad_map(jnp.asarray(x), ((2, 3), (1, 0)), padding)
    wanted = np.pad(x, ((0, 0), (2, 3), (1, 0), (0, 0)), mode=NUMPY_MODES[padding])
    np.testing.assert_array_equal(padded, wanted)


def test_negative_amounts_crop_and_circular_rows_come_from_the_whole_map():
    x = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    padded = layers.pad_map(jnp.asarray(x), ((-2, 1), (0, 0)), "circular")
    np.testing.assert_array_equal(padded.ravel(), [2, 3, 4, 0])
