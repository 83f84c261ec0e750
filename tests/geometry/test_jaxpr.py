import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from kernsym_jax import geometry

NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


IMAGE, KERNEL = array(2, 10, 12, 3), array(3, 3, 3, 3)


def conv(x, kernel, stride=1, padding=((1, 1), (1, 1)), **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC, **options
    )


def only(rows):
    (row,) = rows
    return row


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * 2),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_a_plain_convolution_reads_as_it_was_written(size, kernel, stride, padding, dilation):
    def plain(image, weight):
        return lax.conv_general_dilated(image, weight, stride, padding, rhs_dilation=dilation)

    arguments = array(1, 2, *size), array(4, 2, *kernel)
    try:
        expected = geometry.windows(size, kernel, stride, padding, dilation)
    except ValueError:
        with pytest.raises(ValueError, match=r"^conv_1: "):
            geometry.audit(plain, *arguments)
        return
    row = only(geometry.audit(plain, *arguments))
    assert (row.layer, row.kind, row.groups, row.reads) == ("conv_1", "conv", 1, (-1,))
    assert (row.input_size, row.kernel, row.stride) == (size, kernel, stride)
    assert (row.padding, row.dilation) == (padding, dilation)
    assert row.output_size == jax.eval_shape(plain, *arguments).shape[2:]
    assert row.uneven == tuple(axis.uneven for axis in expected)


@pytest.mark.parametrize(
    ("layout", "image", "kernel"),
    [
        (("NHWC", "HWIO", "NHWC"), (2, 8, 9, 3), (5, 3, 3, 4)),
        (("NCHW", "OIHW", "NCHW"), (2, 3, 8, 9), (4, 3, 5, 3)),
        (("NCHW", "HWIO", "NHWC"), (2, 3, 8, 9), (5, 3, 3, 4)),
        (("HWNC", "OHWI", "CHWN"), (8, 9, 2, 3), (4, 5, 3, 3)),
    ],
)
def test_every_layout_reads_the_same(layout, image, kernel):
    def network(x, w):
        x = lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=layout)
        order = [layout[2].index(c) for c in "NHWC"]
        return lax.reduce_window(
            x.transpose(order), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )

    first, pool = geometry.audit(network, array(*image), array(*kernel))
    assert (first.input_size, first.output_size, first.kernel) == ((8, 9), (4, 5), (5, 3))
    assert first.padding == ((1, 2), (1, 1))
    assert (pool.input_size, pool.output_size, pool.reads) == ((4, 5), (2, 2), (0,))
    assert pool.dropped == (0, 1)


def wrapped_in_everything(x, w):
    """conv under jit, custom_jvp, custom_vjp and remat, in turn."""

    @jax.custom_jvp
    def with_jvp(x):
        return conv(x, w)

    @jax.custom_vjp
    def with_vjp(x):
        return conv(x, w)

    with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))
    with_vjp.defvjp(lambda x: (x, None), lambda _, g: (g,))
    x = jax.jit(functools.partial(conv, kernel=w))(x)
    x = with_vjp(with_jvp(x))
    return jax.checkpoint(conv)(jnp.tanh(x), w)


def test_layers_are_found_under_every_transformation():
    rows = geometry.audit(wrapped_in_everything, IMAGE, KERNEL)
    assert [row.reads for row in rows] == [(-1,), (0,), (1,), (2,)]
    params = {"block": {"kernel": KERNEL}}
    named = geometry.audit(
        lambda x, p: wrapped_in_everything(x, p["block"]["kernel"]), IMAGE, params
    )
    assert [row.layer for row in named] == ["block"] * 4


def test_shard_map_shows_what_each_device_sees():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(
        lambda x, w: conv(x, w, 2), mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
    )
    rows = geometry.audit(
        lambda x, p: conv(sharded(x, p["a"]), p["b"]),
        array(8, 10, 12, 3),
        {"a": KERNEL, "b": KERNEL},
    )
    assert [(row.layer, row.input_size) for row in rows] == [("a", (10, 12)), ("b", (5, 6))]


def test_vmap_over_images_or_weights_changes_no_geometry():
    def network(x, p):
        x = jnp.pad(x, ((0, 0), (1, 2), (3, 1), (0, 0)), mode="reflect")
        return lax.reduce_window(
            conv(x, p["w"], 2, "VALID"), -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
        )

    expected = [
        (r.input_size, r.padding, r.stride) for r in geometry.audit(network, IMAGE, {"w": KERNEL})
    ]
    images = geometry.audit(jax.vmap(network, (0, None)), array(5, *IMAGE.shape), {"w": KERNEL})
    assert [(r.input_size, r.padding, r.stride) for r in images] == expected
    weights = geometry.audit(jax.vmap(network, (None, 0)), IMAGE, {"w": array(5, *KERNEL.shape)})
    assert [(r.input_size, r.padding, r.stride) for r in weights] == expected
    both = geometry.audit(jax.vmap(network), array(5, *IMAGE.shape), {"w": array(5, *KERNEL.shape)})
    assert [(r.input_size, r.padding, r.stride) for r in both] == expected
    assert both[0].layer == "w"


def pool(x, op, start, window, stride, padding="VALID"):
    return lax.reduce_window(x, start, op, (1, *window, 1), (1, *stride, 1), padding)


def test_pooling_windows_are_layers():
    def pooled(x):
        x = pool(x, lax.max, -jnp.inf, (3, 3), (2, 2), "SAME")
        x = pool(x, lax.min, jnp.inf, (2, 2), (1, 1))
        x = pool(x, lax.add, 0.0, (2, 1), (2, 1)) / 2
        return pool(x, lambda a, b: a * b * b, 1.0, (2, 2), (1, 1), "SAME")

    rows = geometry.audit(pooled, array(1, 10, 13, 2))
    kinds = ["max_pool", "min_pool", "avg_pool", "pool"]
    assert [row.kind for row in rows] == kinds
    assert [row.layer for row in rows] == [f"{kind}_1" for kind in kinds]
    assert [row.input_size for row in rows] == [(10, 13), (5, 7), (4, 6), (2, 6)]
    assert rows[0].padding == ((0, 1), (1, 1))
    assert (rows[2].kernel, rows[2].stride) == ((2, 1), (2, 1))
    assert all(row.skew is None for row in rows)


def test_pooling_of_several_arrays_at_once_is_one_layer():
    def arg_max_pool(x):
        places = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)

        def larger(a, b):
            keep = a[0] >= b[0]
            return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

        window = (1, 2, 2, 1)
        start = (-jnp.inf, jnp.int32(0))
        return lax.reduce_window((x, places), start, larger, window, window, "VALID")

    row = only(geometry.audit(arg_max_pool, IMAGE))
    assert (row.kind, row.output_size) == ("pool", (5, 6))


def test_what_only_looks_like_pooling_is_no_layer():
    def network(x, w):
        x = conv(x, w)
        # The number of pixels in each window, as averages without their padding divide by.
        x = x / pool(jnp.ones_like(x), lax.add, 0.0, (3, 3), (1, 1), "SAME")
        # Local response normalisation: windows over the channels.
        squares = lax.reduce_window(x**2, 0.0, lax.add, (1, 1, 1, 3), (1,) * 4, "SAME")
        x = x / jnp.sqrt(1 + squares)
        # A running maximum down the image.
        x = lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 10, 1, 1), (1,) * 4, ((0, 0), (9, 0), (0, 0), (0, 0))
        )
        return conv(x.mean((1, 2), keepdims=True) * x, w)

    rows = geometry.audit(network, IMAGE, KERNEL)
    assert [row.kind for row in rows] == ["conv", "conv"]
    assert [row.reads for row in rows] == [(-1,), (0,)]


def test_kinds_of_convolution():
    def network(p, x):
        x = conv(x, p["grouped"], feature_group_count=2)
        x = conv(x, p["depthwise"], 2, "SAME", feature_group_count=4)
        return lax.conv_transpose(x, p["up"], (2, 2), "SAME", dimension_numbers=NHWC)

    params = {"grouped": array(3, 3, 2, 4), "depthwise": array(3, 3, 1, 8), "up": array(4, 4, 8, 3)}
    grouped, depthwise, up = geometry.audit(network, params, array(1, 8, 8, 4))
    assert [(r.kind, r.groups) for r in (grouped, depthwise, up)] == [
        ("conv", 2),
        ("depthwise", 4),
        ("transposed", 1),
    ]
    assert (up.input_size, up.output_size, up.upsampling) == ((4, 4), (8, 8), (2, 2))
    assert (up.stride, up.padding, up.even, up.skew) == ((1, 1), ((2, 2), (2, 2)), True, None)


def test_rows_are_of_json_types_whatever_the_network_is_written_with():
    two = np.full(2, 2)

    def network(x, w):
        x = jnp.pad(x, [(np.int64(0), 0), two, two, (0, 0)], mode="reflect")
        return lax.conv_general_dilated(
            x, w, two, list(zip(two, two, strict=True)), two, two, NHWC, np.int64(1)
        )

    row = only(geometry.audit(network, IMAGE, KERNEL))
    assert geometry.LayerGeometry.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_have_one_and_three_axes(dims):
    def network(x, w):
        x = lax.conv_general_dilated(x, w, (2,) * dims, [(1, 1)] * dims)
        return lax.reduce_window(
            x, 0.0, lax.add, (1, 1, *(2,) * dims), (1, 1, *(2,) * dims), "VALID"
        )

    convolution, pooling = geometry.audit(
        network, array(1, 2, *(8,) * dims), array(2, 2, *(3,) * dims)
    )
    assert convolution.uneven == (1,) * dims
    assert convolution.skew == {1: "right", 3: "back bottom right"}[dims]
    assert pooling.output_size == (2,) * dims


def test_a_network_of_constants_has_no_layers():
    ones = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
    assert geometry.audit(lambda x: x + conv(*ones).sum(), array()) == []
    assert geometry.audit(lambda x: x @ x, array(3, 3)) == []


def test_gradients_can_be_audited():
    def loss(params, x):
        y = conv(x, params["a"]["kernel"], 2)
        return pool(y, lax.max, -jnp.inf, (2, 2), (2, 2)).sum()

    rows = geometry.audit(jax.grad(loss), {"a": {"kernel": KERNEL}}, IMAGE)
    assert (rows[0].layer, rows[0].uneven) == ("a", (1, 1))


def test_tracing_needs_neither_memory_nor_a_compiler():
    def huge(params, x):
        for kernel in params:
            x = conv(x, kernel, 2)
        return x

    rows = geometry.audit(huge, [array(3, 3, 10**5, 10**5)] * 8, array(1, 10**5, 10**5, 10**5))
    assert rows[-1].output_size == (391, 391)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x, p: conv(x[:, :2], p["conv"]["kernel"], 1, "VALID"), "^conv: its kernel spans 3"),
        (
            lambda x, p: conv(conv(x[:, :2], p["conv"]["kernel"], 1, "VALID"), p["conv"]["kernel"]),
            "^conv: its kernel spans 3 pixels, more than the 2 of its padded input",
        ),
        (lambda x, p: conv(x[:, :0], p["conv"]["kernel"]), "^conv: its input map is empty, 0x12"),
        (lambda x, p: pool(x, lax.max, -jnp.inf, (11, 2), (1, 1)), "^max_pool_1: its kernel spans"),
    ],
)
def test_a_map_that_cannot_be_convolved_is_refused_with_the_layers_name(network, message):
    with pytest.raises(ValueError, match=message) as error:
        geometry.audit(network, IMAGE, {"conv": {"kernel": KERNEL}})
    assert "\n" not in str(error.value)


def test_of_the_forms_for_several_platforms_the_default_is_read():
    def network(x, w):
        product = functools.partial(jnp.einsum, "nhwc,ijcd->nhwd")
        return lax.platform_dependent(x, w, cpu=product, tpu=product, default=conv)

    for form in (network, jax.jit(network), jax.checkpoint(network)):
        row = only(geometry.audit(form, IMAGE, KERNEL))
        assert (row.kind, row.kernel, row.padding) == ("conv", (3, 3), ((1, 1), (1, 1)))
