"""From the bytes of image files to pixels, and where random windows lie."""

import concurrent.futures
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kernsym_jax.data import decode
from kernsym_jax.data.decode import BrokenImage, View


def encoded(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_files_without_loss_give_their_pixels(colours, kind):
    np.testing.assert_array_equal(decode.decode(encoded(colours, kind), "x", View()), colours)


def test_grey_files_have_one_channel_unless_three_are_wanted(colours):
    grey = colours[..., 0]
    content = encoded(grey)
    np.testing.assert_array_equal(decode.decode(content, "x", View())[..., 0], grey)
    three = decode.decode(content, "x", View(channels=3))
    np.testing.assert_array_equal(three, np.stack([grey] * 3, -1))
    assert decode.decode(encoded(colours), "x", View(channels=1)).shape == (6, 9, 1)


def test_sixteen_bits_are_scaled_to_eight_and_transparency_is_left_out():
    deep = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    assert decode.decode(encoded(deep), "x", View()).ravel().tolist() == [0, 0, 1, 0x12, 255]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear = encoded(palette, transparency=bytes([0, 128]))
    assert decode.decode(clear, "x", View())[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("degrees", decode.ROTATIONS)
def test_rotation_is_counter_clockwise_as_numpys(colours, degrees):
    expected = np.rot90(colours, degrees // 90)
    view = View(rotate=degrees)
    np.testing.assert_array_equal(decode.decode(encoded(colours), "x", view), expected)
    np.testing.assert_array_equal(decode.look_at(colours, view), expected)


def test_image_size_scales_the_largest_square_in_the_middle(colours):
    doubled = np.repeat(np.repeat(colours, 2, 0), 2, 1)
    half = decode.look_at(doubled[:, 3:15], View(image_size=12))
    np.testing.assert_array_equal(half, doubled[:, 3:15])
    assert decode.look_at(colours, View(image_size=4)).shape == (4, 4, 3)
    flat = np.full((20, 30, 3), 77, np.uint8)
    flat[:, :5] = flat[:, 25:] = 0
    seen = decode.look_at(flat, View(image_size=8))
    # Averaging reaches beyond the square by less than a pixel of the result.
    assert (seen[:, 1:-1] == 77).all()
    assert (seen[:, [0, -1]] > 50).all()


def test_the_middle_crop_is_that_share_of_the_shorter_side():
    image = np.zeros((16, 24, 1), np.uint8)
    image[2:14, 6:18] = 200
    assert (decode.look_at(image, View(crop_size=12, eval_crop=0.75)) == 200).all()
    wider = decode.look_at(image, View(crop_size=16, eval_crop=1.0))
    np.testing.assert_array_equal(wider, image[:, 4:20])


def test_a_view_that_changes_nothing_is_known_to(colours):
    square = View(image_size=6, crop_size=6, eval_crop=1.0)
    assert not decode.changes(View(), 6, 9)
    assert not decode.changes(square, 6, 6)
    assert decode.changes(square, 6, 9)
    assert decode.changes(View(rotate=180), 6, 6)
    assert decode.changes(View(crop_size=6), 6, 6)


def test_a_large_jpeg_file_decoded_at_a_fraction_shows_the_same():
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = np.stack([np.tile(ramp, (400, 1)), np.tile(ramp[:400, None], (1, 512))] * 2, -1)[
        ..., :3
    ]
    small = decode.decode(encoded(image, "JPEG", quality=95), "x", View(image_size=40))
    expected = decode.look_at(image, View(image_size=40))
    assert np.abs(small.astype(int) - expected).max() <= 6


@given(st.data())
def test_damaged_files_are_images_or_broken_but_nothing_else(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    content = bytearray(encoded(image, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        pixels = decode.decode(bytes(content), "holiday.png", View(image_size=8))
    except BrokenImage as error:
        assert "holiday.png: not a readable image" in str(error)  # noqa: PT017
    else:
        assert pixels.shape[:2] == (8, 8)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"]
)
def test_what_is_no_image_is_broken_also_what_other_programs_would_draw(content):
    with pytest.raises(BrokenImage, match=r"^a.png: not a readable image"):
        decode.decode(content, "a.png", View())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rotate": 45}, "rotate: one of .0, 90, 180, 270. degrees, got 45"),
        ({"image_size": -1}, "image_size: pixels, or 0 for none, got -1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale: two numbers above 0"),
        ({"crop_scale": (0.5, 1.5)}, "none above 1"),
        ({"crop_ratio": (2.0, 1.0)}, "the smaller first"),
        ({"eval_crop": 0.0}, "eval_crop: a share above 0 and up to 1"),
    ],
)
def test_impossible_views_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        View(**fields)


def test_only_grey_and_colour_can_be_scaled():
    with pytest.raises(ValueError, match="1 or 3 channels can be scaled, got 2"):
        decode.look_at(np.zeros((4, 4, 2), np.uint8), View(image_size=2))


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(count, height, width, scale=SCALE, ratio=RATIO):
    draws = np.random.default_rng(0).random((count, decode.DRAWS))
    return np.array([decode.random_box(row, height, width, scale, ratio) for row in draws], float)


@given(
    st.integers(2, 600),
    st.integers(2, 600),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)).map(sorted),
    st.integers(0, 2**32 - 1),
)
def test_a_window_lies_in_the_image_and_has_an_allowed_shape(height, width, scale, ratio, seed):
    draws = np.random.default_rng(seed).random(decode.DRAWS)
    top, left, tall, wide = map(float, decode.random_box(draws, height, width, scale, ratio))
    slack = 1e-9 * max(height, width)
    assert top >= -slack
    assert left >= -slack
    assert top + tall <= height + slack
    assert left + wide <= width + slack
    assert ratio[0] * (1 - 1e-9) <= wide / tall <= ratio[1] * (1 + 1e-9)
    assert tall * wide <= scale[1] * height * width * (1 + 1e-9) or tall in (
        height,
        width / ratio[0],
    )


def test_areas_and_places_of_windows_are_spread_evenly():
    # Windows so small that all fit, so that the first of the ten tries is taken.
    top, left, tall, wide = boxes(4000, 90, 120, scale=(0.1, 0.4)).T
    share = tall * wide / (90 * 120)
    for value, low, high in (
        (share, 0.1, 0.4),
        (np.log(wide / tall), np.log(RATIO[0]), np.log(RATIO[1])),
        (top / (90 - tall), 0, 1),
        (left / (120 - wide), 0, 1),
    ):
        assert value.min() >= low - 1e-9
        assert value.max() <= high + 1e-9
        counts, _ = np.histogram(value, 5, (low, high))
        assert counts.min() > 0.88 * 800


def test_where_no_size_fits_the_window_is_the_largest_in_the_middle():
    assert np.allclose(boxes(5, 10, 100, scale=(1.0, 1.0)), (0, 50 - 20 / 3, 10, 40 / 3))
    assert np.allclose(boxes(5, 100, 10, scale=(1.0, 1.0)), (50 - 20 / 3, 0, 40 / 3, 10))


def test_a_file_of_too_many_pixels_is_broken_before_it_is_decoded(black_png, bounded):
    bomb = black_png(13_000, 13_000)
    for view in (View(), View(image_size=8)):
        with bounded(2**26), pytest.raises(BrokenImage, match="13000×13000 pixels to decode"):
            decode.decode(bomb, "x", view)
    with bounded(2**26), pytest.raises(BrokenImage, match="13000×13000 pixels to decode"):
        decode.read_values(black_png(13_000, 13_000, 1), "x")


def test_a_large_jpeg_file_is_decoded_if_a_fraction_of_it_is_small(bounded):
    large = encoded(Image.new("L", (9000, 9000), 90), "JPEG")
    with bounded(2**29):
        assert (decode.decode(large, "x", View(image_size=16)) == 90).all()
    with pytest.raises(BrokenImage, match="9000×9000 pixels to decode"):
        decode.decode(large, "x", View())


def test_a_jpeg_file_of_many_scans_is_broken(colours):
    content = encoded(colours, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    bomb = content[:-2] + scan * 150 + content[-2:]
    with pytest.raises(BrokenImage, match=r"x: not .*a JPEG file of \d+ scans"):
        decode.decode(bomb, "x", View())


def test_images_of_any_size_are_decoded_side_by_side_with_bounded_memory(black_png, bounded):
    large = black_png(7000, 7000)
    with bounded(2**30), concurrent.futures.ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: decode.decode(large, "x", View(image_size=4)), range(4)))
    assert [image.shape for image in seen] == [(4, 4, 3)] * 4


def test_a_result_of_another_size_than_wanted_is_refused_before_it_is_decoded(black_png, bounded):
    content = black_png(8000, 7000)
    with bounded(2**26), pytest.raises(decode.OtherSize, match="7000×8000 pixels"):
        decode.decode(content, "x", View(), size=(7000, 8000))
    small = black_png(3, 5)
    assert decode.decode(small, "x", View(), size=(3, 5)).shape == (3, 5, 3)
    assert decode.decode(small, "x", View(rotate=90), size=(5, 3)).shape == (5, 3, 3)
    with pytest.raises(decode.OtherSize, match="3×5 pixels"):
        decode.decode(small, "x", View(rotate=270), size=(3, 5))
