import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import evaluation, symmetry
from kernsym_jax.evaluation import Shifts
from kernsym_jax.evaluation.transforms import draw_pair, roll_matters

OFFSETS = list(itertools.product((-2, 0, 1), (-1, 0, 3)))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(3, 5, 6, 2)).astype(np.float32)


def moved(images, offset, mode, view=None):
    return np.asarray(
        evaluation.shift(jnp.asarray(images), jnp.asarray(offset, jnp.int32), mode, view)
    )


def zero_filled(image, dy, dx):
    """What a shift is, pixel by pixel."""
    result = np.zeros_like(image)
    for row, column in np.ndindex(image.shape[:2]):
        if 0 <= row + dy < image.shape[0] and 0 <= column + dx < image.shape[1]:
            result[row + dy, column + dx] = image[row, column]
    return result


@pytest.mark.parametrize("offset", OFFSETS)
def test_circular_shifts_roll_down_and_to_the_right(images, offset):
    np.testing.assert_array_equal(
        moved(images, offset, "circular"), np.roll(images, offset, (1, 2))
    )


@pytest.mark.parametrize("offset", OFFSETS)
def test_zero_shifts_fill_with_zeros(images, offset):
    expected = np.stack([zero_filled(image, *offset) for image in images])
    np.testing.assert_array_equal(moved(images, offset, "zero"), expected)


@pytest.mark.parametrize("offset", [(0, 0), (1, -1), (-1, 2)])
def test_crops_show_the_content_moved_in_the_same_direction(images, offset):
    seen = moved(images, offset, "crop", (3, 2))
    np.testing.assert_array_equal(seen, np.roll(images, offset, (1, 2))[:, 1:4, 2:4])


@pytest.mark.parametrize("mode", ["circular", "zero", "crop"])
def test_every_image_can_have_an_offset_of_its_own(images, mode):
    view = (3, 2) if mode == "crop" else None
    offsets = np.array([[1, 0], [-1, 2], [0, -2]], np.int32)
    together = moved(images, offsets, mode, view)
    for image, offset, result in zip(images, offsets, together, strict=True):
        np.testing.assert_array_equal(moved(image[None], offset, mode, view)[0], result)


@pytest.mark.parametrize("per", ["image", "batch"])
def test_drawn_offsets_fill_the_range_and_depend_on_the_seed_alone(per):
    def offsets(seed, draws=200):
        shifts = Shifts("circular", -3, 2, draws=draws, per=per, seed=seed)
        pairs = [
            np.asarray(draw_pair(shifts, np.int32(draw), np.int32(0), 4)) for draw in range(draws)
        ]
        return np.stack(pairs)

    found = offsets(0)
    assert found.shape[1:] == ((2, 4, 2) if per == "image" else (2, 2))
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2]
    assert counts.min() > 0.7 * counts.mean()
    np.testing.assert_array_equal(found, offsets(0))
    assert not np.array_equal(found, offsets(1))


def test_an_images_own_offsets_do_not_depend_on_the_batch_it_is_in():
    shifts = Shifts("circular", -3, 3, draws=1, seed=5)
    whole = np.asarray(draw_pair(shifts, np.int32(0), np.int32(0), 8))
    second_half = np.asarray(draw_pair(shifts, np.int32(0), np.int32(4), 4))
    np.testing.assert_array_equal(whole[:, 4:], second_half)


def test_the_windows_of_zhangs_protocol_start_at_0_to_31():
    shifts = Shifts("crop", -15, 16, draws=5, per="batch", window=224)
    assert shifts.view_size(256, 256) == (224, 224)
    starts = [(256 - 224) // 2 - offset for offset in range(shifts.low, shifts.high + 1)]
    assert sorted(starts) == list(range(32))
    with pytest.raises(ValueError, match="windows of 224 do not fit in 255×255"):
        shifts.view_size(255, 255)


def test_the_grid_and_the_differences_of_pairs():
    assert len(Shifts("zero", -3, 3).grid) == 49
    assert Shifts("zero", -3, 2).differences == range(-3, 3)
    assert Shifts("zero", -3, 2, draws=1).differences == range(-5, 6)
    assert Shifts("crop", -2, 2).view_size(10, 7) == (6, 3)


@pytest.mark.parametrize(
    ("text", "low", "high"), [("3", -3, 3), ("-3,2", -3, 2), ("0,4", 0, 4), ("-2,-1", -2, -1)]
)
def test_shifts_from_a_command_line(text, low, high):
    shifts = evaluation.parse_shifts(text, "crop", window=5)
    assert (shifts.low, shifts.high, shifts.window) == (low, high, 5)


def test_a_shift_of_0_is_none():
    assert evaluation.parse_shifts("0", "zero") is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: evaluation.parse_shifts("-3", "zero"), "got '-3'"),
        (lambda: evaluation.parse_shifts("1,2,3", "zero"), "got '1,2,3'"),
        (lambda: evaluation.parse_shifts("3", "wrap"), "one of circular, zero, crop, got 'wrap'"),
        (lambda: Shifts(low=2, high=1), "from 2 to 1"),
        (lambda: Shifts(draws=-1), "draws: at least 0, got -1"),
        (lambda: Shifts(per="epoch"), "got 'epoch'"),
        (lambda: Shifts(window=3), "mode crop, not circular"),
        (lambda: Shifts(seed=-1), "seed"),
        (lambda: Shifts("zero", -8, 8).view_size(8, 9), "up to 8 pixels leave nothing of 8×9"),
        (lambda: Shifts("crop", -4, 4).view_size(8, 9), "no window fits in 8×9"),
    ],
)
def test_bad_shifts_are_told(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_jitted_shift_of_images_split_over_devices_is_the_same(images):
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    four = np.concatenate([images, images[:1]])
    split = jax.device_put(four, NamedSharding(mesh, PartitionSpec("data")))
    offsets = np.array([[1, 0], [-1, 2], [0, -2], [2, 2]], np.int32)
    for mode in ("circular", "zero"):
        np.testing.assert_array_equal(moved(split, offsets, mode), moved(four, offsets, mode))


@pytest.fixture
def square():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("name", symmetry.D4)
def test_images_flip_as_kernels_do(name, square):
    flipped = np.asarray(evaluation.flip(jnp.asarray(square), name))
    kernels = symmetry.transform(jnp.asarray(square.transpose(0, 3, 1, 2)), name)
    np.testing.assert_array_equal(flipped, np.asarray(kernels).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", symmetry.RECTANGLE)
def test_images_that_are_not_square_flip_too(name):
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    flipped = np.asarray(evaluation.flip(jnp.asarray(image), name))
    expected = symmetry.transform(jnp.asarray(image[0, :, :, 0]), name)
    np.testing.assert_array_equal(flipped[0, :, :, 0], np.asarray(expected))


@pytest.mark.parametrize("name", sorted(set(symmetry.D4) - set(symmetry.RECTANGLE)))
def test_an_element_that_swaps_the_axes_needs_square_images(name):
    image = jnp.zeros((1, 3, 4, 1))
    for function in (evaluation.flip, evaluation.unflip):
        with pytest.raises(ValueError, match=f"{name} needs square images; these have 3×4 pixels"):
            function(image, name)


@pytest.mark.parametrize("name", symmetry.D4)
def test_with_the_roll_pixel_0_stays_and_strided_pixels_stay_strided(name):
    size = 6
    even = np.zeros((1, size, size, 1), np.float32)
    even[:, ::2, ::2] = 1
    even[:, 0, 0] = 2
    rolled = np.asarray(evaluation.flip(jnp.asarray(even), name, rolled=True))
    np.testing.assert_array_equal(rolled, even)


@pytest.mark.parametrize("name", ["fliplr", "flipud", "r90", "r180", "r270", "antitranspose"])
def test_without_the_roll_a_flip_of_even_size_swaps_even_and_odd_pixels(name):
    even = np.zeros((1, 6, 6, 1), np.float32)
    even[:, ::2, ::2] = 1
    assert not np.asarray(evaluation.flip(jnp.asarray(even), name))[:, ::2, ::2].any()
    assert roll_matters(name, 6, 6)
    assert not roll_matters(name, 7, 7)


def test_odd_sizes_have_no_roll():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 1)), jnp.float32)
    for name in symmetry.D4:
        np.testing.assert_array_equal(
            np.asarray(evaluation.flip(image, name, rolled=True)),
            np.asarray(evaluation.flip(image, name)),
        )
