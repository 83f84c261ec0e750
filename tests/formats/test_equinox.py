"""Equinox's files: arrays one after another, which have no names."""

import json

import damage
import network
import numpy as np
import pytest

from kernsym_jax import weights


@pytest.mark.parametrize("name", ["equinox", "equinox with settings"])
def test_real_trees_are_numbered_in_their_order(files, name):
    found = weights.read(files[name])
    assert (found.format, found.order) == ("Equinox", "file")
    # The scalars between the kernels have numbers too.
    assert list(found.kernels) == ["0", "4"]
    np.testing.assert_array_equal(found.kernels["0"].weight, network.KERNELS["layer1"])
    np.testing.assert_array_equal(found.kernels["4"].weight, network.KERNELS["layer10"])


def test_one_array_and_columns_first_are_read(tmp_path):
    kernel = np.arange(216, dtype=np.float32).reshape(8, 3, 3, 3)
    with (tmp_path / "one.eqx").open("wb") as file:
        np.save(file, np.asfortranarray(kernel))
    found = weights.read(tmp_path / "one.eqx").kernels["0"]
    np.testing.assert_array_equal(found.weight, kernel.transpose(2, 3, 1, 0))
    assert list(weights.read(tmp_path / "one.eqx").kernels) == ["0"]


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': "
         b"(99999999, 9999, 3, 3)}".ljust(118) + b"\n", "cut|damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "has a header of"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': ()}"
         .ljust(117) + b"\n", "not of numbers"),
        (b"more", "is not a .npy array"),
    ],
)  # fmt: skip
def test_what_follows_the_first_array_is_checked(tmp_path, tail, says):
    path = tmp_path / "net.eqx"
    with path.open("wb") as file:
        file.write(json.dumps({"width": 4}).encode() + b"\n")
        np.save(file, np.ones((8, 3, 3, 3), np.float32))
        file.write(tail)
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match=says):
        weights.read(path)
