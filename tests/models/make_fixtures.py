"""Writes torch_logits.json: what PyTorch answers with the weights of ``seeded_weights``.

Needs PyTorch and NumPy only, not this package:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 numpy
    /tmp/torch/bin/python tests/models/make_fixtures.py

The file holds a list of cases: the model's name and fields, the images' number and size, the
logits, and for a case in training mode the sums of the running statistics after the forward pass.
"""

import json
import pathlib
import re

import seeded_weights
import torch
import torch_references as reference
from torch import nn

CLASSES = 7
VGG_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
RESNET_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def path_of(name: str, module: nn.Module) -> str:
    """Our path for an entry of the state dict of ``module``'s network."""
    *scopes, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    is_norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
    ours = {
        "weight": "scale" if is_norm else "kernel",
        "layer_scale": "layer_scale",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "var",
    }[leaf]
    collection = "batch_stats" if leaf.startswith("running") else "params"
    return "/".join([collection, *scopes, ours])


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Gives every parameter and running statistic its seeded value."""
    for scope, module in network.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            if leaf == "num_batches_tracked":
                continue
            path = path_of(f"{scope}.{leaf}", module)
            shape = tuple(tensor.shape)
            if len(shape) == 4:
                value = seeded_weights.parameter(path, (*shape[2:], shape[1], shape[0]))
                value = value.transpose(3, 2, 0, 1)
            elif len(shape) == 2:
                value = seeded_weights.parameter(path, shape[::-1]).T
            else:
                value = seeded_weights.parameter(path, shape)
            tensor.copy_(torch.from_numpy(value.copy()))


@torch.no_grad()
def case(network: nn.Module, name: str, batch: int, size: int, train: bool = False, **fields):
    """One entry of the file."""
    fill(network)
    network.train(train)
    images = torch.from_numpy(seeded_weights.images(batch, size)).permute(0, 3, 1, 2)
    logits = network(images)
    print(f"{name} {fields}: {size}x{size}, logits of norm {logits.norm():.4g}")
    entry = {
        "model": name,
        "fields": fields,
        "batch": batch,
        "size": size,
        "train": train,
        "logits": logits.tolist(),
    }
    if train:
        entry["batch_stats_sums"] = {
            path_of(key, nn.BatchNorm2d(1)).removeprefix("batch_stats/"): float(value.sum())
            for key, value in network.state_dict().items()
            if "running" in key
        }
    return entry


def cases() -> list[dict]:
    """Every family, every depth; narrow where the wiring is all that depth changes."""
    entries = [case(reference.alexnet(CLASSES, hidden=64), "alexnet", 2, 95, hidden=64)]
    for depth, convs in VGG_STAGES.items():
        for suffix in ("", "_bn"):
            network = reference.vgg(CLASSES, convs, bool(suffix), width=8, hidden=16)
            entries.append(case(network, f"vgg{depth}{suffix}", 2, 64, width=8, hidden=16))
    for depth, (blocks, bottleneck) in RESNET_STAGES.items():
        network = reference.ResNet(CLASSES, blocks, bottleneck, width=8)
        entries.append(case(network, f"resnet{depth}", 2, 64, width=8))
    network = reference.ResNet(CLASSES, *RESNET_STAGES[50])
    entries.append(case(network, "resnet50", 2, 65))
    for depth in (20, 32, 44, 56, 110):
        blocks = ((depth - 2) // 6,) * 3
        network = reference.CifarResNet(CLASSES, blocks)
        entries.append(case(network, f"cifar_resnet{depth}", 2, 32))
    network = reference.CifarResNet(CLASSES, (3, 3, 3))
    entries.append(case(network, "cifar_resnet20", 3, 16, train=True))
    entries.append(case(reference.MobileNetV2(CLASSES), "mobilenet_v2", 2, 64))
    entries.append(case(reference.InceptionV3(CLASSES), "inception_v3", 2, 75))
    return entries + newer_cases()


def newer_cases() -> list[dict]:
    """The families that are scaled: one network of each as published, and narrow copies."""
    entries = []
    narrow = {"width": 16, "groups": 4, "width_per_group": 32}
    network = reference.ResNet(CLASSES, (3, 4, 6, 3), True, **narrow)
    entries.append(case(network, "resnext50_32x4d", 2, 64, **narrow))
    network = reference.ResNet(CLASSES, (3, 4, 6, 3), True, groups=32, width_per_group=4)
    entries.append(case(network, "resnext50_32x4d", 2, 65))
    network = reference.ResNet(CLASSES, (3, 4, 6, 3), True, width=8, width_per_group=128)
    entries.append(case(network, "wide_resnet50_2", 2, 64, width=8))
    network = reference.DenseNet(CLASSES, (6, 12, 24, 16))
    entries.append(case(network, "densenet121", 2, 64))
    narrow = {"blocks": (2, 3, 2), "growth": 6, "width": 12}
    entries.append(case(reference.DenseNet(CLASSES, **narrow), "densenet161", 2, 65, **narrow))
    entries.append(case(reference.EfficientNet(CLASSES, 1.0, 1.0), "efficientnet_b0", 2, 64))
    network = reference.EfficientNet(CLASSES, 0.25, 2.2, eps=1e-3)
    entries.append(case(network, "efficientnet_b5", 2, 65, width=0.25))
    network = reference.EfficientNet(CLASSES, 0.25, 1.0)
    fields = {"width": 0.25, "stochastic_depth": 0.0, "dropout": 0.0}
    network.classifier[0].p = 0.0
    entries.append(case(network, "efficientnet_b0", 3, 64, train=True, **fields))
    entries.append(case(reference.ConvNeXt(CLASSES, (3, 3, 9, 3)), "convnext_tiny", 2, 64))
    network = reference.ConvNeXt(CLASSES, (3, 3, 27, 3), width=8)
    entries.append(case(network, "convnext_small", 2, 70, width=8))
    return entries


@torch.no_grad()
def auxiliary_case() -> dict:
    """Inception's auxiliary head alone, on a map of its own size."""
    network = reference.InceptionV3(CLASSES).eval()
    fill(network)
    values = seeded_weights.uniform("auxiliary map", (2, 17, 17, 768), 0.0, 1.0)
    logits = network.AuxLogits(torch.from_numpy(values).permute(0, 3, 1, 2))
    return {"logits": logits.tolist()}


if __name__ == "__main__":
    target = pathlib.Path(__file__).with_name("torch_logits.json")
    content = {"classes": CLASSES, "cases": cases(), "auxiliary": auxiliary_case()}
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{target}: {target.stat().st_size / 1000:.1f} kB")
