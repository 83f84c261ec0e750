"""The networks, by name.

Every network is a Linen module, and all have the same call::

    model = models.create("resnet18", num_classes=1000, padding="zero", downsample="stride")
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images)
    logits, updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"],
        rngs={"dropout": dropout_key, "downsample": downsample_key},
    )

Images are (batch, height, width, channels) float32, already normalised. Logits are
(batch, num_classes) float32; those of ``unet`` are (batch, height, width, num_classes). In
training, ``inception_v3`` returns a pair: its logits and those of its auxiliary head. The
collection ``params`` holds the parameters and ``batch_stats`` the running statistics of BatchNorm,
both in float32 under every ``dtype``. A kernel is at ``…/kernel``, as (kh, kw, in / groups, out).
Only training needs rng streams: ``dropout`` for networks with dropout or stochastic depth, and
``downsample`` for the methods ``sbpool`` and ``lps``.

A parameter path is a public identifier. In a published network it follows from the name in a
PyTorch state dict (torchvision's, or akamaster's for the CIFAR ResNets) by one rule: a dot before a
number becomes an underscore, every other dot becomes a slash, and the last word changes as follows
(``layer_scale`` of a ConvNeXt stays):

- ``weight`` of a convolution, (out, in, kh, kw), becomes ``kernel``, (kh, kw, in, out);
- ``weight`` of a dense layer, (out, in), becomes ``kernel``, (in, out);
- ``weight`` of a normalisation becomes ``scale``;
- ``bias`` stays ``bias``;
- ``running_mean`` and ``running_var`` become ``mean`` and ``var`` in ``batch_stats``.

For example, ``layer1.0.downsample.0.weight`` becomes ``layer1_0/downsample_0/kernel`` and
``features.1.conv.0.1.running_mean`` becomes ``features_1/conv_0_1/mean``. The networks flatten maps
in PyTorch's order (channels, height, width), so dense kernels need no permutation. The parameters
of a learned downsampling are beside its layer, under ``…_down/logits``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kernsym_jax.models.recognition import Recognised, layer_rows, recognise

if TYPE_CHECKING:
    from kernsym_jax.models.registry import (
        NAMES,
        create,
        default_input_size,
        describe,
        intermediates,
        known_names,
        naming_failures,
    )
    from kernsym_jax.models.variant import Variant, vary

__all__ = [
    "NAMES",
    "Recognised",
    "Variant",
    "create",
    "default_input_size",
    "describe",
    "intermediates",
    "known_names",
    "layer_rows",
    "naming_failures",
    "recognise",
    "vary",
]

# Imported when they are first used, because recognising a file needs no networks and no Flax.
_LATER = {"Variant": "variant", "vary": "variant"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LATER.get(name, 'registry')}")
    return getattr(module, name)
