"""Which axes are the kernel's: by the shapes, the names, the rest of the file, or the user."""

import h5py
import network
import numpy as np
import pytest

from kernsym_jax import weights
from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.weights.kernels import find_kernels


def _read(tmp_path, arrays, **options):
    path = tmp_path / "net.npz"
    np.savez(
        path,
        **{name: np.arange(np.prod(s), dtype=np.float32).reshape(s) for name, s in arrays.items()},
    )
    return weights.read(path, **options)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((64, 3, 7, 7), (7, 7, 3, 64)),
        ((7, 7, 3, 64), (7, 7, 3, 64)),
        ((64, 7, 7, 3), (7, 7, 3, 64)),
        ((192, 64, 1, 7), (1, 7, 64, 192)),
        ((3, 3, 1, 64), (3, 3, 1, 64)),
        ((64, 1, 3, 3), (3, 3, 1, 64)),
        ((768, 3, 16, 16), (16, 16, 3, 768)),
        ((32, 32, 3, 3), (3, 3, 32, 32)),
    ],
)
def test_a_shape_with_one_plausible_reading_is_read_so(tmp_path, stored, wanted):
    assert _read(tmp_path, {"a": stored}).kernels["a"].shape == wanted


def test_an_open_shape_is_skipped_and_names_the_flag(tmp_path):
    found = _read(tmp_path, {"a": (3, 3, 3, 3)})
    assert found.kernels == {}
    assert "--layout" in found.skipped["a"]


@pytest.mark.parametrize(("layout", "axes"), [("HWIO", (0, 1, 2, 3)), ("OIHW", (2, 3, 1, 0))])
def test_the_user_decides_an_open_shape(tmp_path, layout, axes):
    found = _read(tmp_path, {"a": (3, 3, 3, 3)}, layout=layout)
    wanted = np.arange(81, dtype=np.float32).reshape(3, 3, 3, 3).transpose(axes)
    np.testing.assert_array_equal(found.kernels["a"].weight, wanted)
    assert "as given" in found.layout


@pytest.mark.parametrize(
    ("other", "axes"), [((3, 3, 8, 16), (0, 1, 2, 3)), ((16, 8, 3, 3), (2, 3, 1, 0))]
)
def test_an_open_shape_follows_the_rest_of_its_file(tmp_path, other, axes):
    found = _read(tmp_path, {"a": (3, 3, 3, 3), "b": other})
    wanted = np.arange(81, dtype=np.float32).reshape(3, 3, 3, 3).transpose(axes)
    np.testing.assert_array_equal(found.kernels["a"].weight, wanted)
    assert "recognised" in found.layout


@pytest.mark.parametrize(
    ("name", "axes"), [("conv.weight", (2, 3, 1, 0)), ("conv/kernel", (0, 1, 2, 3))]
)
def test_an_open_shape_alone_follows_its_name(tmp_path, name, axes):
    (kernel,) = _read(tmp_path, {name: (3, 3, 3, 3)}).kernels.values()
    wanted = np.arange(81, dtype=np.float32).reshape(3, 3, 3, 3).transpose(axes)
    np.testing.assert_array_equal(kernel.weight, wanted)


def test_output_first_height_next_is_recognised_when_the_file_is_full_of_it(tmp_path):
    found = _read(
        tmp_path,
        {"a.weight": (16, 3, 3, 3), "b.weight": (32, 3, 3, 16), "c.weight": (64, 1, 1, 32)},
    )
    assert {name: kernel.shape for name, kernel in found.kernels.items()} == {
        "a": (3, 3, 3, 16),
        "b": (3, 3, 16, 32),
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("relative_position_bias", (1, 12, 49, 49)),
        ("pos_embed", (1, 768, 14, 14)),
        ("images", (500, 28, 28, 1)),
        ("attention", (8, 64, 100, 100)),
    ],
)
def test_other_arrays_of_four_axes_are_no_kernels(tmp_path, name, shape):
    found = _read(tmp_path, {name: shape, "conv.weight": (16, 8, 3, 3)})
    assert list(found.kernels) == ["conv"]
    assert "4-D" in found.skipped[name]


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ((8, 4, 3), "1-D convolution"),
        ((8, 4, 3, 3, 3), "3-D convolution"),
        ((5, 6), "dense"),
        ((), "scalar"),
    ],
)
def test_arrays_of_other_axes_say_what_they_may_be(tmp_path, shape, word):
    assert word in _read(tmp_path, {"a.weight": shape}).skipped["a.weight"]


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'IHWO'.*HWIO"):
        _read(tmp_path, {"a": (3, 3, 3, 3)}, layout="IHWO")


def test_a_first_layer_for_grey_images_is_no_depthwise_layer(tmp_path):
    found = _read(tmp_path, {"a.weight": (8, 1, 3, 3), "b.weight": (8, 1, 3, 3)})
    assert [kernel.kind for kernel in found.kernels.values()] == ["conv", "depthwise"]


def test_a_bias_tells_a_transposed_convolution(tmp_path):
    found = _read(tmp_path, {"up.weight": (8, 3, 4, 4), "up.bias": (6,), "b.weight": (16, 8, 3, 3)})
    kernel = found.kernels["up"]
    assert (kernel.kind, kernel.groups, kernel.shape) == ("transposed", 2, (4, 4, 4, 6))
    stored = np.arange(8 * 3 * 16, dtype=np.float32).reshape(8, 3, 4, 4)
    # Group 1 takes the last four inputs to the last three outputs.
    np.testing.assert_array_equal(kernel.weight[:, :, 2, 4], stored[6, 1])


def _norm(name, channels):
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean")}


def _told(state_dict):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in state_dict.items()}
    found = weights.read(arrays).kernels
    return {name: (kernel.kind, kernel.shape) for name, kernel in found.items()}


def test_a_norm_tells_transposed_convolutions_without_a_bias():
    generator = {"net.0.weight": (100, 64, 4, 4), **_norm("net.1", 64)}
    generator |= {"net.3.weight": (64, 32, 4, 4), **_norm("net.4", 32)}
    generator |= {"net.6.weight": (32, 3, 4, 4)}
    assert _told(generator) == {
        "net.0": ("transposed", (4, 4, 100, 64)),
        "net.3": ("transposed", (4, 4, 64, 32)),
        "net.6": ("transposed", (4, 4, 32, 3)),
    }


def test_a_norm_in_front_of_a_convolution_does_not_tell_that_it_is_transposed():
    dense = {"stem.weight": (64, 3, 3, 3), **_norm("a.norm1", 64), "a.conv1.weight": (32, 64, 3, 3)}
    dense |= {**_norm("b.norm1", 64), "b.conv1.weight": (32, 64, 3, 3)}
    joined = {"up.weight": (64, 32, 2, 2), **_norm("norm", 32), "conv.weight": (32, 64, 3, 3)}
    joined |= {"conv.bias": (32,)}
    assert [kind for kind, _ in _told(dense).values()] == ["conv"] * 3
    assert [kind for kind, _ in _told(joined).values()] == ["transposed", "conv"]


def test_a_convolution_behind_one_that_makes_one_channel_is_not_depthwise():
    told = _told(
        {
            "stem.weight": (16, 3, 3, 3),
            "mask.weight": (1, 16, 1, 1),
            "mix.weight": (16, 1, 5, 5),
            "depthwise.weight": (16, 1, 3, 3),
        }
    )
    assert [kind for kind, _ in told.values()] == ["conv", "conv", "depthwise"]


@pytest.mark.parametrize("name", ["deconv2", "upscore8", "a.conv_transpose"])
def test_a_name_tells_a_transposed_convolution_with_equal_channels(name):
    told = _told({"stem.weight": (21, 3, 3, 3), f"{name}.weight": (21, 21, 4, 4)})
    assert told[name][0] == "transposed"
    biased = {f"{name}.weight": (21, 7, 3, 3), f"{name}.bias": (21,)}
    assert _told({"stem.weight": (7, 3, 3, 3), **biased})[name] == ("conv", (3, 3, 7, 21))


@pytest.mark.parametrize("separator", [".", "/"])
def test_hdf5_files_of_other_programs_are_read(tmp_path, separator):
    shapes = {"a.weight": (16, 3, 3, 3), "b.weight": (16, 16, 3, 1), "c.weight": (8, 16, 3, 3)}
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "net.h5", "w") as file:
        for name, shape in shapes.items():
            file[name.replace(".", separator)] = rng.normal(size=shape).astype(np.float32)
    found = weights.read(tmp_path / "net.h5")
    assert (found.format, found.first) == ("HDF5", "a")
    shapes = [kernel.shape for kernel in found.kernels.values()]
    assert shapes == [(3, 3, 3, 16), (3, 1, 16, 16), (3, 3, 16, 8)]


@pytest.mark.parametrize(
    ("length", "wanted"), [(12, (3, 3, 2, 12)), (3, (3, 3, 8, 3)), (5, (3, 3, 8, 3))]
)
def test_the_bias_of_a_known_transposed_kernel_tells_its_groups(length, wanted):
    arrays = {
        "up.weight": StoredArray.of(network.values("up", (8, 3, 3, 3))),
        "up.bias": StoredArray.of(np.zeros(length, np.float32)),
    }
    found = find_kernels(
        arrays,
        rule="OIHW",
        usual=None,
        layout=None,
        fold_batchnorm=False,
        in_order=True,
        calls={"up.weight": {"transposed": True}},
    )
    (kernel,) = found.kernels.values()
    assert (kernel.kind, kernel.shape) == ("transposed", wanted)
