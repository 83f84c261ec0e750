import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kernsym_jax import geometry

NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


IMAGE, KERNEL = array(2, 10, 12, 3), array(3, 3, 3, 3)


def conv(x, kernel, stride=1, padding=((1, 1), (1, 1)), **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC, **options
    )


def only(rows):
    (row,) = rows
    return row


PAD = ((0, 0), (1, 2), (3, 1), (0, 0))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("constant", "zero"),
        ("reflect", "reflect"),
        ("symmetric", "symmetric"),
        ("edge", "replicate"),
        ("wrap", "circular"),
        ("mean", "other"),
        ("linear_ramp", "mixed"),  # a ramp down to zero over one pixel is zero
        ("maximum", "other"),
        ("median", "other"),
        ("minimum", "other"),
    ],
)
def test_a_pad_in_front_is_the_layers_padding(mode, name):
    def padded(x, w):
        x = jax.nn.relu(jnp.pad(x, PAD, mode=mode) * 2 + 1)
        return conv(x, w, 2, "VALID")

    row = only(geometry.audit(padded, IMAGE, KERNEL))
    assert (row.input_size, row.padding) == ((10, 12), ((1, 2), (3, 1)))
    assert (row.padding_mode, row.reads) == (name, (-1,))


@pytest.mark.parametrize(
    ("mode", "size"),
    [(mode, n) for mode in ("symmetric", "edge", "wrap") for n in (1, 2, 3)]
    + [("reflect", 2), ("reflect", 3)],
)
def test_padding_of_maps_hardly_larger_than_itself(mode, size):
    def padded(x, w):
        return conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode), w, 1, "VALID")

    row = only(geometry.audit(padded, array(1, size, size, 3), KERNEL))
    assert (row.input_size, row.padding) == ((size, size), ((1, 1), (1, 1)))


def test_padding_in_front_and_padding_of_its_own_add_up():
    def both(x, w):
        return conv(jnp.pad(x, PAD, mode="reflect"), w, 1, ((1, 0), (1, 0)))

    row = only(geometry.audit(both, IMAGE, KERNEL))
    assert (row.padding, row.padding_mode) == (((2, 2), (4, 1)), "mixed")


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: jnp.zeros((2, 12, 12, 3)).at[:, 1:11].set(x),
        lambda x: lax.dynamic_update_slice(jnp.zeros((2, 12, 12, 3)), x, (0, 1, 0, 0)),
        lambda x: jnp.concatenate([jnp.zeros((2, 1, 12, 3)), x, jnp.zeros((2, 1, 12, 3))], axis=1),
        lambda x: lax.pad(x, 0.0, ((0, 0, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0))),
        lambda x: jnp.pad(
            jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0))), ((0, 0), (0, 1), (0, 0), (0, 0))
        ),
        lambda x: jnp.pad(x, ((0, 0), (2, 3), (0, 0), (0, 0)))[:, 1:13],
    ],
)
def test_zeros_laid_around_a_map_in_any_way_are_padding(pad):
    row = only(geometry.audit(lambda x, w: conv(pad(x), w, 1, "VALID"), IMAGE, KERNEL))
    assert (row.input_size, row.padding) == ((10, 12), ((1, 1), (0, 0)))
    assert row.padding_mode == "zero"


@pytest.mark.parametrize(
    ("places", "name"),
    [
        ([1, *range(10), 8], "reflect"),
        ([0, *range(10), 9], "replicate"),
        ([9, *range(10), 0], "circular"),
        ([1, 0, *range(10), 9, 8], "symmetric"),
    ],
)
@pytest.mark.parametrize(
    "take",
    [
        lambda x, places: jnp.take(x, places, axis=1),
        lambda x, places: x[:, places],
        lambda x, places: jnp.take(x, jnp.clip(places, 0, 9), axis=1, mode="clip"),
    ],
)
def test_an_index_array_that_repeats_the_border_is_padding(take, places, name):
    def indexed(x, w):
        return conv(take(x, np.array(places)), w, 1, "VALID")

    row = only(geometry.audit(indexed, IMAGE, KERNEL))
    amount = (len(places) - 10) // 2
    assert (row.input_size, row.padding) == ((10, 12), ((amount, amount), (0, 0)))
    assert row.padding_mode == name


@pytest.mark.parametrize(
    "move",
    [
        lambda x: jnp.roll(x, 3, axis=1),
        lambda x: x[:, ::-1],
        lambda x: jnp.flip(jnp.roll(x, 2, (1, 2)), 2),
        lambda x: x + jnp.roll(x, 1, axis=1),
        lambda x: jnp.cumsum(x, axis=1),
        lambda x: lax.sort(x, dimension=1),
    ],
)
def test_moving_pixels_about_is_no_padding(move):
    row = only(geometry.audit(lambda x, w: conv(move(x), w), IMAGE, KERNEL))
    assert (row.input_size, row.padding, row.reads) == ((10, 12), ((1, 1), (1, 1)), (-1,))


def test_a_narrow_crop_is_negative_padding_and_drops_pixels():
    row = only(geometry.audit(lambda x, w: conv(x[:, 1:, :-2], w, 2, "VALID"), IMAGE, KERNEL))
    assert (row.input_size, row.padding) == ((10, 12), ((-1, 0), (0, -2)))
    assert (row.dropped, row.uneven) == ((1, 3), (0, 1))


def test_a_wide_crop_is_another_map():
    row = only(geometry.audit(lambda x, w: conv(x[:, 4:, 2:9], w), IMAGE, KERNEL))
    assert (row.input_size[0], row.padding, row.reads) == (6, ((1, 1), (1, 1)), None)


def test_enlarged_maps_have_their_own_size():
    def enlarged(x, w):
        by_repeat = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        by_resize = jax.image.resize(x, (2, 20, 24, 3), "bilinear")
        return conv(by_repeat, w), conv(by_resize, w)

    for row in geometry.audit(enlarged, IMAGE, KERNEL):
        assert (row.input_size, row.reads) == ((20, 24), None)
        assert row.padding == ((1, 1), (1, 1))
