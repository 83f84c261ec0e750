import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from kernsym_jax import geometry, models

RESNET = [(7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)]
CIFAR = [(3, 1, 1), (3, 2, 1), (3, 2, 1)]
VGG = [(3, 1, 1), (2, 2, 0)] * 5


def is_even(layers, size):
    for kernel, stride, padding in layers:
        try:
            if geometry.uneven_padding(size, kernel, stride, padding):
                return False
            size = geometry.output_size(size, kernel, stride, padding)
        except ValueError:
            return False
    return True


def row(layer="conv", **changes):
    fields = {
        "layer": layer,
        "kind": "conv",
        "input_size": (8, 8),
        "output_size": (4, 4),
        "kernel": (3, 3),
        "stride": (2, 2),
        "dilation": (1, 1),
        "padding": ((1, 1), (1, 1)),
    }
    return geometry.LayerGeometry(**(fields | changes))


@pytest.mark.parametrize(
    ("layers", "around", "sizes"),
    [
        (RESNET, 224, [225, 193, 257]),
        (RESNET, 227, [225, 257, 193]),
        (CIFAR, 32, [33, 29, 37]),
        (CIFAR, 33, [33, 37, 29]),
        (VGG, 224, [224, 256, 192]),
        ([(11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 2, 0)], 224, [223, 255, 191]),
        ([(3, 1, 1)], 10, [10, 11, 9]),
    ],
)
def test_nearest_sizes_come_first_and_the_larger_of_two_as_near(layers, around, sizes):
    assert geometry.even_input_sizes(layers, around) == sizes


plain_networks = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4
)


@given(plain_networks, st.integers(2, 60))
def test_all_even_sizes_are_found_and_no_other(layers, around):
    found = geometry.even_input_sizes(layers, around, count=1000)
    assert found == sorted(found, key=lambda size: (abs(size - around), -size))
    assert sorted(found) == [size for size in range(1, 2 * around) if is_even(layers, size)]


def test_reach_and_count_bound_the_search():
    assert geometry.even_input_sizes(RESNET, 224, count=1) == [225]
    assert geometry.even_input_sizes(RESNET, 224, reach=20) == [225]
    assert geometry.even_input_sizes(RESNET, 209, reach=10) == []


def test_each_axis_of_a_rectangle_is_searched_by_itself():
    assert geometry.even_input_sizes(RESNET, (180, 240), count=2) == [(193, 225), (193, 257)]
    assert geometry.even_input_sizes([((3, 2), (2, 1), 0)], (8, 8), count=1) == [(9, 8)]


def test_same_padding_is_worked_out_anew_at_every_size():
    layers = [(3, 2, "SAME"), (3, 2, "SAME")]
    assert geometry.layers_at(layers, 8)[0].padding == ((0, 1), (0, 1))
    assert geometry.layers_at(layers, 9)[0].padding == ((1, 1), (1, 1))
    assert geometry.even_input_sizes(layers, 8) == [9, 5, 13]


def test_four_taps_of_blur_are_even_on_even_maps():
    assert geometry.even_input_sizes([(4, 2, (1, 2))], 9) == [10, 8, 12]


def test_asymmetric_padding_at_stride_one_is_no_matter_of_the_size():
    assert geometry.even_input_sizes([(2, 1, (0, 1))], 9, count=1) == [9]


def test_layers_follow_the_maps_they_read():
    rows = [
        row("stem"),
        row("main", reads=(0,), input_size=(4, 4), output_size=(2, 2)),
        row("shortcut", reads=(0,), input_size=(4, 4), output_size=(2, 2), kernel=(1, 1)),
        row("next", reads=(1, 2), input_size=(2, 2), output_size=(2, 2), stride=(1, 1)),
    ]
    rows[2] = row("shortcut", reads=(0,), kernel=(1, 1), padding=((0, 0), (0, 0)))
    moved = geometry.layers_at(rows, 17)
    assert [r.input_size[0] for r in moved] == [17, 9, 9, 5]
    assert [r.output_size[0] for r in moved] == [9, 5, 5, 5]
    assert geometry.even_input_sizes(rows, 8) == [9, 5, 13]


def test_a_transposed_layer_grows_with_its_input():
    up = row("up", kind="transposed", upsampling=(2, 2), stride=(1, 1), kernel=(2, 2))
    assert geometry.layers_at([up], 5)[0].output_size == (10, 10)


def test_a_map_of_one_pixel_stays_so_wherever_it_comes_from():
    gate = row("gate", reads=None, input_size=(1, 1), kernel=(1, 1), padding=((0, 0), (0, 0)))
    assert geometry.layers_at([row(), gate], 20)[1].input_size == (1, 1)


def test_rows_that_do_not_say_enough_are_refused_by_name():
    with pytest.raises(ValueError, match="lost: its input size does not follow"):
        geometry.even_input_sizes([row("lost", reads=None)], 8)
    with pytest.raises(ValueError, match=r"conv: a kernel of 3 .* more than the 2"):
        geometry.layers_at([row(padding=((0, 0), (0, 0)))], 2)
    rows = [row("a"), row("b", padding=((0, 0), (0, 0))), row("sum", reads=(0, 1))]
    with pytest.raises(ValueError, match="sum: the maps it reads differ in size"):
        geometry.layers_at(rows, 8)
    with pytest.raises(ValueError, match="first and second read inputs of different sizes"):
        geometry.layers_at([row("first"), row("second", input_size=(4, 4))], 8)
    with pytest.raises(ValueError, match="layer 2: got"):
        geometry.layers_at([(3, 1, 1), (3, 1)], 8)
    with pytest.raises(ValueError, match="need an input size"):
        geometry.layers_at([(3, 1, 1)])


def test_a_function_of_the_size_is_judged_at_every_size():
    asked = []

    def cropped(size):
        # A network that first crops its image to a multiple of four, and one more.
        asked.append(size)
        return geometry.layers_at([(3, 2, 1)], size - size % 4 + 1)

    assert geometry.even_input_sizes(cropped, 10) == [10, 11, 9]
    assert len(asked) <= 4


def test_a_function_with_fixed_padding_is_asked_only_a_few_times():
    asked = []

    def resnet(size):
        asked.append(size)
        return geometry.layers_at(RESNET, size)

    assert geometry.even_input_sizes(resnet, 224) == [225, 193, 257]
    assert sorted(asked) == [193, 224, 225, 257]


def test_a_function_whose_padding_depends_on_the_size_gives_the_exact_answer():
    def same(size):
        return geometry.layers_at([(3, 2, "SAME"), (2, 2, "SAME")], size)

    wanted = [size for size in range(1, 40) if all(r.even for r in same(size))]
    assert sorted(geometry.even_input_sizes(same, 20, count=100)) == wanted


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (224, "uneven at 5 of 5 strided layers; 225 is the nearest size where none is"),
        (227, "uneven at 1 of 5 strided layers; 225 is the nearest size where none is"),
        (225, "even at all 5 strided layers"),
        ((224, 192), "uneven at 5 of 5 strided layers; 225x193 is the nearest size where none is"),
    ],
)
def test_the_verdict_in_one_sentence(size, sentence):
    rows = geometry.layers_at(RESNET, size)
    assert geometry.advise(rows).verdict == sentence
    audited = geometry.advise(rows, lambda size: geometry.layers_at(RESNET, size))
    assert audited.verdict == sentence


def test_the_verdict_where_no_size_helps_and_where_none_is_needed():
    rows = geometry.layers_at(RESNET, 209)
    assert geometry.advise(rows, reach=10).verdict.endswith("; no size nearby where none is")
    assert geometry.advise(rows[2:3]).verdict.startswith("no strided layers")
    assert geometry.advise([]).verdict == "neither convolutions nor pooling windows"
    (even,) = geometry.layers_at([(3, 2, 1)], 9)
    assert geometry.advise([even]).verdict == "even at the one strided layer"


def test_layers_of_one_tap_are_not_counted_but_do_move_the_advice():
    # A shortcut of one tap between two-by-two pools: no padding anywhere, yet it drops a row.
    rows = geometry.layers_at([(2, 2, 0), (1, 2, 0)], 10)
    advice = geometry.advise(rows)
    assert (advice.strided, advice.uneven, advice.nearest) == (1, 0, None)
    assert not rows[1].even or rows[1].input_size == (5, 5)


def test_a_function_is_only_advised_sizes_at_which_its_maps_fit():
    # Down by a convolution and up by a transposed one: only even sizes come back to themselves.
    axes = ("NHWC", "HWIO", "NHWC")

    def unet(images):
        down = lax.conv_general_dilated(
            images, jnp.ones((3, 3, 3, 4)), (2, 2), ((1, 1), (1, 1)), dimension_numbers=axes
        )
        up = lax.conv_transpose(down, jnp.ones((2, 2, 4, 4)), (2, 2), "VALID")
        whole = jnp.concatenate([up, images], -1)
        return lax.conv_general_dilated(
            whole, jnp.ones((3, 3, 7, 2)), (1, 1), "SAME", dimension_numbers=axes
        )

    def rows_at(size):
        return geometry.audit(unet, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))

    rows = rows_at(32)
    assert rows[0].uneven == (1, 1)
    assert geometry.even_input_sizes(rows_at, 32) == geometry.even_input_sizes(rows, 32) == []


def test_our_unet_runs_at_every_size_that_it_is_advised():
    module = models.create("unet", num_classes=3)

    def rows_at(size):
        return geometry.audit_module(module, size)

    assert geometry.advise(rows_at(32), rows_at, 32).nearest == 33
    for size in geometry.even_input_sizes(rows_at, 32, count=2):
        assert all(row.even for row in rows_at(size) if row.strided)
