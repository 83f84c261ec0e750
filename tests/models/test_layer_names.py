"""Parameter paths are public identifiers: every convolution of every family, in forward order."""

import jax
import numpy as np
import pytest

from kernsym_jax import geometry, models

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


def densenet(*blocks):
    paths = ["conv0"]
    for block, layers in enumerate(blocks, start=1):
        for layer in range(1, layers + 1):
            paths += within(f"denseblock{block}/denselayer{layer}", ["conv1", "conv2"])
        if block < len(blocks):
            paths.append(f"transition{block}/conv")
    return within("features", paths)


def efficientnet(*stages):
    paths = ["features_0_0"]
    for stage, blocks in enumerate(stages, start=1):
        expansion = [] if stage == 1 else ["block_0_0"]
        n = len(expansion)
        rest = [f"block_{n}_0", f"block_{n + 1}/fc1", f"block_{n + 1}/fc2", f"block_{n + 2}_0"]
        for i in range(blocks):
            paths += within(f"features_{stage}_{i}", expansion + rest)
    return [*paths, "features_8_0"]


def convnext(*stages):
    paths = ["features_0_0"]
    for stage, blocks in enumerate(stages):
        if stage > 0:
            paths.append(f"features_{2 * stage}_1")
        paths += [f"features_{2 * stage + 1}_{i}/block_0" for i in range(blocks)]
    return paths


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
    "resnext50_32x4d": resnet((3, 4, 6, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "resnext101_32x8d": resnet((3, 4, 23, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "wide_resnet50_2": resnet((3, 4, 6, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "wide_resnet101_2": resnet((3, 4, 23, 3), BOTTLENECK, PROJECTED_BOTTLENECK, True),
    "densenet121": densenet(6, 12, 24, 16),
    "densenet161": densenet(6, 12, 36, 24),
    "densenet169": densenet(6, 12, 32, 32),
    "densenet201": densenet(6, 12, 48, 32),
    "efficientnet_b0": efficientnet(1, 2, 2, 3, 3, 4, 1),
    "efficientnet_b1": efficientnet(2, 3, 3, 4, 4, 5, 2),
    "efficientnet_b2": efficientnet(2, 3, 3, 4, 4, 5, 2),
    "efficientnet_b3": efficientnet(2, 3, 3, 5, 5, 6, 2),
    "efficientnet_b4": efficientnet(2, 4, 4, 6, 6, 8, 2),
    "efficientnet_b5": efficientnet(3, 5, 5, 7, 7, 9, 3),
    "efficientnet_b6": efficientnet(3, 6, 6, 8, 8, 11, 3),
    "efficientnet_b7": efficientnet(4, 7, 7, 10, 10, 13, 4),
    "convnext_tiny": convnext(3, 3, 9, 3),
    "convnext_small": convnext(3, 3, 27, 3),
    "convnext_base": convnext(3, 3, 27, 3),
    "convnext_large": convnext(3, 3, 27, 3),
}
HEADS = {
    "small_cnn": ["head"],
    "alexnet": ["classifier_1", "classifier_4", "classifier_6"],
    "vgg16": ["classifier_0", "classifier_3", "classifier_6"],
    "resnet18": ["fc"],
    "cifar_resnet20": ["linear"],
    "inception_v3": ["AuxLogits/fc", "fc"],
    "mobilenet_v2": ["classifier_1"],
    "resnext50_32x4d": ["fc"],
    "densenet121": ["classifier"],
    "efficientnet_b0": ["classifier_1"],
    "convnext_tiny": [
        *[
            f"features_{2 * stage + 1}_{i}/block_{number}"
            for stage, blocks in enumerate((3, 3, 9, 3))
            for i in range(blocks)
            for number in (3, 5)
        ],
        "classifier_2",
    ],
}


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
def test_convolutions_have_their_published_names_in_forward_order(name, traced):
    network = traced(name)
    assert network.convolutions == PATHS[name]
    kernels = parameters_with(network.variables["params"], rank=4)
    assert sorted(kernels) == sorted(network.convolutions)


@pytest.mark.parametrize("name", HEADS)
def test_dense_layers_have_their_published_names(name, traced):
    assert sorted(parameters_with(traced(name).variables["params"], rank=2)) == sorted(HEADS[name])


def test_every_model_of_the_registry_is_listed():
    assert set(PATHS) == set(models.NAMES) - {"unet"}


def test_what_lps_learns_lies_beside_its_layer(traced):
    paths = traced("resnet18", downsample="lps").convolutions
    logits = [path for path in paths if "/logits/" in path]
    assert [path for path in paths if path not in logits] == PATHS["resnet18"]
    places = ["conv1", "maxpool", "layer2_0/conv1", "layer3_0/conv1", "layer4_0/conv1"]
    assert logits == [f"{place}_down/logits/conv{i}" for place in places for i in (1, 2)]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (
            "densenet121",
            [f"features/{place}" for place in ("conv0", "pool0")]
            + [f"features/transition{i}/pool" for i in (1, 2, 3)],
        ),
        ("convnext_tiny", ["features_0_0", "features_2_1", "features_4_1", "features_6_1"]),
        (
            "efficientnet_b0",
            ["features_0_0"] + [f"features_{stage}_0/block_1_0" for stage in (2, 3, 4, 6)],
        ),
    ],
)
def test_every_strided_place_of_the_newer_families_can_learn_its_step(name, places, traced):
    paths = traced(name, downsample="lps").convolutions
    logits = [path for path in paths if "/logits/" in path]
    assert [path for path in paths if path not in logits] == PATHS[name]
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
