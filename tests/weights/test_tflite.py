"""TensorFlow Lite, its integers and its sparse tensors among it."""

import damage
import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights


def test_tensorflow_lite_gives_strides_paddings_and_groups(files):
    found = weights.read(files["tflite"])
    first, second, third = found.kernels.values()
    assert (first.stride, first.padding) == ((2, 2), "SAME")
    assert (second.stride, second.padding, second.groups) == ((1, 1), ((0, 1), (0, 1)), 4)
    assert third.padding == ((0, 0), (0, 0))
    assert found.order == "forward"


def test_tensorflow_lites_integers_are_dequantised(fixtures):
    found = list(weights.read(fixtures / "int8.tflite").kernels.values())
    for kernel, wanted in zip(
        found, (network.FOLDED, network.KERNELS["layer2"], network.KERNELS["layer10"]), strict=True
    ):
        # A scale for each output channel, of which the largest value is 127 steps.
        step = np.abs(wanted).max(axis=(0, 1, 2)) / 127
        assert np.all(np.abs(kernel.weight - wanted) <= 0.51 * step)
        assert kernel.weight.std() > 0.5


def _sparse(shape, dtype=np.float32):
    """An array of which about a third is not 0, with outputs, inputs and blocks of nothing."""
    rng = np.random.default_rng(3)
    array = rng.integers(1, 100, shape) * (rng.random(shape) < 0.4)
    array[..., 1] = array[1] = array[2:, :, :, 4:] = 0
    return array.astype(dtype)


def test_a_sparse_kernel_has_its_values_where_its_lists_say(tmp_path):
    # Three rows: columns 0 and 2 of the first, none of the second, column 1 of the third.
    lists = {
        2: ("<B", 3),
        3: {0: np.uint8([0, 2, 2, 3])},
        4: ("<B", 3),
        5: {0: np.uint8([0, 2, 1])},
    }
    whole = [{1: ("<i", 1)}, {1: ("<i", 3)}]
    sparsity = {0: np.int32([0, 1, 2, 3]), 2: [*whole, {0: ("<b", 1), **lists}, {1: ("<i", 1)}]}
    path = tmp_path / "net.tflite"
    writers.write_sparse_tflite(path, np.float32([5, 6, 7]), sparsity, (1, 3, 3, 1))
    kernel = weights.read(path).kernels["kernel"]
    np.testing.assert_array_equal(kernel.weight[:, :, 0, 0], [[5, 0, 6], [0, 0, 0], [0, 7, 0]])
    assert (kernel.stride, kernel.padding) == ((1, 2), ((0, 0), (0, 0)))


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize(
    ("order", "blocks", "csr"),
    [
        ((0, 1, 2, 3), {}, (False, False, False, True)),
        ((0, 1, 2, 3), {}, (True, True, True, True)),
        ((3, 1, 0, 2), {}, (False, True, False, True)),
        ((0, 1, 2, 3, 4), {3: 4}, (False, False, False, True, False)),
        ((0, 3, 1, 2, 4, 5), {0: 2, 3: 4}, (True, True, False, False, False, False)),
        ((2, 0, 3, 1, 5, 4), {0: 2, 3: 4}, (True, False, True, False, False, False)),
    ],
)
def test_every_order_of_axes_and_blocks_is_made_whole(tmp_path, order, blocks, csr, kind):
    wanted = _sparse((4, 3, 2, 8))
    values, sparsity = writers.sparse_levels(wanted, order, blocks, csr, kind)
    assert values.size < wanted.size
    path = writers.write_sparse_tflite(tmp_path / "net.tflite", values, sparsity, wanted.shape)
    kernel = weights.read(path).kernels["kernel"]
    np.testing.assert_array_equal(kernel.weight, wanted.transpose(1, 2, 3, 0))


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_sparse_halves_and_integers_become_numbers(tmp_path, dtype):
    wanted = _sparse((4, 3, 3, 8), dtype)
    values, sparsity = writers.sparse_levels(wanted, range(4), {}, (False, False, False, True))
    quantization = {2: np.float32([0.5, 1, 2, 4]), 3: np.zeros(4, np.int64)}
    scale = np.float32([0.5, 1, 2, 4]) if dtype is np.int8 else 1
    path = writers.write_sparse_tflite(
        tmp_path / "net.tflite", values, sparsity, wanted.shape, quantization
    )
    kernel = weights.read(path).kernels["kernel"]
    np.testing.assert_array_equal(kernel.weight, wanted.transpose(1, 2, 3, 0) * np.float32(scale))


def _bent(name, sparsity, values, shape):
    """A sparse tensor with one thing wrong."""
    last = sparsity[2][-1]
    if name == "values":
        values = values[:-1]
    elif name == "shape":
        shape = (1 << 20, 1 << 10, 3, 3)
    elif name == "extent":
        sparsity[2][0][1] = ("<i", 5)
    elif name == "order":
        sparsity[0] = np.int32([0, 1, 2, 2])
    elif name == "levels":
        sparsity[2] = sparsity[2][:-1]
    elif name == "blocks":
        sparsity[0], sparsity[1] = np.int32([0, 1, 2, 3, 4]), np.int32([7])
    elif name == "indices":
        last[5] = {0: last[5][0] + np.uint8(6)}
    elif name == "twice":
        last[5] = {0: np.zeros_like(last[5][0])}
    elif name == "segments":
        last[3] = {0: last[3][0][::-1]}
    elif name == "kind":
        last[2] = ("<B", 0)
    elif name == "whole":
        values, shape = values[:1], (1024, 2, 2, 4096)
        sparsity[2] = [{1: ("<i", size)} for size in shape]
    return values, sparsity, shape


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("values", "values in .* places"),
        ("shape", "more than 16777216 elements"),
        ("extent", "a level of 5 instead of 4"),
        ("order", "order"),
        ("levels", "3 sparse levels"),
        ("blocks", "order"),
        ("indices", "rise"),
        ("twice", "rise"),
        ("segments", "segments"),
        ("kind", "without its indices"),
        ("whole", "1 values in 16777216 places"),
    ],
)
def test_a_sparse_tensor_that_does_not_fit_its_shape_is_refused(tmp_path, name, word):
    whole = _sparse((4, 3, 3, 8))
    values, sparsity = writers.sparse_levels(whole, range(4), {}, (False, False, False, True))
    path = tmp_path / "net.tflite"
    writers.write_sparse_tflite(path, *_bent(name, sparsity, values, whole.shape))
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match=word):
        weights.read(path)


def test_damaged_sparse_tensors_end_in_one_clear_error(tmp_path):
    whole = _sparse((4, 3, 3, 8))
    values, sparsity = writers.sparse_levels(
        whole, (0, 1, 2, 3, 4), {3: 4}, (True, False, True, True, False)
    )
    path = writers.write_sparse_tflite(tmp_path / "net.tflite", values, sparsity, whole.shape)
    assert damage.faults(path, 240, seed=0, folder=tmp_path) == []


# As text: an ONNX model's first byte, a pickle's first two, a zip archive's.
@pytest.mark.parametrize("first", [0x108, 0x280, 0x4B50])
def test_the_place_of_the_first_table_may_look_like_another_format(tmp_path, first):
    wanted = _sparse((4, 3, 3, 8))
    values, sparsity = writers.sparse_levels(wanted, range(4), {}, (False, False, False, True))
    path = tmp_path / "net.tflite"
    writers.write_sparse_tflite(path, values, sparsity, wanted.shape, first=first)
    assert path.read_bytes()[:8] == first.to_bytes(4, "little") + b"TFL3"
    kernel = weights.read(path).kernels["kernel"]
    np.testing.assert_array_equal(kernel.weight, wanted.transpose(1, 2, 3, 0))
