"""The audit of TensorFlow Lite models: TensorFlow's SAME, and blocks that stand for dilation."""

import functools

import numpy as np
import pytest
import writers

from kernsym_jax import geometry, weights

CONV, DEPTHWISE, POOL, ADD, CONCATENATION, PAD, MEAN, UPSCALE = 3, 4, 17, 0, 2, 34, 40, 67
TO_BLOCKS, FROM_BLOCKS, SHAPE, RELU = 38, 37, 77, 19
DEQUANTIZE, PRELU, RESHAPE = 6, 54, 22

ints = functools.partial(np.array, dtype="<i4")


def options(*numbers):
    """The settings of an operator: a byte for its padding, and numbers."""
    same, *rest = numbers
    return {0: ("<b", same)} | {field: ("<i", n) for field, n in enumerate(rest, start=1)}


SAME_2, SAME_1, VALID_2 = options(0, 2, 2), options(0, 1, 1), options(1, 2, 2)


@pytest.fixture
def save(tmp_path):
    """Writes a model: tensors by name as shapes or arrays, and its operators.

    An operator is (code, names of its inputs, name of its output, options). The first
    tensor is the input of the network.
    """

    def write(tensors, steps):
        names, buffers, stored = list(tensors), [{}], []
        for name, value in tensors.items():
            entry = {0: ints(np.shape(value) if isinstance(value, np.ndarray) else value), 3: name}
            if isinstance(value, np.ndarray):
                entry |= {1: ("<b", 2 if value.dtype.kind == "i" else 0), 2: ("<I", len(buffers))}
                buffers.append({0: np.frombuffer(value.tobytes(), np.uint8)})
            stored.append(entry)
        for _, _, output, _ in steps:
            names.append(output)
            stored.append({3: output})
        codes = list(dict.fromkeys(code for code, *_ in steps))
        operators = [
            {
                0: ("<I", codes.index(code)),
                1: ints([names.index(name) for name in reads]),
                2: ints([names.index(output)]),
                4: settings,
            }
            for code, reads, output, settings in steps
        ]
        model = {
            0: ("<I", 3),
            1: [{0: ("<b", code), 3: ("<i", code)} for code in codes],
            2: [{0: stored, 1: ints([0]), 2: ints([len(names) - 1]), 3: operators}],
            4: buffers,
        }
        path = tmp_path / "net.tflite"
        path.write_bytes(writers.flatbuffer(model, b"TFL3"))
        return path

    return write


def kernel(outputs, size, inputs):
    return np.ones((outputs, size, size, inputs), np.float32)


@pytest.mark.parametrize(
    ("size", "padding", "drift", "skew"),
    [(224, (0, 1), 0.5, "top left"), (225, (1, 1), 0, None), (223, (1, 1), 0, None)],
)
def test_same_puts_the_odd_pixel_at_the_far_end(save, size, padding, drift, skew):
    path = save(
        {"image": (1, 224, 224, 3), "stem/kernel": kernel(8, 3, 3)},
        [(CONV, ["image", "stem/kernel"], "y", SAME_2)],
    )
    (row,) = geometry.audit_file(path, size)
    assert (row.layer, row.padding) == ("stem/kernel", (padding, padding))
    assert (row.uneven, row.centre_drift, row.skew) == ((0, 0), (drift, drift), skew)


def test_a_block_of_mobilenet(save):
    path = save(
        {
            "image": (1, 112, 112, 8),
            "expand": kernel(16, 1, 8),
            "step": kernel(1, 3, 16),
            "project": kernel(8, 1, 16),
            "stay": kernel(1, 3, 8),
            "space": ints([1, 2]),
        },
        [
            (CONV, ["image", "expand"], "a", SAME_1),
            (DEPTHWISE, ["a", "step"], "b", options(0, 2, 2, 1)),
            (CONV, ["b", "project"], "c", SAME_1),
            (DEPTHWISE, ["c", "stay"], "d", options(0, 1, 1, 1)),
            (ADD, ["c", "d"], "e", {}),
            (POOL, ["e"], "f", options(1, 2, 2, 3, 3)),
            (MEAN, ["f", "space"], "g", {0: ("<b", 0)}),
        ],
    )
    rows = geometry.audit_file(path)
    assert [(row.layer, row.kind) for row in rows] == [
        ("expand", "conv"),
        ("step", "depthwise"),
        ("project", "conv"),
        ("stay", "depthwise"),
        ("max_pool_1", "max_pool"),
    ]
    assert (rows[1].groups, rows[1].output_size, rows[1].skew) == (16, (56, 56), "top left")
    assert (rows[3].padding, rows[4].reads) == (((1, 1), (1, 1)), (2, 3))
    # 56 pixels hold 27 windows of 3 with a step of 2, and leave one.
    assert (rows[4].output_size, rows[4].uneven) == ((27, 27), (1, 1))
    advice = geometry.advise(rows, functools.partial(geometry.audit_file, path), 112)
    # 113 makes 57 pixels, of which 28 windows leave none.
    assert advice.nearest == 113


def test_advice_names_only_sizes_at_which_a_skip_fits(save):
    path = save(
        {
            "image": (1, 64, 64, 3),
            "pads": ints([[0, 0], [1, 1], [1, 1], [0, 0]]),
            "down": kernel(8, 3, 3),
            "size": ints([1, 64, 64, 8]),
            "up": kernel(8, 2, 8),
        },
        [
            (PAD, ["image", "pads"], "padded", {}),
            (CONV, ["padded", "down"], "a", VALID_2),
            (UPSCALE, ["size", "up", "a"], "b", SAME_2),
            (CONCATENATION, ["b", "image"], "c", {0: ("<i", 3)}),
        ],
    )
    rows = geometry.audit_file(path)
    assert (rows[0].uneven, rows[0].skew) == ((1, 1), "bottom right")
    assert (rows[1].kind, rows[1].output_size) == ("transposed", (64, 64))
    with pytest.raises(ValueError, match="up: 33 pixels of its map do not make 64"):
        geometry.audit_file(path, 65)
    advice = geometry.advise(rows, functools.partial(geometry.audit_file, path), 64)
    assert (advice.uneven, advice.nearest) == (1, None)


def test_a_size_at_which_a_dense_layer_does_not_fit_is_no_advice(save):
    tensors = {
        "image": (1, 32, 32, 3),
        "a": kernel(8, 3, 3),
        "b": kernel(8, 3, 8),
        "shape": ints([-1, 392]),
        "head": np.ones((5, 392), np.float32),
    }
    steps = [
        (CONV, ["image", "a"], "x", SAME_2),
        (CONV, ["x", "b"], "y", VALID_2),
        (RESHAPE, ["y", "shape"], "flat", {}),
        (9, ["flat", "head"], "z", {}),
    ]
    rows_at = functools.partial(geometry.audit_file, save(tensors, steps))
    assert rows_at(32).left_out == {}
    says = "the network does not run at this size: it takes 392 numbers, not 512"
    assert rows_at(33).left_out == {"flat": says}
    assert geometry.advise(rows_at(32), rows_at, 32).nearest == 29
    advice = geometry.advise(rows_at(33), rows_at, 33)
    wanted = "the network does not run at this size; 29 is the nearest even size"
    assert (advice.uneven, advice.verdict) == (0, wanted)


def test_a_map_repeated_by_tiles_keeps_its_size(save):
    tensors = {
        "image": (1, 32, 32, 3),
        "a": kernel(3, 3, 3),
        "axis": ints([2]),
        "counts": ints([1, 1, 2, 1, 1]),
        "tall": ints([1, 32, -1, 3]),
        "b": kernel(4, 3, 3),
    }
    steps = [
        (CONV, ["image", "a"], "x", SAME_2),
        (70, ["x", "axis"], "five", {}),
        (69, ["five", "counts"], "tiled", {}),
        (RESHAPE, ["tiled", "tall"], "y", {}),
        (CONV, ["y", "b"], "z", SAME_1),
    ]
    rows = geometry.audit_file(save(tensors, steps))
    assert [row.input_size for row in rows] == [(32, 32), (32, 16)]
    assert rows.left_out == {}


def test_blocks_of_a_map_stand_for_dilation(save):
    path = save(
        {
            "image": (1, 33, 33, 3),
            "block": ints([3, 3]),
            "pads": ints([[3, 3], [3, 3]]),
            "dilated": kernel(4, 3, 3),
            "crops": ints([[0, 0], [0, 0]]),
        },
        [
            (TO_BLOCKS, ["image", "block", "pads"], "a", {}),
            (CONV, ["a", "dilated"], "b", options(1, 1, 1)),
            (RELU, ["b"], "c", {}),
            (FROM_BLOCKS, ["c", "block", "crops"], "d", {}),
            (POOL, ["d"], "e", options(0, 2, 2, 2, 2)),
        ],
    )
    rows = geometry.audit_file(path)
    assert (rows[0].dilation, rows[0].padding) == ((3, 3), ((3, 3), (3, 3)))
    assert (rows[0].output_size, rows[1].output_size) == ((33, 33), (17, 17))
    stored = weights.read(path).kernels["dilated"]
    assert (stored.dilation, stored.padding) == ((3, 3), None)


def test_an_unknown_operator_costs_only_the_layers_behind_it(save):
    path = save(
        {"image": (1, 32, 32, 3), "known": kernel(8, 3, 3), "behind": kernel(8, 3, 8)},
        [
            (CONV, ["image", "known"], "a", SAME_2),
            (32, ["a"], "b", {}),  # CUSTOM
            (CONV, ["b", "behind"], "c", SAME_2),
        ],
    )
    rows = geometry.audit_file(path)
    assert [row.layer for row in rows] == ["known"]
    assert rows.left_out == {"behind": "the size of its input cannot be inferred"}


def test_what_is_computed_from_constants_alone_is_constant(save):
    path = save(
        {
            "image": (1, 32, 32, 3),
            "first": kernel(8, 3, 3),
            "slope": np.ones((1, 1, 8), np.float32),
            "second": kernel(8, 3, 8),
        },
        [
            (CONV, ["image", "first"], "a", SAME_2),
            (DEQUANTIZE, ["slope"], "b", {}),
            (PRELU, ["a", "b"], "c", {}),
            (CONV, ["c", "second"], "d", SAME_2),
        ],
    )
    rows = geometry.audit_file(path)
    assert [(row.layer, row.input_size) for row in rows] == [
        ("first", (32, 32)),
        ("second", (16, 16)),
    ]
    assert rows.left_out == {}


def test_maps_that_do_not_fit_are_refused(save):
    path = save(
        {"image": (1, 32, 32, 3), "k": kernel(3, 3, 3)},
        [(CONV, ["image", "k"], "a", SAME_2), (ADD, ["a", "image"], "sum", {})],
    )
    with pytest.raises(ValueError, match="sum: cannot put maps of 1×16×16×3 and 1×32×32×3"):
        geometry.audit_file(path)


def test_a_window_without_a_step_is_refused(save):
    path = save(
        {"image": (1, 32, 32, 3), "k": kernel(3, 3, 3)},
        [(CONV, ["image", "k"], "a", options(0, 0, 0))],
    )
    with pytest.raises(ValueError, match=r"net.tflite: k: a window of \(3, 3, 0, 0, 1, 1, 1\)"):
        geometry.audit_file(path)


def test_open_sizes_are_asked_for(save):
    path = save(
        {"image": (1, -1, -1, 3), "k": kernel(8, 3, 3)},
        [(CONV, ["image", "k"], "a", SAME_2)],
    )
    with pytest.raises(ValueError, match=r"'image' has shape \(1, \?, \?, 3\); give an input size"):
        geometry.audit_file(path)
    (row,) = geometry.audit_file(path, 64)
    assert row.input_size == (64, 64)


def test_audits_of_many_sizes_together_find_what_single_ones_find(save):
    path = save(
        {"image": (1, -1, -1, 3), "a": kernel(8, 3, 3), "b": kernel(8, 2, 8)},
        [
            (CONV, ["image", "a"], "x", SAME_2),
            (CONV, ["x", "b"], "y", options(1, 3, 3)),
        ],
    )
    for size in (64, (64, 48)):
        together = geometry.FileAudits(path)
        alone = geometry.FileAudits(path, trusted=True)
        assert together(size) == alone(size) == geometry.audit_file(path, size)
        found = geometry.even_input_sizes(together, size, count=4)
        assert found == geometry.even_input_sizes(alone, size, count=4) != []
        for even in found:
            assert together(even) == geometry.audit_file(path, even)
    with pytest.raises(ValueError, match="b: its kernel spans 2 pixels"):
        together((1, 48))
    with pytest.raises(ValueError, match="b: its kernel spans 2 pixels"):
        geometry.FileAudits(path)(1)
