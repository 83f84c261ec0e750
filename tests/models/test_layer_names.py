"""Parameter paths are public identifiers: every convolution of every family, in forward order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import geometry, layers, models

RESNET_STEM = ["conv1"]
BASIC = ["conv1", "conv2"]
PROJECTED_BASIC = [*BASIC, "downsample_0"]
BOTTLENECK = ["conv1", "conv2", "conv3"]
PROJECTED_BOTTLENECK = [*BOTTLENECK, "downsample_0"]


def within(scope, names):
    return [f"{scope}/{name}" for name in names]


def resnet(blocks, plain, projected, project_first):
    paths = ["conv1"]
    for stage, count in enumerate(blocks):
        for i in range(count):
            first = i == 0 and (stage > 0 or project_first)
            paths += within(f"layer{stage + 1}_{i}", projected if first else plain)
    return paths


def mobilenet():
    paths = ["features_0_0", *within("features_1", ["conv_0_0", "conv_1"])]
    for block in range(2, 18):
        paths += within(f"features_{block}", ["conv_0_0", "conv_1_0", "conv_2"])
    return [*paths, "features_18_0"]


def inception():
    a = ["branch1x1", "branch5x5_1", "branch5x5_2"]
    a += ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"]
    b = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3", "branch3x3dbl_3"]
    c = ["branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3"]
    c += [f"branch7x7dbl_{i}" for i in range(1, 6)] + ["branch_pool"]
    d = ["branch3x3_1", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"]
    d += ["branch3x3_2", "branch7x7x3_4"]
    e = ["branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b"]
    e += ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"]
    stem = ["1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"]
    units = [f"Conv2d_{name}" for name in stem]
    mixed = {"5b": a, "5c": a, "5d": a, "6a": b, "6b": c, "6c": c, "6d": c, "6e": c}
    for name, branches in mixed.items():
        units += within(f"Mixed_{name}", branches)
    units += within("AuxLogits", ["conv0", "conv1"])
    for name, branches in {"7a": d, "7b": e, "7c": e}.items():
        units += within(f"Mixed_{name}", branches)
    return [f"{unit}/conv" for unit in units]


def numbered(*numbers):
    return [f"features_{number}" for number in numbers]


PATHS = {
    "small_cnn": ["conv1", "conv2", "conv3", "conv4"],
    "alexnet": numbered(0, 3, 6, 8, 10),
    "vgg11": numbered(0, 3, 6, 8, 11, 13, 16, 18),
    "vgg13": numbered(0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg16": numbered(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": numbered(0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "vgg11_bn": numbered(0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13_bn": numbered(0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16_bn": numbered(0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19_bn": numbered(0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
    "resnet18": resnet((2, 2, 2, 2), BASIC, PROJECTED_BASIC, False),
    "resnet34": resnet((3, 4, 6, 3), BASIC, PROJECTED_BASIC, False),
    "resnet50": resnet((3, 4, 6, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "resnet101": resnet((3, 4, 23, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "resnet152": resnet((3, 8, 36, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "cifar_resnet20": resnet((3, 3, 3), BASIC, BASIC, False),
    "cifar_resnet32": resnet((5, 5, 5), BASIC, BASIC, False),
    "cifar_resnet44": resnet((7, 7, 7), BASIC, BASIC, False),
    "cifar_resnet56": resnet((9, 9, 9), BASIC, BASIC, False),
    "cifar_resnet110": resnet((18, 18, 18), BASIC, BASIC, False),
    "inception_v3": inception(),
    "mobilenet_v2": mobilenet(),
}
HEADS = {
    "small_cnn": ["head"],
    "alexnet": ["classifier_1", "classifier_4", "classifier_6"],
    "vgg16": ["classifier_0", "classifier_3", "classifier_6"],
    "resnet18": ["fc"],
    "cifar_resnet20": ["linear"],
    "inception_v3": ["AuxLogits/fc", "fc"],
    "mobilenet_v2": ["classifier_1"],
}


def forward_order(name, **fields):
    """The paths of the convolutions in the order in which a training pass calls them."""
    model = models.create(name, **fields)
    size = models.default_input_size(name)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    paths = []

    def note(module, method):
        if method == "__call__" and isinstance(module, layers.Conv):
            paths.append("/".join(module.path))
        return False

    def train(key, images):
        keys = {"params": key, "dropout": key, "downsample": key}
        return model.init_with_output(
            keys, images, train=True, capture_intermediates=note, mutable=True
        )

    _, variables = jax.eval_shape(train, jax.random.key(0), images)
    return paths, variables["params"]


def parameters_with(params, rank, prefix=()):
    """The paths of the modules whose kernel has ``rank`` dimensions."""
    found = []
    for name, below in params.items():
        if name == "kernel" and below.ndim == rank:
            found.append("/".join(prefix))
        elif isinstance(below, dict):
            found += parameters_with(below, rank, (*prefix, name))
    return found


@pytest.mark.parametrize("name", PATHS)
def test_convolutions_have_their_published_names_in_forward_order(name):
    paths, params = forward_order(name)
    assert paths == PATHS[name]
    assert sorted(parameters_with(params, rank=4)) == sorted(paths)


@pytest.mark.parametrize("name", HEADS)
def test_dense_layers_have_their_published_names(name):
    _, params = forward_order(name)
    assert sorted(parameters_with(params, rank=2)) == sorted(HEADS[name])


def test_every_model_of_the_registry_is_listed():
    assert set(PATHS) == set(models.NAMES) - {"unet"}


def test_what_lps_learns_lies_beside_its_layer():
    paths, _ = forward_order("resnet18", downsample="lps")
    logits = [path for path in paths if "/logits/" in path]
    assert [path for path in paths if path not in logits] == PATHS["resnet18"]
    places = ["conv1", "maxpool", "layer2_0/conv1", "layer3_0/conv1", "layer4_0/conv1"]
    assert logits == [f"{place}_down/logits/conv{i}" for place in places for i in (1, 2)]


def test_the_fields_of_the_small_network_shape_it():
    model = models.create("small_cnn", width=4, depth=5, strided=(1, 3), kernel_size=5)
    images = np.zeros((1, 12, 12, 1), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    shapes = [params[f"conv{i}"]["kernel"].shape for i in range(1, 6)]
    assert shapes == [(5, 5, 1, 4), (5, 5, 4, 4), (5, 5, 4, 8), (5, 5, 8, 8), (5, 5, 8, 8)]
    assert "conv6" not in params


def test_the_small_network_can_pool_and_be_depthwise_and_have_no_norm():
    model = models.create(
        "small_cnn", num_classes=3, width=4, depth=3, strided=(2,), pool=True, separable=True,
        norm=False, flatten=True,
    )  # fmt: skip
    images = np.zeros((1, 6, 6, 1), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, dict(params))
    assert shapes == {
        "conv1": {"kernel": (3, 3, 1, 4), "bias": (4,)},
        "conv2": {"kernel": (3, 3, 1, 4)},
        "conv2_pointwise": {"kernel": (1, 1, 4, 8), "bias": (8,)},
        "conv3": {"kernel": (3, 3, 1, 8)},
        "conv3_pointwise": {"kernel": (1, 1, 8, 8), "bias": (8,)},
        "head": {"kernel": (3 * 3 * 8, 3), "bias": (3,)},
    }
    steps = [
        row.layer for row in geometry.audit_module(model, 6, channels=1) if max(row.stride) > 1
    ]
    assert len(steps) == 1
    assert "pool" in steps[0]
