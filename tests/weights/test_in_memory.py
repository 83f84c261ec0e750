"""Weights in memory are read as their files are."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from kernsym_jax import models, report, weights


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


class Part:
    """A convolution with the attributes that PyTorch gives it."""

    __module__ = "torch.nn.modules.conv"

    def __init__(self, **changed):
        usual = {"stride": (1, 1), "dilation": (1, 1), "kernel_size": (3, 3), "padding": (0, 0)}
        others = {"transposed": False, "groups": 1, "padding_mode": "zeros"}
        self.__dict__ |= usual | others | changed


class OwnPart(Part):
    """One of the user's own class, whose call may pad."""


class Conv2dSame(Part):
    """timm's, which pads as TensorFlow does and has no padding of its own."""


class Network(Module):
    def __init__(self, tensors, parts):
        super().__init__(tensors)
        self._parts = parts

    def named_modules(self):
        return [("", self), *self._parts.items()]


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


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_convolutions_of_a_module_of_pytorch_are_what_their_attributes_say(prefix):
    parts = {
        "stem": (Part(stride=(2, 2), padding=(1, 0)), (4, 1, 3, 3)),
        "thin": (Part(groups=4, padding="same", dilation=(2, 2)), (8, 1, 3, 3)),
        "even": (Part(transposed=True, stride=(2, 2), padding=(1, 1)), (8, 8, 3, 3)),
        "split": (Part(transposed=True, groups=2), (8, 3, 3, 3)),
        "round": (Part(padding=(1, 1), padding_mode="circular"), (6, 6, 3, 3)),
        "cut": (Part(padding="valid"), (6, 6, 3, 3)),
        "own": (OwnPart(padding=(1, 1)), (6, 6, 3, 3)),
        "same": (Conv2dSame(stride=(2, 2)), (6, 6, 3, 3)),
        "odd": (Part(stride=(0, 1)), (6, 6, 3, 3)),
    }
    tensors = {f"{prefix}{name}.weight": drawn(*shape) for name, (_, shape) in parts.items()}
    module = Network(tensors, {f"{prefix}{name}": part for name, (part, _) in parts.items()})
    found = weights.read(module)
    one, none = (1, 1), ((0, 0), (0, 0))
    assert facts(found) == {
        "stem": ((3, 3, 1, 4), "conv", (2, 2), ((1, 1), (0, 0)), one, 1),
        "thin": ((3, 3, 1, 8), "depthwise", one, "SAME", (2, 2), 4),
        "even": ((3, 3, 8, 8), "transposed", (2, 2), ((1, 1), (1, 1)), one, 1),
        "split": ((3, 3, 4, 6), "transposed", one, none, one, 2),
        "round": ((3, 3, 6, 6), "conv", one, None, one, 1),
        "cut": ((3, 3, 6, 6), "conv", one, None, one, 1),
        "own": ((3, 3, 6, 6), "conv", one, None, one, 1),
        "same": ((3, 3, 6, 6), "conv", (2, 2), "SAME", one, 1),
        "odd": ((3, 3, 6, 6), "conv", None, None, None, None),
    }
    assert (found.order, found.first) == ("file", "stem")
    stored = tensors[f"{prefix}even.weight"].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(found.kernels["even"].weight, stored)


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


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs) for _ in range(3)])


def test_modules_and_states_of_nnx_are_read():
    network = Stack(nnx.Rngs(0))
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


class Settings(nnx.Module):
    def __init__(self, rngs):
        one = {"kernel_size": (3, 3), "rngs": rngs}
        self.thin = nnx.Conv(4, 8, strides=2, padding="SAME", feature_group_count=4, **one)
        self.wide = nnx.Conv(8, 6, strides=(2, 1), kernel_dilation=2, padding="VALID", **one)
        self.even = nnx.Conv(6, 6, padding=((1, 0), (0, 2)), **one)
        self.round = nnx.Conv(6, 6, padding="CIRCULAR", **one)
        self.one = nnx.Conv(6, 6, padding=1, **one)
        self.up = nnx.ConvTranspose(6, 6, strides=(2, 2), padding="SAME", **one)


def test_the_convolutions_of_nnx_are_what_their_attributes_say():
    found = weights.read(Settings(nnx.Rngs(0)))
    one = (1, 1)
    assert facts(found) == {
        "thin": ((3, 3, 1, 8), "depthwise", (2, 2), "SAME", one, 4),
        "wide": ((3, 3, 8, 6), "conv", (2, 1), None, (2, 2), 1),
        "even": ((3, 3, 6, 6), "conv", one, ((1, 0), (0, 2)), one, 1),
        "round": ((3, 3, 6, 6), "conv", one, None, one, 1),
        "one": ((3, 3, 6, 6), "conv", one, ((1, 1), (1, 1)), one, 1),
        "up": ((3, 3, 6, 6), "transposed", (2, 2), "SAME", one, 1),
    }
    assert found.order == "name"


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


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        with warnings.catch_warnings(action="ignore"):
            library = pytest.importorskip("keras", reason="pip install 'kernsym-jax[test]'")
        yield library


# Keras runs into what new versions of NumPy and Python advise against.
keras_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def facts(found):
    return {
        name: (k.shape, k.kind, k.stride, k.padding, k.dilation, k.groups)
        for name, k in found.kernels.items()
    }


@keras_warns
def test_a_functional_model_of_keras_is_read_as_its_file(keras, tmp_path):
    of = keras.layers
    inner = keras.Sequential([of.Conv2DTranspose(6, 3, strides=2, name="up")], name="inner")
    image = keras.Input((9, 9, 3))
    map_ = of.Conv2D(8, 3, strides=2, name="stem")(of.ZeroPadding2D(((0, 1), (1, 0)))(image))
    map_ = of.SeparableConv2D(8, 3, padding="same", name="apart")(of.BatchNormalization()(map_))
    map_ = of.DepthwiseConv2D(3, depth_multiplier=2, name="thin")(inner(map_))
    map_ = of.Conv2D(4, 3, groups=2, dilation_rate=2, name="grouped")(map_)
    model = keras.Model(image, of.Conv2DTranspose(4, 1, name="point")(map_))
    model.compile("adam")
    model.save(tmp_path / "net.keras")
    for fold_batchnorm in (False, True):
        found = weights.read(model, fold_batchnorm=fold_batchnorm)
        file = weights.read(tmp_path / "net.keras", fold_batchnorm=fold_batchnorm)
        assert facts(found) == facts(file)
        assert (found.order, found.first, found.notes) == ("forward", "stem", file.notes)
        assert found.skipped == file.skipped
        for name, kernel in found.kernels.items():
            np.testing.assert_array_equal(kernel.weight, file.kernels[name].weight)
    assert facts(found)["stem"] == ((3, 3, 3, 8), "conv", (2, 2), ((0, 1), (1, 0)), (1, 1), 1)
    assert facts(found)["inner/up"][:3] == ((3, 3, 8, 6), "transposed", (2, 2))
    assert facts(found)["thin"][:2] == ((3, 3, 1, 12), "depthwise")
    assert found.skipped["optimizer"] == "optimizer state: 2 arrays"
    assert report.table(model).rows[0]["layer"] == "stem"


@keras_warns
def test_layers_of_keras_have_their_class_in_a_model_of_the_users_own(keras, tmp_path):
    of = keras.layers

    class Block(keras.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.grow = of.Conv2DTranspose(4, 3, strides=2, padding="same", name="a")
            self.parts = (of.DepthwiseConv2D(3, name="b"), of.Conv2D(4, 3, name="c"))

        def call(self, x):
            return self.parts[1](self.parts[0](self.grow(x)))

    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = of.Conv2D(4, 3, name="stem")
            self._rest = Block()
            self.tail = [[of.Conv2D(4, 3, name="last")]]

        def call(self, x):
            return self.tail[0][0](self._rest(self.stem(x)))

    model = Network()
    with pytest.raises(ValueError, match="a Network in memory: a Keras model without weights"):
        weights.read(model)
    model(np.zeros((1, 7, 7, 3), np.float32))
    found = weights.read(model)
    assert (found.order, found.first) == ("file", "stem")
    # The call of a class may pad the input, so a padding of "valid" tells nothing.
    assert facts(found) == {
        "stem": ((3, 3, 3, 4), "conv", (1, 1), None, (1, 1), 1),
        "block/a": ((3, 3, 4, 4), "transposed", (2, 2), "SAME", (1, 1), 1),
        "block/parts/b": ((3, 3, 1, 4), "depthwise", (1, 1), None, (1, 1), 4),
        "block/parts/c": ((3, 3, 4, 4), "conv", (1, 1), None, (1, 1), 1),
        "last": ((3, 3, 4, 4), "conv", (1, 1), None, (1, 1), 1),
    }
    stored = model._rest.grow.kernel.value
    np.testing.assert_array_equal(found.kernels["block/a"].weight, np.swapaxes(stored, 2, 3))
    model.save_weights(tmp_path / "net.weights.h5")
    assert set(weights.read(tmp_path / "net.weights.h5").kernels) == set(found.kernels)


@pytest.mark.parametrize(("said", "step"), [(3, 3), (0, 0), (-1, None)])
def test_a_negative_epoch_is_no_step(said, step):
    assert weights.read({"epoch": said, "model": STATE_DICT}).step == step
