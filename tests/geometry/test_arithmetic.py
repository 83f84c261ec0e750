import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernsym_jax import geometry

RESNET = [(7, 2, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)]
INCEPTION = [(3, 2, 0), (3, 1, 0), (3, 1, 1), (3, 2, 0), (1, 1, 0), (3, 1, 0), (3, 2, 0)]
INCEPTION += [(3, 2, 0), (3, 2, 0)]
ALEXNET = [(11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 2, 0)]


def chain(size, layers):
    """Sizes after, and u at, the strided layers of a plain network."""
    sizes, uneven = [], []
    for kernel, stride, padding in layers:
        if stride > 1:
            uneven.append(geometry.uneven_padding(size, kernel, stride, padding))
        size = geometry.output_size(size, kernel, stride, padding)
        if stride > 1:
            sizes.append(size)
    return sizes, uneven


@pytest.mark.parametrize(
    ("layers", "size", "sizes", "uneven"),
    [
        (RESNET, 224, [112, 56, 28, 14, 7], [1, 1, 1, 1, 1]),
        (RESNET, 225, [113, 57, 29, 15, 8], [0, 0, 0, 0, 0]),
        (RESNET, 193, [97, 49, 25, 13, 7], [0, 0, 0, 0, 0]),
        (RESNET, 257, [129, 65, 33, 17, 9], [0, 0, 0, 0, 0]),
        (RESNET, 227, [114, 57, 29, 15, 8], [0, 1, 0, 0, 0]),
        ([(3, 2, 1)] * 2, 32, [16, 8], [1, 1]),
        ([(3, 2, 1)] * 2, 33, [17, 9], [0, 0]),
        ([(2, 2, 0)] * 5, 224, [112, 56, 28, 14, 7], [0] * 5),
        (INCEPTION, 299, [149, 73, 35, 17, 8], [0] * 5),
        (INCEPTION, 224, [111, 54, 25, 12, 5], [1, 0, 1, 0, 1]),
        (ALEXNET, 224, [55, 27, 13, 6], [1, 0, 0, 0]),
        (ALEXNET, 227, [56, 27, 13, 6], [0, 1, 0, 0]),
    ],
)
def test_sizes_and_uneven_padding_of_known_networks(layers, size, sizes, uneven):
    assert chain(size, layers) == (sizes, uneven)


def brute_force(size, kernel, stride, lo, hi, dilation):
    """The positions that each window touches on the padded axis, by sliding it along."""
    touched, start = [], -lo
    while start + dilation * (kernel - 1) < size + hi:
        touched.append([start + dilation * tap for tap in range(kernel)])
        start += stride
    return touched


axes = st.tuples(
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(-2, 5),
    st.integers(-2, 5),
    st.integers(1, 3),
)


@given(axes)
def test_every_figure_agrees_with_windows_slid_one_by_one(axis):
    size, kernel, stride, lo, hi, dilation = axis
    touched = brute_force(*axis)
    if not touched:
        with pytest.raises(ValueError, match="more than the"):
            geometry.Windows(*axis)
        return
    windows = geometry.Windows(*axis)
    assert windows.output_size == len(touched)
    assert geometry.output_size(size, kernel, stride, (lo, hi), dilation) == len(touched)
    uneven = size + hi - 1 - touched[-1][-1]
    assert windows.uneven == uneven
    assert geometry.uneven_padding(size, kernel, stride, (lo, hi), dilation) == uneven
    image = set(range(size))
    lost = [p for p in image if p > touched[-1][-1] or p < touched[0][0]]
    assert windows.dropped == len(lost)
    centres = [(window[0] + window[-1]) / 2 for window in touched]
    assert windows.centre_drift == pytest.approx(np.mean(centres) - (size - 1) / 2, abs=1e-9)
    outside = np.array([[p not in image for p in window] for window in touched])
    np.testing.assert_allclose(windows.exposure, outside.mean(axis=0))
    half = kernel // 2
    gap = windows.exposure[:half].sum() - windows.exposure[kernel - half :].sum()
    assert windows.exposure_gap == pytest.approx(gap, abs=1e-12)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_same_padding_covers_the_axis_with_the_fewest_pixels(size, kernel, stride, dilation):
    (near,), (far,) = (
        geometry.windows(size, kernel, stride, rule, dilation) for rule in ("SAME_LOWER", "SAME")
    )
    assert far.output_size == near.output_size == -(-size // stride)
    assert 0 <= far.hi - far.lo <= 1
    assert (near.lo, near.hi) == (far.hi, far.lo)
    if far.hi > 0:
        assert far.uneven == 0
        fewer = size + far.lo + far.hi - 1 - far.span
        assert fewer < 0 or fewer // stride + 1 < far.output_size


@given(st.integers(3, 300), st.integers(1, 4))
def test_a_chain_of_strided_layers_is_even_exactly_for_a_multiple_of_its_stride_and_one(
    size, depth
):
    uneven = chain(size, [(3, 2, 1)] * depth)[1]
    assert (not any(uneven)) == (size % 2**depth == 1)


def test_one_number_for_one_axis_and_a_tuple_for_several():
    assert geometry.uneven_padding(224, 7, 2, 3) == 1
    assert geometry.uneven_padding((224, 225), 7, 2, 3) == (1, 0)
    assert geometry.uneven_padding(224, (7, 3), (2, 1), 3) == (1, 0)
    assert geometry.uneven_padding(8, 3, 2, ((1, 1), (0, 1))) == (1, 0)
    assert geometry.uneven_padding((8, 9), 3, 2, (0, 1)) == (0, 1)
    assert geometry.output_size((8, 9, 10), 3, 2, "VALID") == (3, 4, 4)
    assert geometry.padding_amounts((8, 9), 3, 2, "SAME") == ((0, 1), (1, 1))
    assert geometry.padding_amounts(8, 3, 2, "SAME") == (0, 1)


def test_the_drift_tells_uneven_application_where_padding_differs_at_the_ends():
    (blur,) = geometry.windows(32, 4, 2, (1, 2))
    assert (blur.uneven, blur.centre_drift) == (1, 0.0)
    (tensorflow,) = geometry.windows(32, 3, 2, "SAME")
    assert (tensorflow.uneven, tensorflow.centre_drift) == (0, 0.5)
    (symmetric,) = geometry.windows(32, 3, 2, 1)
    assert (symmetric.uneven, symmetric.centre_drift) == (1, -0.5)


@pytest.mark.parametrize("size", [8, 32, 224])
def test_the_exposure_gap_of_three_taps_is_one_window(size):
    (even,) = geometry.windows(size, 3, 2, 1)
    assert even.exposure_gap == 1 / even.output_size
    (odd,) = geometry.windows(size + 1, 3, 2, 1)
    assert odd.exposure_gap == 0
    (tensorflow,) = geometry.windows(size, 3, 2, "SAME")
    assert tensorflow.exposure_gap == -1 / tensorflow.output_size


def test_skew_is_named_by_the_side_that_meets_less_padding():
    assert geometry.skew_direction([0.1, 0.1]) == "bottom right"
    assert geometry.skew_direction([-0.1, 0.0]) == "top"
    assert geometry.skew_direction([0.0, -0.1]) == "left"
    assert geometry.skew_direction([0.1]) == "right"
    assert geometry.skew_direction([-0.1, 0.0, 0.1]) == "front right"
    assert geometry.skew_direction([0.0, 0.0]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 5, 1, 1), "spans 5 pixels, more than the 4 of the padded input"),
        ((8, 3, 0, 1), "at least 1, got 8, 3, 0 and 1"),
        ((8, 3, 0, "SAME"), "at least 1, got 8, 3, 0 and 1"),
        ((0, 1, 1, 0), "at least 1, got 0"),
        ((8, 3, 2, "FULL"), "unknown padding 'FULL'"),
        ((8, 3, 2, (1, 1, 1)), r"is \(lo, hi\), got \(1, 1, 1\)"),
        (((8, 8), (3, 3, 3), 2, 1), "different numbers of axes"),
    ],
)
def test_impossible_windows_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        geometry.uneven_padding(*arguments)
    assert "\n" not in str(error.value)
