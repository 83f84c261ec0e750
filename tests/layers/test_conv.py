import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from kernsym_jax import geometry, models
from kernsym_jax.layers import PADDINGS, Conv, layer_padding

NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def correlate(x, kernel, stride=1, dilation=1, groups=1):
    """Cross-correlation of an already padded map, tap by tap in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    kh, kw, per_group, out = kernel.shape
    height = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    y = np.zeros((x.shape[0], height, width, out))
    for group in range(groups):
        inputs = x[..., group * per_group : (group + 1) * per_group]
        outputs = slice(group * out // groups, (group + 1) * out // groups)
        for i, j in itertools.product(range(kh), range(kw)):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            y[..., outputs] += inputs[:, rows, columns] @ kernel[i, j, :, outputs]
    return y


def random_map(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


CASES = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 5, "stride": 3, "pad": 1},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 3, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "groups": 4, "stride": 2, "use_bias": False},
]


@pytest.mark.parametrize("padding", [p for p in PADDINGS if p != "partial"])
def test_a_convolution_equals_the_correlation_with_the_padded_map(padding):
    x = random_map(2, 9, 8, 4)
    for fields in CASES:
        layer = Conv(8, padding=padding, bias_init=nn.initializers.normal(), **fields)
        variables = layer.init(jax.random.key(0), x)
        stride, dilation = fields.get("stride", 1), fields.get("dilation", 1)
        kernel = variables["params"]["kernel"]
        amounts = layer_padding(
            (9, 8), kernel.shape[:2], (stride,) * 2, padding, fields.get("pad"), (dilation,) * 2
        )
        padded = np.pad(x, ((0, 0), *amounts, (0, 0)), mode=NUMPY_MODES.get(padding, "constant"))
        wanted = correlate(padded, kernel, stride, dilation, fields.get("groups", 1))
        wanted = wanted + np.asarray(variables["params"].get("bias", 0.0))
        np.testing.assert_allclose(layer.apply(variables, x), wanted, atol=1e-5, err_msg=fields)


def test_kernels_are_height_width_in_out_and_float32_while_bfloat16_is_computed():
    x = random_map(1, 6, 6, 4)
    layer = Conv(6, (3, 1), groups=2, padding="partial", dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 1, 2, 6)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), layer.clone(dtype=jnp.float32).apply(variables, x), atol=0.1
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
def test_pixels_take_part_in_as_many_windows_as_the_arithmetic_says(padding, stride):
    layer = Conv(1, 5, stride, padding, use_bias=False)
    variables = {"params": {"kernel": jnp.ones((5, 5, 1, 1))}}
    counts = jax.grad(lambda x: layer.apply(variables, x).sum())(jnp.ones((1, 8, 9, 1)))
    wanted = geometry.foveation((8, 9), 5, stride, padding_mode=padding)
    np.testing.assert_allclose(counts[0, :, :, 0], wanted, rtol=1e-6)


class Net(nn.Module):
    """Gives a layer a path, as it has in a network."""

    layer: nn.Module

    def setup(self):
        self.block = self.layer

    def __call__(self, x):
        return self.block(x)


def error_of(layer, *shape):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the callers look at the message
        Net(layer).init(jax.random.key(0), jnp.zeros(shape))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reflect_padding_wider_than_the_map_less_one_names_the_layer():
    message = error_of(Conv(1, 5, padding="reflect"), 1, 2, 8, 1)
    assert message.startswith("layer: reflect padding by 2")
    assert "2x8" in message


@pytest.mark.parametrize("padding", ["circular", "symmetric"])
def test_other_copying_modes_reach_no_farther_than_the_map(padding):
    assert Conv(1, 5, padding=padding).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    assert error_of(Conv(1, 7, padding=padding), 1, 2, 8, 1).startswith(f"layer: {padding}")


def test_an_unknown_padding_names_the_layer_and_the_choice():
    message = error_of(Conv(1, padding="mirror"), 1, 4, 4, 1)
    assert message.startswith("layer: unknown padding 'mirror'")
    assert "reflect" in message


def test_a_kernel_larger_than_the_padded_map_names_the_layer():
    message = error_of(Conv(1, 3, padding="valid", dilation=2), 1, 4, 9, 1)
    assert message.startswith("layer: kernel 3x3 with dilation 2x2 spans 5 pixels")


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_empty_map_names_the_layer(padding):
    assert error_of(Conv(1, 3, padding=padding), 1, 0, 4, 1).startswith("layer: the input map is")


def test_groups_that_do_not_divide_the_channels_name_the_layer():
    assert error_of(Conv(4, groups=2), 1, 4, 4, 3).startswith("layer: 2 groups do not divide 3")


def test_the_initialiser_runs_once_and_a_kernel_of_another_shape_is_refused_by_name():
    made = []

    def kernel_init(key, shape):
        made.append(shape)
        return jnp.ones(shape)

    conv, x = Conv(4, 3, kernel_init=kernel_init), jnp.ones((1, 5, 5, 2))
    variables = conv.init(jax.random.key(0), x)
    conv.apply(variables, x)
    assert made == [(3, 3, 2, 4)]
    network = models.create("small_cnn", width=4)
    trained = network.init(jax.random.key(0), x)
    trained["params"]["conv2"]["kernel"] = jnp.ones((5, 5, 4, 4))
    with pytest.raises(errors.ScopeParamShapeError, match="conv2"):
        network.apply(trained, x)
    with pytest.raises(errors.ScopeParamNotFoundError, match="bias"):
        conv.apply({"params": {"kernel": variables["params"]["kernel"]}}, x)
