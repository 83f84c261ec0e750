"""Weights in memory are read as their files are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from kernsym_jax import models, weights


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


class Tensor:
    """A tensor that, like PyTorch's, refuses to be read before it leaves its graph."""

    def __init__(self, array):
        self._array = array

    def __array__(self, *args, **kwargs):
        raise RuntimeError("requires grad")

    def detach(self):
        return self

    def cpu(self):
        return self._array


class Module:
    def __init__(self, tensors):
        self._tensors = tensors

    def state_dict(self):
        return self._tensors


STATE_DICT = {
    "layer1.0.conv2.weight": drawn(8, 3, 3, 3),
    "layer1.0.conv1.weight": drawn(8, 8, 3, 3),
    "layer1.0.conv1.bias": drawn(8),
}


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray, Tensor])
def test_a_state_dict_keeps_its_order_and_has_the_layout_of_pytorch(wrap):
    tensors = {name: wrap(array) for name, array in STATE_DICT.items()}
    for source in (tensors, Module(tensors), {"state_dict": tensors, "epoch": 3}):
        found = weights.read(source)
        assert list(found.kernels) == ["layer1.0.conv2", "layer1.0.conv1"]
        expected = STATE_DICT["layer1.0.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found.kernels["layer1.0.conv2"].weight, expected)
        assert list(found.skipped) == ["layer1.0.conv1.bias"]


def test_params_variables_and_train_states_of_flax_give_the_same_kernels():
    model = models.create("small_cnn", width=4, depth=2, strided=(2,), num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = variables["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))
    for source in (params, variables, state):
        found = weights.read(source)
        assert list(found.kernels) == ["conv1", "conv2"]
        np.testing.assert_array_equal(found.kernels["conv2"].weight, params["conv2"]["kernel"])
    # The momenta of Adam have the shapes of kernels and are none.
    assert "optimizer state" in weights.read(state).skipped["opt_state"]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs) for _ in range(3)])


def test_modules_and_states_of_nnx_are_read():
    network = Network(nnx.Rngs(0))
    for source in (network, nnx.state(network), nnx.to_pure_dict(nnx.state(network))):
        found = weights.read(source)
        assert set(found.kernels) == {"stem", "blocks/0", "blocks/1", "blocks/2"}
        kernel = network.blocks[2].kernel[...]
        np.testing.assert_array_equal(found.kernels["blocks/2"].weight, kernel)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(8, 4, (3, 3), use_bias=False, rngs=rngs)
        turned = {"use_bias": False, "transpose_kernel": True}
        self.last = nnx.ConvTranspose(4, 2, (3, 3), **turned, rngs=rngs)
        self.again = nnx.List([self.up])


def test_transposed_convolutions_of_nnx_are_told_by_their_type():
    found = weights.read(Decoder(nnx.Rngs(0)))
    told = {name: (kernel.kind, kernel.shape) for name, kernel in found.kernels.items()}
    assert told == {
        "stem": ("conv", (3, 3, 3, 8)),
        "up": ("transposed", (3, 3, 8, 4)),
        "last": ("transposed", (3, 3, 4, 2)),
        "again/0": ("transposed", (3, 3, 8, 4)),
    }
    assert found.first == "stem"


@pytest.mark.parametrize(
    ("layer", "bias", "shape", "wanted"),
    [
        ("ConvTranspose_0", None, (3, 3, 8, 4), ("transposed", (3, 3, 8, 4))),
        ("ConvTranspose_0", 4, (3, 3, 8, 4), ("transposed", (3, 3, 8, 4))),
        ("ConvTranspose_0", 8, (3, 3, 8, 4), ("transposed", (3, 3, 4, 8))),
        ("ConvTranspose_1", None, (3, 3, 1, 4), ("transposed", (3, 3, 1, 4))),
        ("conv2d_transpose_1", None, (3, 3, 8, 4), ("transposed", (3, 3, 4, 8))),
        ("preconvtranspose", None, (3, 3, 8, 4), ("conv", (3, 3, 8, 4))),
        ("ConvTransposer", None, (3, 3, 8, 4), ("conv", (3, 3, 8, 4))),
    ],
)
def test_names_of_layers_tell_transposed_convolutions(layer, bias, shape, wanted):
    tree = {"Conv_0": {"kernel": drawn(3, 3, 3, 8)}, layer: {"kernel": drawn(*shape)}}
    if bias is not None:
        tree[layer]["bias"] = drawn(bias)
    found = weights.read({"params": tree}).kernels[layer]
    assert (found.kind, found.shape) == wanted


def test_the_layout_of_open_arrays_can_be_given():
    open_array = {"a": drawn(3, 3, 3, 3)}
    assert not weights.read(open_array).kernels
    found = weights.read(open_array, layout="HWIO")
    np.testing.assert_array_equal(found.kernels["a"].weight, open_array["a"])


@pytest.mark.parametrize("source", [3, None, {}, {"a": "text"}])
def test_what_holds_no_arrays_is_refused(source):
    with pytest.raises(ValueError, match=r"a \w+ in memory: no arrays in it"):
        weights.read(source)
