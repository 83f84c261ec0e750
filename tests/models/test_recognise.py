"""A state dict is recognised as the network that it belongs to, and as no other."""

import re

import make_layer_tables
import pytest

from kernsym_jax import models
from kernsym_jax.models import recognition


def state_dict(name, prefix=""):
    """The shapes of a network's convolutions under the names of PyTorch."""
    shapes = {}
    for layer, kernel in recognition._tables()[name]["layers"].items():
        place = prefix + torch_name(layer)
        if kernel is None:
            shapes[f"{place}.bias"] = (7,)
        else:
            shapes[f"{place}.weight"] = tuple(kernel[axis] for axis in (3, 2, 0, 1))
    return shapes


def torch_name(layer):
    words = []
    for part in layer.split("/"):
        stem, *numbers = part.split("_")
        while numbers and not all(number.isdigit() for number in numbers):
            stem += f"_{numbers.pop(0)}"
        words += [stem, *numbers]
    return ".".join(words)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone.", "_orig_mod.0.net."])
@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_is_recognised_behind_any_prefix_and_as_no_other(name, prefix):
    (found,) = models.recognise(state_dict(name, prefix))
    assert (found.name, found.prefix, found.downsample) == (name, prefix, "stride")
    assert not found.extra
    assert set(found.layers) == set(recognition._tables()[name]["layers"])
    assert all(stored == prefix + torch_name(layer) for layer, stored in found.layers.items())


@pytest.mark.parametrize("name", ["small_cnn", "cifar_resnet20", "mobilenet_v2"])
def test_the_tables_are_what_the_networks_are(name):
    made, kept = make_layer_tables.table(name), recognition._tables()[name]
    assert make_layer_tables.plain(made) == kept


def test_the_tables_know_every_network_of_the_registry():
    assert tuple(recognition._tables()) == models.NAMES


def test_other_heads_and_branches_are_listed():
    shapes = state_dict("resnet50", "model.") | {
        "model.aux.0.weight": (64, 1024, 3, 3),
        "decoder.up.weight": (64, 64, 3, 3),
    }
    (found,) = models.recognise(shapes)
    assert found.name == "resnet50"
    assert found.extra == ("model.aux.0", "decoder.up")


def test_a_greyscale_network_is_recognised():
    shapes = state_dict("resnet18") | {"conv1.weight": (64, 1, 7, 7)}
    (found,) = models.recognise(shapes)
    assert found.name == "resnet18"


@pytest.mark.parametrize(
    "more",
    [
        {"layer3.6.conv1.weight": (256, 1024, 1, 1)},
        {"layer1.0.se.fc1.weight": (16, 256, 1, 1)},
        {"layer2.0.conv2.weight": (128, 4, 3, 3)},
        {"layer2.0.conv1.weight": (64, 256, 1, 1)},
        {"conv1.weight": (64, 3, 3, 3)},
    ],
)
def test_a_network_with_other_layers_inside_is_not_recognised(more):
    assert models.recognise(state_dict("resnet50") | more) == []


@pytest.mark.parametrize(
    ("name", "gone", "wanted"),
    [
        ("efficientnet_b0", "block_[12]/fc[12]$", []),  # EfficientNet-Lite0
        ("resnet18", "layer2_0/downsample", []),  # other shortcuts
        ("efficientnet_b0", "features_8|classifier", ["efficientnet_b0"]),  # without its head
        ("resnet50", "fc", ["resnet50"]),
        ("inception_v3", "AuxLogits|fc", ["inception_v3"]),
    ],
)
def test_a_network_may_lack_its_end_but_no_modules_before_it(name, gone, wanted):
    left_out = {torch_name(path) for path in layers_like(name, gone)}
    assert left_out
    shapes = {
        key: s for key, s in state_dict(name).items() if key[: key.rindex(".")] not in left_out
    }
    assert [found.name for found in models.recognise(shapes)] == wanted


def layers_like(name, pattern):
    return [path for path in recognition._tables()[name]["layers"] if re.search(pattern, path)]


def test_our_own_names_are_recognised():
    kernels = recognition._tables()["vgg11"]["layers"]
    shapes = {f"params/{layer}/kernel": kernel for layer, kernel in kernels.items()}
    (found,) = models.recognise(shapes)
    assert (found.name, found.prefix) == ("vgg11", "params/")


def test_unrelated_arrays_are_not_recognised():
    assert models.recognise({}) == []
    assert models.recognise({"conv1.weight": (8, 3, 3, 3), "fc.weight": (10, 8)}) == []


def test_names_of_antialiased_cnns_are_recognised_as_blur():
    shapes = {}
    for name, shape in state_dict("resnet18", "module.").items():
        parts = name.split(".")
        strided = parts[1] in ("layer2", "layer3", "layer4") and parts[2] == "0"
        if strided and parts[3] == "conv2":
            parts.insert(4, "1")
            shapes[".".join([*parts[:4], "0", "filt"])] = (shape[0], 1, 4, 4)
        if strided and parts[3] == "downsample":
            if parts[4] == "0":
                shapes[".".join([*parts[:4], "0", "filt"])] = (shape[1], 1, 4, 4)
            parts[4] = str(int(parts[4]) + 1)
        shapes[".".join(parts)] = shape
    shapes["module.maxpool.1.filt"] = (64, 1, 4, 4)
    (found,) = models.recognise(shapes)
    assert (found.name, found.prefix, found.downsample) == ("resnet18", "module.", "blur")
    assert found.layers["layer2_0/conv2"] == "module.layer2.0.conv2.1"
    assert found.layers["layer2_0/downsample_0"] == "module.layer2.0.downsample.1"


TIMM_BLOCK = {
    "block_0_0": "conv_pw", "block_0_1": "bn1", "block_1_0": "conv_dw", "block_1_1": "bn2",
    "block_2/fc1": "se.conv_reduce", "block_2/fc2": "se.conv_expand", "block_3_0": "conv_pwl",
    "block_3_1": "bn3",
}  # fmt: skip
TIMM_FIRST_BLOCK = {
    "block_0_0": "conv_dw", "block_0_1": "bn1", "block_1/fc1": "se.conv_reduce",
    "block_1/fc2": "se.conv_expand", "block_2_0": "conv_pw", "block_2_1": "bn2",
}  # fmt: skip
TIMM_ENDS = {
    "features_0_0": "conv_stem", "features_0_1": "bn1", "features_8_0": "conv_head",
    "features_8_1": "bn2", "classifier_1": "classifier",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in models.NAMES if "efficientnet" in name])
def test_names_of_efficientnet_in_timm_are_recognised(name):
    shapes = {}
    for layer, kernel in recognition._tables()[name]["layers"].items():
        if layer in TIMM_ENDS:
            place = TIMM_ENDS[layer]
        else:
            stage, block = layer.split("/")[0].split("_")[1:]
            words = TIMM_FIRST_BLOCK if stage == "1" else TIMM_BLOCK
            place = f"blocks.{int(stage) - 1}.{block}.{words[layer.partition('/')[2]]}"
        shapes[f"{place}.weight"] = kernel and tuple(kernel[axis] for axis in (3, 2, 0, 1))
    for prefix in ("", "module.", "net.0.", "model.backbone."):
        (found,) = models.recognise({f"{prefix}{key}": shape for key, shape in shapes.items()})
        assert (found.name, found.prefix, found.extra) == (name, prefix, ())


EFFICIENTNET_PYTORCH_BLOCK = {
    "block_0_0": "_expand_conv", "block_0_1": "_bn0", "block_1_0": "_depthwise_conv",
    "block_1_1": "_bn1", "block_2/fc1": "_se_reduce", "block_2/fc2": "_se_expand",
    "block_3_0": "_project_conv", "block_3_1": "_bn2",
}  # fmt: skip
EFFICIENTNET_PYTORCH_FIRST_BLOCK = {
    "block_0_0": "_depthwise_conv", "block_0_1": "_bn1", "block_1/fc1": "_se_reduce",
    "block_1/fc2": "_se_expand", "block_2_0": "_project_conv", "block_2_1": "_bn2",
}  # fmt: skip
EFFICIENTNET_PYTORCH_ENDS = {
    "features_0_0": "_conv_stem", "features_0_1": "_bn0", "features_8_0": "_conv_head",
    "features_8_1": "_bn1", "classifier_1": "_fc",
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.net."])
@pytest.mark.parametrize(
    ("name", "second"), [("efficientnet_b0", 1), ("efficientnet_b4", 2), ("efficientnet_b7", 4)]
)
def test_efficientnet_with_its_blocks_in_one_row_is_recognised_as_tensorflows(name, second, prefix):
    shapes, numbers = {}, {}
    for layer, kernel in recognition._tables()[name]["layers"].items():
        if layer in EFFICIENTNET_PYTORCH_ENDS:
            place = EFFICIENTNET_PYTORCH_ENDS[layer]
        else:
            container, _, inner = layer.partition("/")
            first = container.startswith("features_1_")
            words = EFFICIENTNET_PYTORCH_FIRST_BLOCK if first else EFFICIENTNET_PYTORCH_BLOCK
            stage, block = map(int, container.split("_")[1:])
            numbers[container] = (stage, block)
            place = (container, words[inner])
        shapes[place] = kernel and tuple(kernel[axis] for axis in (3, 2, 0, 1))
    order = {container: i for i, container in enumerate(sorted(numbers, key=numbers.get))}
    stored = {
        prefix
        + (f"_blocks.{order[place[0]]}.{place[1]}" if isinstance(place, tuple) else place)
        + ".weight": shape
        for place, shape in shapes.items()
    }
    (found,) = models.recognise(stored)
    assert (found.name, found.padding, found.extra) == (name, "same", ())
    assert found.layers["features_0_0"] == f"{prefix}_conv_stem"
    # The second stage begins after the blocks of the first.
    assert found.layers["features_2_0/block_1_0"] == f"{prefix}_blocks.{second}._depthwise_conv"


def test_mobilenet_v2_without_containers_in_its_blocks_is_recognised():
    first = {"conv_0_0": "conv.0", "conv_0_1": "conv.1", "conv_1": "conv.3", "conv_2": "conv.4"}
    later = {
        "conv_0_0": "conv.0",
        "conv_0_1": "conv.1",
        "conv_1_0": "conv.3",
        "conv_1_1": "conv.4",
        "conv_2": "conv.6",
        "conv_3": "conv.7",
    }
    shapes = {}
    for layer, kernel in recognition._tables()["mobilenet_v2"]["layers"].items():
        if layer == "classifier_1":
            continue
        block, _, inner = layer.partition("/")
        place = block.replace("_", ".")
        if inner:
            place += "." + (first if block == "features_1" else later)[inner]
        shapes[f"{place}.weight"] = kernel and tuple(kernel[axis] for axis in (3, 2, 0, 1))
    (found,) = models.recognise(shapes)
    assert (found.name, found.prefix, found.extra) == ("mobilenet_v2", "", ())
    assert found.padding == "zero"
    assert found.layers["features_1/conv_0_0"] == "features.1.conv.0"
    assert found.layers["features_2/conv_1_0"] == "features.2.conv.3"


@pytest.mark.parametrize("name", [name for name in models.NAMES if "convnext" in name])
def test_names_of_convnext_in_timm_are_recognised(name):
    ends = {"classifier_0": "head.norm", "classifier_2": "head.fc"}
    inner = {
        "block_0": ".conv_dw",
        "block_2": ".norm",
        "block_3": ".mlp.fc1",
        "block_5": ".mlp.fc2",
    }
    shapes = {}
    for layer, kernel in recognition._tables()[name]["layers"].items():
        head, _, rest = layer.partition("/")
        number, place = [*head.split("_"), ""][1:3]
        if layer in ends:
            stored = ends[layer]
        elif number == "0":
            stored = f"stem.{place}"
        elif int(number) % 2:
            stored = f"stages.{int(number) // 2}.blocks.{place}{inner.get(rest, '')}"
        else:
            stored = f"stages.{int(number) // 2}.downsample.{place}"
        shapes[f"{stored}.weight"] = kernel and tuple(kernel[axis] for axis in (3, 2, 0, 1))
    for prefix in ("", "module.", "net.0.", "model.backbone."):
        (found,) = models.recognise({f"{prefix}{key}": shape for key, shape in shapes.items()})
        assert (found.name, found.prefix, found.extra) == (name, prefix, ())
    # ConvNeXt V2 has another normalisation in its blocks.
    assert not models.recognise(shapes | {"stages.0.blocks.0.mlp.grn.weight": (384,)})
