import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

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


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: w * jnp.asarray(np.eye(3)[:, :, None, None], jnp.float32),
        lambda w: 0.1 * w + 0.0,
        lambda w: (w - w.mean((0, 1, 2), keepdims=True)) / (w.std((0, 1, 2), keepdims=True) + 1e-5),
        lambda w: w.transpose(1, 0, 2, 3)[::-1],
        lambda w: w.reshape(9, 3, 3).reshape(3, 3, 3, 3),
        lambda w: w + jnp.einsum("ar,rb->ab", jnp.ones((27, 2)), jnp.ones((2, 3))).reshape(w.shape),
        lambda w: lax.stop_gradient(jnp.round(w * 8) / 8 - w) + w,
        jax.jit(lambda w: w / jnp.linalg.norm(w)),
    ],
)
def test_weights_are_traced_through_what_is_done_to_them(change):
    variables = {"params": {"layer1": {"conv2": {"kernel": KERNEL, "bias": array(3)}}}}

    def network(variables, x):
        params = variables["params"]["layer1"]["conv2"]
        return conv(x, change(params["kernel"])) + params["bias"].reshape(1, 1, 1, -1)

    assert only(geometry.audit(network, variables, IMAGE)).layer == "layer1/conv2"


def test_the_weights_give_the_name_not_what_they_are_multiplied_with():
    def masked(masks, params, x):
        return conv(x, params["conv"]["kernel"] * masks["conv"]["mask"])

    masks, params = {"conv": {"mask": KERNEL}}, {"conv": {"kernel": KERNEL}}
    assert only(geometry.audit(masked, masks, params, IMAGE)).layer == "conv"


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"params": {"block": {"conv": {"kernel": KERNEL}}}}, "block/conv"),
        ({"block": [{"weight": KERNEL}]}, "block/0"),
        ({"conv1": KERNEL}, "conv1"),
        ([(KERNEL, array(3))], "0/0"),
        (({"w": KERNEL},), "0"),
        ({"w": KERNEL}, "w"),
        (KERNEL, "conv_1"),
    ],
)
def test_layers_are_named_by_the_path_of_their_weights(params, name):
    def network(x, params):
        return conv(x, jax.tree.leaves(params)[0])

    assert only(geometry.audit(network, IMAGE, params)).layer == name


class Convolution:
    """A module of the kind that Equinox has: a pytree with a call."""

    def __init__(self, weight, stride):
        self.weight, self.stride = weight, stride

    def __call__(self, x):
        return conv(x, self.weight, self.stride)


jax.tree_util.register_pytree_with_keys(
    Convolution,
    lambda c: (((jax.tree_util.GetAttrKey("weight"), c.weight),), c.stride),
    lambda stride, children: Convolution(children[0], stride),
)


class Sequence:
    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


jax.tree_util.register_pytree_with_keys(
    Sequence,
    lambda s: (((jax.tree_util.GetAttrKey("layers"), s.layers),), None),
    lambda _, children: Sequence(children[0]),
)


def test_a_module_that_is_a_pytree_names_its_layers():
    model = Sequence(
        [Convolution(jnp.ones((3, 3, 3, 3)), 2), Convolution(jnp.ones((3, 3, 3, 3)), 1)]
    )
    for rows in (
        geometry.audit(model, IMAGE),
        geometry.audit(lambda x: model(x), IMAGE),
        geometry.audit(jax.jit(lambda model, x: model(x)), model, IMAGE),
    ):
        assert [row.layer for row in rows] == ["layers/0", "layers/1"]
        assert [row.stride for row in rows] == [(2, 2), (1, 1)]


def test_what_a_partial_or_a_method_brings_along_gives_names_too():
    params = {"block": {"kernel": jnp.ones((3, 3, 3, 3))}, 3: "not sortable with text"}
    named = {"block": params["block"]}

    def apply(params, x):
        return conv(x, params["block"]["kernel"])

    model = Convolution(jnp.ones((3, 3, 3, 3)), 2)
    model = Sequence([model])
    assert only(geometry.audit(functools.partial(apply, named), IMAGE)).layer == "block"
    assert only(geometry.audit(jax.jit(functools.partial(apply, named)), IMAGE)).layer == "block"
    assert only(geometry.audit(model.__call__, IMAGE)).layer == "layers/0"
    assert only(geometry.audit(lambda x: apply(params, x), IMAGE)).layer == "conv_1"


def test_a_closure_over_bare_arrays_is_audited_too():
    weight = jnp.ones((3, 3, 3, 3))
    rows = geometry.audit(lambda x: conv(jax.nn.relu(conv(x, weight, 2)), weight), IMAGE)
    assert [row.layer for row in rows] == ["conv_1", "conv_2"]


def test_leaves_that_are_no_arrays_are_passed_as_they_are():
    def network(params, x, train, strides):
        assert train is False
        return conv(x, params["a"]["kernel"], strides["a"])

    row = only(geometry.audit(network, {"a": {"kernel": KERNEL}}, IMAGE, False, {"a": 2}))
    assert (row.layer, row.stride) == ("a", (2, 2))


class Block(nn.Module):
    """A Linen block: two convolutions, BatchNorm and pooling."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.relu(
            nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), name="conv1")(x))
        )
        y = nn.max_pool(y, (2, 2), (2, 2))
        return nn.Conv(4, (3, 3), 2, name="conv2")(y)


class Scanned(nn.Module):
    """The same convolution four times over, its weights stacked by ``nn.scan``."""

    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        return body(name="steps")(x, None)[0]


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Conv(x.shape[-1], (3, 3), name="conv")(x), None


def of_linen(module):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), IMAGE)
    return geometry.audit(lambda v, x: module.apply(v, x), variables, IMAGE)


def test_a_linen_module_names_its_layers_by_parameter_path():
    rows = of_linen(Block())
    assert [row.layer for row in rows] == ["conv1", "max_pool_1", "conv2"]
    assert rows[2].padding == ((1, 1), (0, 1))


def test_a_scanned_linen_block_is_one_layer():
    row = only(of_linen(Scanned()))
    assert (row.layer, row.repeats, row.input_size) == ("steps/conv", 4, (10, 12))


class Network(nnx.Module):
    """An NNX module with a list, BatchNorm and dropout."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.stem(x))))
        for block in self.blocks:
            x = x + block(x)
        return x


def test_an_nnx_module_names_its_layers_as_a_function_its_state_or_a_closure():
    model = nnx.eval_shape(lambda: Network(nnx.Rngs(0)))
    model.eval()
    graph, state = nnx.split(model)
    names = ["stem", "blocks/0", "blocks/1"]
    assert [row.layer for row in geometry.audit(model, IMAGE)] == names
    rows = geometry.audit(lambda state, x: nnx.merge(graph, state)(x), state, IMAGE)
    assert [row.layer for row in rows] == names
    assert [row.uneven for row in rows] == [(1, 1), (0, 0), (0, 0)]
    real = Network(nnx.Rngs(0))
    real.eval()
    assert [row.layer for row in geometry.audit(lambda x: real(x), IMAGE)] == names
