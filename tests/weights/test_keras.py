"""Keras files of both generations."""

import h5py
import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights


@pytest.mark.parametrize("name", ["keras 3 keras", "keras 3 h5"])
def test_the_configuration_gives_strides_paddings_and_groups(files, name):
    found = weights.read(files[name])
    assert list(found.kernels) == ["layer1", "layer2", "inner/layer10"]
    assert found.order == "forward"
    first, second, third = found.kernels.values()
    assert (first.stride, first.padding, first.groups) == ((2, 2), "SAME", 1)
    # A ZeroPadding2D in front belongs to the convolution.
    assert (second.stride, second.padding, second.groups) == ((1, 1), ((0, 1), (0, 1)), 4)
    assert (third.padding, third.dilation) == (((0, 0), (0, 0)), (1, 1))


def test_weights_alone_leave_what_they_do_not_say_empty(files):
    for name in ("keras 3 weights.h5", "keras hdf5"):
        kernel = weights.read(files[name]).kernels["layer1"]
        assert (kernel.stride, kernel.padding, kernel.dilation) == (None, None, None)


def test_compressed_datasets_are_read(tmp_path):
    path = writers.write_keras_hdf5(tmp_path / "net.h5", compression="gzip")
    for layer, kernel in weights.read(path).kernels.items():
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])


def test_transposed_kernels_are_turned(tmp_path):
    path = tmp_path / "net.weights.h5"
    stored = network.values("up", (3, 5, 6, 8))
    with h5py.File(path, "w") as file:
        file["layers/conv2d_transpose/vars/0"] = stored
        file["layers/conv2d/vars/0"] = network.values("c", (3, 3, 8, 6))
        file["optimizer/vars/0"] = network.values("m", (3, 3, 8, 6))
    found = weights.read(path)
    kernel = found.kernels["conv2d_transpose"]
    assert kernel.kind == "transposed"
    np.testing.assert_array_equal(kernel.weight, stored.swapaxes(2, 3))
    assert list(found.kernels) == ["conv2d", "conv2d_transpose"]
    assert found.skipped["optimizer"] == "optimizer state: 1 arrays"
