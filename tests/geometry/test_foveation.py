import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from kernsym_jax import geometry

NUMPY_MODES = {
    "zero": "constant",
    "reflect": "reflect",
    "symmetric": "symmetric",
    "replicate": "edge",
    "circular": "wrap",
}


@pytest.mark.parametrize(
    ("mode", "corner"),
    [
        ("valid", [[1, 2, 3], [2, 4, 6], [3, 6, 9]]),
        ("zero", [[4, 6, 6], [6, 9, 9], [6, 9, 9]]),
        ("same", [[4, 6, 6], [6, 9, 9], [6, 9, 9]]),
        ("circular", [[9, 9, 9], [9, 9, 9], [9, 9, 9]]),
        ("symmetric", [[9, 9, 9], [9, 9, 9], [9, 9, 9]]),
        ("reflect", [[4, 8, 6], [8, 16, 12], [6, 12, 9]]),
        ("replicate", [[9, 9, 9], [9, 9, 9], [9, 9, 9]]),
        ("partial", [[6.25, 8.75, 7.5], [8.75, 12.25, 10.5], [7.5, 10.5, 9]]),
    ],
)
def test_corner_of_a_three_by_three_kernel(mode, corner):
    counts = geometry.foveation(12, 3, padding_mode=mode)
    assert counts.shape == (12, 12)
    np.testing.assert_array_equal(counts[:3, :3], corner)


def test_corner_of_a_five_by_five_kernel_with_replicated_borders():
    counts = geometry.foveation(12, 5, padding_mode="replicate")
    np.testing.assert_array_equal(counts[:3, :3], [[36, 24, 30], [24, 16, 20], [30, 20, 25]])


@given(
    st.sampled_from(sorted(NUMPY_MODES)),
    st.tuples(st.integers(6, 9), st.integers(6, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_counts_agree_with_windows_slid_over_the_padded_image(mode, size, kernel, stride, dilation):
    pads = [(dilation * (k - 1) // 2,) * 2 for k in kernel]
    pixels = np.arange(1, size[0] * size[1] + 1).reshape(size)
    padded = np.pad(pixels, pads, NUMPY_MODES[mode])
    span = [dilation * (k - 1) + 1 for k in kernel]
    touched = [
        padded[y : y + span[0] : dilation, x : x + span[1] : dilation].ravel()
        for y in range(0, padded.shape[0] - span[0] + 1, stride)
        for x in range(0, padded.shape[1] - span[1] + 1, stride)
    ]
    expected = np.bincount(np.concatenate(touched), minlength=pixels.size + 1)[1:]
    counts = geometry.foveation(size, kernel, stride, mode, dilation=dilation)
    np.testing.assert_array_equal(counts, expected.reshape(size))


@given(
    st.sampled_from(geometry.PADDING_MODES),
    st.integers(4, 20),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_every_window_is_counted_once_per_tap_on_the_image(mode, size, kernel, stride):
    counts = geometry.foveation(size, kernel, stride, mode)
    padding = {"same": "SAME", "valid": 0}.get(mode, (kernel - 1) // 2)
    windows = geometry.output_size(size, kernel, stride, padding) ** 2
    if mode in ("zero", "same", "valid"):
        assert counts.sum() <= windows * kernel**2
    else:
        assert counts.sum() == pytest.approx(windows * kernel**2)


def test_padding_may_be_given_per_axis_and_end():
    counts = geometry.foveation((4, 5), (3, 1), padding=((0, 1), (0, 0)))
    np.testing.assert_array_equal(
        counts, np.outer([1, 2, 3, 3], np.ones(5)) - np.outer([0, 0, 0, 1], np.ones(5))
    )


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown padding mode 'mirror'; wanted one of"):
        geometry.foveation(8, 3, padding_mode="mirror")


def convolve(image, kernel, stride, padding):
    return lax.conv_general_dilated(image, kernel, (stride, stride), [(padding, padding)] * 2)


def residual(kernels, image):
    """A strided stem, a block with a strided shortcut, one with an identity, and two branches."""
    x = convolve(image, kernels["stem"], 2, 1)
    y = convolve(x, kernels["a"], 2, 1) + convolve(x, kernels["shortcut"], 2, 0)
    y = y + convolve(jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"), kernels["b"], 1, 0)
    pooled = lax.reduce_window(y, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")
    return jnp.concatenate([pooled, convolve(y, kernels["c"], 1, 0)], axis=1)


KERNELS = {
    "stem": jnp.ones((1, 1, 3, 3)),
    "a": jnp.ones((1, 1, 3, 3)),
    "shortcut": jnp.ones((1, 1, 1, 1)),
    "b": jnp.ones((1, 1, 3, 3)),
    "c": jnp.ones((1, 1, 2, 2)),
}


@pytest.mark.parametrize("size", [12, 13])
def test_a_whole_network_is_its_all_ones_back_propagation(size):
    image = jnp.ones((1, 1, size, size))
    rows = geometry.audit(residual, KERNELS, image)
    with jax.disable_jit():
        ways = jax.grad(lambda image: residual(KERNELS, image).sum())(image)[0, 0]
    np.testing.assert_allclose(geometry.network_foveation(rows), ways / ways.mean(), rtol=1e-6)


def test_uneven_padding_moves_the_fovea_of_a_deep_network_off_centre():
    def balance(size):
        ways = geometry.network_foveation([(3, 2, 1)] * 5, size)
        return ways[:, : size // 2].sum() - ways[:, -(size // 2) :].sum()

    assert balance(33) == pytest.approx(0)
    assert balance(32) > 1


def test_one_layer_is_its_own_foveation_up_to_scale():
    counts = geometry.foveation(9, 3, 2)
    np.testing.assert_allclose(geometry.network_foveation([(3, 2, 1)], 9), counts / counts.mean())


def test_five_hundred_layers_stay_finite():
    ways = geometry.network_foveation([(7, 1, 3)] * 500, 9)
    assert np.isfinite(ways).all()
    assert ways[4, 4] > ways[0, 0] > 0


def test_outputs_can_be_chosen_by_name():
    rows = geometry.audit(residual, KERNELS, jnp.ones((1, 1, 12, 12)))
    stem = geometry.network_foveation(rows, outputs=["stem"])
    counts = geometry.foveation(12, 3, 2)
    np.testing.assert_allclose(stem, counts / counts.mean())
    with pytest.raises(ValueError, match="no layer is named"):
        geometry.network_foveation(rows, outputs=["head"])


def test_a_layer_in_a_loop_is_named_in_the_refusal():
    def looped(kernel, image):
        return lax.scan(lambda x, _: (convolve(x, kernel, 1, 1), None), image, None, length=3)[0]

    rows = geometry.audit(looped, KERNELS["b"], jnp.ones((1, 1, 8, 8)))
    with pytest.raises(ValueError, match="conv_1: runs 3 times in a loop"):
        geometry.network_foveation(rows)
