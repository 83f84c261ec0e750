import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from kernsym_jax import geometry
from kernsym_jax.layers import PADDINGS, Conv, by_products
from kernsym_jax.layers.conv import convolve

ONE = ((1, 1), (1, 1))


def plain(x, kernel, stride=(1, 1), amounts=ONE, dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        amounts,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def close(ours, wanted, message=""):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=message),
        ours,
        wanted,
    )


# Kernel, stride, padding and dilation.
PLACES = [
    ((3, 3), (1, 1), ONE, (1, 1)),
    ((3, 3), (2, 2), ONE, (1, 1)),
    ((3, 3), (3, 1), ((1, 2), (2, 0)), (1, 1)),
    ((3, 3), (1, 2), ((5, 5), (3, 4)), (2, 3)),
    ((5, 3), (1, 1), ((2, 2), (1, 1)), (1, 1)),
    ((1, 5), (1, 1), ((0, 0), (2, 2)), (1, 1)),
    ((3, 3), (1, 1), ((4, 4), (4, 4)), (1, 1)),
    ((3, 2), (2, 1), ((2, 0), (0, 1)), (1, 1)),
]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 4), (3, 3), (4, 2)], ids=str)
def test_results_and_both_gradients_are_those_of_the_plain_convolution(size):
    def all_three(function, x, weight):
        y, transposed = jax.vjp(function, x, weight)
        return y, transposed(jnp.sin(y))

    for kernel, *rest in PLACES:
        place = dict(zip(("stride", "amounts", "dilation"), rest, strict=True))
        x, weight = arrays((2, *size, 3), (*kernel, 3, 4))
        ours, products, wanted = (
            jax.jit(all_three, static_argnums=0)(functools.partial(f, **place), x, weight)
            for f in (convolve, by_products(convolve), plain)
        )
        close(ours, wanted, f"{kernel} {place}")
        close(products, wanted, f"{kernel} {place}")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_on_a_small_map_equals_its_plain_convolution(padding, stride, monkeypatch):
    (x,) = arrays((4, 3, 3, 4))
    for fields in ({"kernel_size": 3}, {"kernel_size": (3, 1)}, {"kernel_size": 3, "groups": 2}):
        layer = Conv(6, stride=stride, padding=padding, **fields)
        variables = layer.init(jax.random.key(0), x)

        def loss(variables, x, layer=layer):
            return jnp.square(layer.apply(variables, x)).sum()

        ours = jax.value_and_grad(loss, (0, 1))(variables, x)
        with monkeypatch.context() as patch:
            patch.setattr(
                "kernsym_jax.layers.conv.convolve", lambda x, k, **place: plain(x, k, **place)
            )
            wanted = jax.value_and_grad(loss, (0, 1))(variables, x)
        close(ours, wanted, str(fields))


def test_a_cpu_program_of_a_small_map_has_no_convolution():
    same = functools.partial(convolve, amounts=ONE)
    small, kernel = arrays((2, 2, 2, 4), (3, 3, 4, 4))

    def gradients(x, kernel):
        return jax.grad(lambda *xs: jnp.square(same(*xs)).sum(), (0, 1))(x, kernel)

    assert "convolution(" not in compiled(gradients, small, kernel)
    assert "convolution(" in compiled(lambda *xs: plain(*xs), small, kernel)


def test_each_part_has_the_form_that_suits_its_own_map():
    def step(x, kernel):
        return convolve(x, kernel, stride=(2, 2), amounts=ONE)

    x, kernel = arrays((2, 4, 4, 3), (3, 3, 3, 4))
    y = step(x, kernel)
    assert "convolution(" in compiled(step, x, kernel)
    by_map = compiled(lambda x, y: jax.vjp(lambda x: step(x, kernel), x)[1](y), x, y)
    assert "convolution(" not in by_map
    by_kernel = compiled(lambda k, y: jax.vjp(lambda k: step(x, k), k)[1](y), kernel, y)
    assert "convolution(" in by_kernel


def test_programs_for_accelerators_are_the_plain_convolution():
    x, kernel = arrays((2, 2, 2, 4), (3, 3, 4, 4))

    def loss(function):
        return jax.grad(lambda x, k: jnp.square(function(x, k)).sum(), (0, 1))

    def exported(function, platform):
        return jax.export.export(jax.jit(loss(function)), platforms=[platform])(x, kernel)

    same = functools.partial(convolve, amounts=ONE)
    for platform in ("cuda", "tpu"):
        ours, wanted = (exported(f, platform).mlir_module() for f in (same, plain))
        assert ours.count("stablehlo.convolution") == wanted.count("stablehlo.convolution")
        assert "dot_general" not in ours
    assert "stablehlo.convolution" not in exported(same, "cpu").mlir_module()


def test_maps_of_common_size_and_groups_are_traced_as_the_plain_convolution():
    for size, groups in ((3, 1), (2, 2)):
        x, kernel = arrays((2, size, size, 4), (3, 3, 4 // groups, 4))
        jaxpr = jax.make_jaxpr(lambda x, k, g=groups: convolve(x, k, amounts=ONE, groups=g))
        assert [e.primitive.name for e in jaxpr(x, kernel).eqns] == ["conv_general_dilated"]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernel_gradient_of_a_large_map_is_summed_over_parts_of_the_batch(stride):
    x, kernel = arrays((24, 32, 32, 24), (3, 3, 24, 8))
    place = {"stride": (stride, stride), "amounts": ONE}

    def gradients(function, x, kernel):
        def loss(x, kernel):
            return jnp.sin(function(x, kernel, **place)).sum()

        return jax.grad(loss, (0, 1))(x, kernel)

    ours, wanted = (jax.jit(functools.partial(gradients, f))(x, kernel) for f in (convolve, plain))
    for a, b in zip(ours, wanted, strict=True):  # sums of thousands of terms
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    # Result, gradient of the map, and the parts: all 24 images take 3 MiB, or 2.5 with a step.
    text = compiled(functools.partial(gradients, convolve), x, kernel)
    assert text.count(" convolution(") == 2 + 2
    text = compiled(functools.partial(gradients, plain), x, kernel)
    assert text.count(" convolution(") == 2 + 1


@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_every_order_and_mode_exist(stride):
    x, kernel = arrays((2, 3, 2, 2), (3, 3, 2, 2))

    def energy(x, kernel):
        return jnp.sin(convolve(x, kernel, stride=(stride, stride), amounts=ONE)).sum()

    check_grads(energy, (x, kernel), order=2, modes=("fwd", "rev"), atol=0.05, rtol=0.05)
    place = {"stride": (stride, stride), "amounts": ONE}

    def curvature(function):
        loss = lambda x, k: jnp.sin(function(x, k, **place)).sum()  # noqa: E731
        gradient = jax.grad(loss, (0, 1))
        return jax.jvp(gradient, (x, kernel), (kernel[:2, :, :, :].reshape(x.shape), kernel))

    close(curvature(convolve), curvature(plain))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_maps_kernels_and_both(axes):
    x, kernel = arrays((3, 2, 2, 2, 4), (3, 3, 3, 4, 4))
    arguments = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]

    def gradients(function):
        def loss(x, kernel):
            return jnp.square(function(x, kernel, amounts=ONE)).sum()

        return jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(*arguments)

    close(gradients(convolve), gradients(plain))


def test_pmap_and_a_sharded_batch_give_the_same():
    x, kernel = arrays((16, 2, 2, 4), (3, 3, 4, 4))

    def gradient(kernel, x):
        return jax.grad(lambda k: jnp.square(convolve(x, k, amounts=ONE)).sum())(kernel)

    wanted = gradient(kernel, x)
    parts = x.reshape(8, 2, *x.shape[1:])
    close(jax.pmap(gradient, in_axes=(None, 0))(kernel, parts).sum(0), wanted)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    close(jax.jit(gradient)(kernel, jax.device_put(x, spec)), wanted)


def test_bfloat16_is_summed_in_float32():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((8, 2, 2, 64), (3, 3, 64, 16)))
    y = convolve(x, kernel, amounts=ONE)
    assert y.dtype == jnp.bfloat16
    exact = plain(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_array_equal(
        np.abs(y.astype(jnp.float32) - exact) <= np.abs(exact) * 2.0**-8 + 1e-4, True
    )
    gradients = jax.grad(lambda x, k: convolve(x, k, amounts=ONE).sum(), (0, 1))(x, kernel)
    assert {g.dtype for g in gradients} == {jnp.dtype("bfloat16")}


def test_a_first_layer_does_not_pay_for_the_gradient_of_its_images():
    x, kernel = arrays((2, 2, 2, 3), (3, 3, 3, 4))

    def loss(kernel, x):
        return jnp.square(convolve(x, kernel, amounts=ONE)).sum()

    # The result and each gradient take a product per pixel.
    assert compiled(jax.grad(loss), kernel, x).count(" dot(") == 8
    assert compiled(jax.grad(loss, (0, 1)), kernel, x).count(" dot(") == 12


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_audit_sees_one_convolution_as_it_is_written(size, stride):
    layer = Conv(4, 3, stride)
    x = jax.ShapeDtypeStruct((1, size, size, 2), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    for call in (layer.apply, jax.jit(layer.apply)):
        (row,) = geometry.audit(call, variables, x)
        assert (row.kind, row.kernel, row.stride) == ("conv", (3, 3), (stride, stride))
        assert (row.padding, row.input_size) == (ONE, (size, size))
        assert row.output_size == (-(-size // stride),) * 2
