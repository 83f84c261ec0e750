import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr

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


def test_the_body_of_a_scan_is_listed_once_with_its_turns():
    def scanned(params, x):
        x = conv(x, params["stem"]["kernel"], 2)

        def block(x, kernel):
            y = conv(jax.nn.relu(x), kernel)
            return x + y, y.mean()

        x, _ = lax.scan(block, x, params["blocks"]["kernel"])
        return conv(x, params["head"]["kernel"])

    params = {
        "stem": {"kernel": KERNEL},
        "blocks": {"kernel": array(5, 3, 3, 3, 3)},
        "head": {"kernel": KERNEL},
    }
    rows = geometry.audit(lambda v, x: scanned(v["params"], x), {"params": params}, IMAGE)
    assert [row.layer for row in rows] == ["stem", "blocks", "head"]
    assert [row.repeats for row in rows] == [1, 5, 1]
    assert [row.reads for row in rows] == [(-1,), (0,), (0, 1)]
    assert rows[1].input_size == (5, 6)


def test_loops_over_constants_that_take_in_data_are_followed():
    def recurrent(x, w):
        state = jnp.zeros(x.shape)
        state = lax.fori_loop(0, 3, lambda _, s: conv(s, w) + x, state)
        return lax.while_loop(lambda s: s.sum() < 3, lambda s: conv(s, w, 1, "SAME"), state)

    rows = geometry.audit(recurrent, IMAGE, KERNEL)
    assert [(row.input_size, row.repeats) for row in rows] == [((10, 12), 3), ((10, 12), 1)]


def with_the_parameters_of_jax_0_11(jaxpr):
    """The jaxpr with the private parameters that scans have had since JAX 0.11."""
    counts = {"num_consts", "num_carry", "linear", "cond_nconsts", "body_nconsts"}

    def renamed(eqn):
        params = {
            name: with_the_parameters_of_jax_0_11(value)
            if isinstance(value, ClosedJaxpr)
            else value
            for name, value in eqn.params.items()
            if name not in counts
        }
        more = {"ft_in": object(), "ft_out": object()} if eqn.primitive.name == "scan" else {}
        return eqn.replace(params={**params, **more})

    inner = jaxpr.jaxpr
    return jaxpr.replace(jaxpr=inner.replace(eqns=[renamed(eqn) for eqn in inner.eqns]))


def test_loops_are_read_alike_with_the_parameters_of_jax_from_0_11_on(monkeypatch):
    def looped(x, params):
        def block(carry, scanned):
            kernel, scale = scanned
            y = conv(carry[0], kernel) * scale + conv(carry[0], params["shared"])
            return (y, carry[1] + 1), (y.mean(), y)

        (x, _), (_, maps) = lax.scan(block, (x, 0), (params["each"], params["scales"]))
        bound, step = params["scales"][0], params["scales"][1]
        x = lax.while_loop(
            lambda s: s.sum() < bound + step, lambda s: conv(s, params["loop"]) * bound, x
        )
        return conv(x + maps[0], params["head"], 2)

    params = dict.fromkeys(("shared", "loop", "head"), KERNEL)
    params |= {"each": array(5, 3, 3, 3, 3), "scales": array(5)}
    wanted = geometry.audit(looped, IMAGE, params)
    assert [row.layer for row in wanted] == ["each", "shared", "loop", "head"]
    assert [row.repeats for row in wanted] == [5, 5, 1, 1]
    make_jaxpr = jax.make_jaxpr

    def of_newer_jax(function):
        return lambda *arguments: with_the_parameters_of_jax_0_11(make_jaxpr(function)(*arguments))

    monkeypatch.setattr(jax, "make_jaxpr", of_newer_jax)
    assert geometry.audit(looped, IMAGE, params) == wanted


def test_maps_scanned_one_by_one_keep_their_axes():
    row = only(
        geometry.audit(
            lambda x, w: lax.map(lambda image: conv(image[None], w, 2), x), IMAGE, KERNEL
        )
    )
    assert (row.input_size, row.uneven, row.repeats) == ((10, 12), (1, 1), 2)


def test_a_layer_shared_by_branches_counts_once():
    def switched(which, x, params):
        def branch(move):
            return lambda x: conv(jax.nn.relu(conv(move(x), params["a"])), params["b"])

        x = lax.switch(which, [branch(lambda x: x), branch(lambda x: -x), lambda x: x], x)
        return conv(x, params["c"])

    params = {"a": KERNEL, "b": KERNEL, "c": KERNEL}
    rows = geometry.audit(switched, jax.ShapeDtypeStruct((), jnp.int32), IMAGE, params)
    assert [row.layer for row in rows] == ["a", "b", "c"]
    assert [row.reads for row in rows] == [(-1,), (0,), (-1, 1)]


def test_branches_with_different_padding_are_all_listed():
    def either(which, x, w):
        return lax.cond(which, lambda x: conv(x, w, 2), lambda x: conv(x, w, 2, "SAME"), x)

    rows = geometry.audit(either, jax.ShapeDtypeStruct((), bool), IMAGE, KERNEL)
    assert [row.padding[0] for row in rows] == [(0, 1), (1, 1)]


def test_branches_read_the_maps_that_are_added_or_put_together():
    def network(p, x):
        stem = conv(x, p["stem"])
        y = stem + conv(jax.nn.relu(stem), p["a"])
        gate = jax.nn.sigmoid(conv(y.mean((1, 2), keepdims=True), p["gate"], 1, "VALID"))
        y = y * gate
        wide = jnp.concatenate([y, conv(y, p["b"])], axis=-1)
        return conv(wide, p["c"]) + conv(x, p["skip"])

    params = dict.fromkeys(("stem", "a", "b", "skip"), KERNEL)
    params |= {"gate": array(1, 1, 3, 3), "c": array(3, 3, 6, 3)}
    rows = {row.layer: row for row in geometry.audit(network, params, IMAGE)}
    assert list(rows) == ["stem", "a", "gate", "b", "c", "skip"]
    assert rows["b"].reads == (0, 1)
    assert rows["c"].reads == (0, 1, 3)
    assert rows["gate"].reads is None
    assert rows["skip"].reads == (-1,)
    assert geometry.even_input_sizes(list(rows.values()), 20, count=1) == [20]


def test_parameters_added_to_a_map_are_not_the_networks_input():
    def network(p, x):
        x = conv(x, p["a"]["kernel"], 2) + p["position"]
        return conv(x, p["b"]["kernel"])

    params = {"a": {"kernel": KERNEL}, "b": {"kernel": KERNEL}, "position": array(1, 5, 6, 3)}
    assert [row.reads for row in geometry.audit(network, params, IMAGE)] == [(-1,), (0,)]


def test_a_strided_slice_of_a_map_is_a_layer():
    def network(x, w):
        x = conv(x, w)
        main = conv(x, w, 2)
        shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 0)))
        return conv(main + shortcut, w)

    rows = geometry.audit(network, IMAGE, KERNEL)
    assert [row.kind for row in rows] == ["conv", "conv", "subsample", "conv"]
    assert (rows[2].layer, rows[2].kernel, rows[2].stride) == ("subsample_1", (1, 1), (2, 2))
    assert (rows[2].uneven, rows[2].output_size) == ((1, 1), (5, 6))
    assert [row.reads for row in rows] == [(-1,), (0,), (0,), (1, 2)]


def test_a_slice_of_the_channels_is_no_layer():
    def network(x, w):
        x = conv(x, w)
        return conv(jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1), w)

    assert [row.reads for row in geometry.audit(network, IMAGE, KERNEL)] == [(-1,), (0,)]


def test_a_blur_by_shifted_slices_reads_as_its_windows():
    def blurred(x, w):
        x = jnp.pad(conv(x, w), ((0, 0), (1, 2), (1, 2), (0, 0)), mode="reflect")
        for axis in (1, 2):
            end = x.shape[axis] - 3
            x = sum(lax.slice_in_dim(x, i, i + end, 2, axis) * 0.25 for i in range(4))
        return x.mean((1, 2))

    _, blur = geometry.audit(blurred, IMAGE, KERNEL)
    assert (blur.kind, blur.kernel, blur.stride) == ("subsample", (4, 4), (2, 2))
    assert (blur.padding, blur.padding_mode) == (((1, 2), (1, 2)), "reflect")
    assert (blur.uneven, blur.even, blur.output_size) == ((1, 1), True, (5, 6))


def test_a_blur_by_a_constant_depthwise_kernel_reads_as_its_windows():
    blur = np.full((3, 3, 1, 3), 1 / 9, np.float32)

    def blurred(x, w):
        x = jnp.pad(conv(x, w), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return conv(x, blur, 2, "VALID", feature_group_count=3)

    _, row = geometry.audit(blurred, IMAGE, KERNEL)
    assert (row.layer, row.kind, row.padding_mode) == ("depthwise_1", "depthwise", "reflect")
    assert row.uneven == (1, 1)


def phases(x):
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: jnp.concatenate(phases(x), axis=-1)[..., :3],
        lambda x: sum(p * w for p, w in zip(phases(x), jnp.ones(4), strict=True)),
        lambda x: jnp.stack(phases(x))[jnp.argmax(jnp.stack([p.sum() for p in phases(x)]))],
        lambda x: functools.reduce(jnp.maximum, phases(x)),
    ],
)
def test_polyphase_components_together_are_one_layer(choose):
    def network(x, w):
        y = choose(conv(x, w))
        return conv(y, w)

    rows = geometry.audit(network, IMAGE, KERNEL)
    assert [row.kind for row in rows] == ["conv", "subsample", "conv"]
    assert (rows[1].kernel, rows[1].stride, rows[1].uneven) == ((2, 2), (2, 2), (0, 0))
    assert [row.reads for row in rows] == [(-1,), (0,), (1,)]
