"""The networks of the experiments, by name.

Every model is a Linen module with the same call::

    model = models.create("resnet18", num_classes=1000, padding="zero", downsample="stride")
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images)
    logits, updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"],
        rngs={"dropout": dropout_key, "downsample": downsample_key},
    )

Images are (batch, height, width, channels) float32, already normalised; logits are
(batch, num_classes) float32, those of ``unet`` (batch, height, width, num_classes). In training
``inception_v3`` alone returns a pair, the logits and those of its auxiliary head. Parameters are in
the collection ``params``, BatchNorm's running statistics in ``batch_stats``, all float32 whatever
``dtype`` the computation runs in. Kernels are at ``…/kernel`` as (kh, kw, in / groups, out). The
rng streams ``dropout`` and ``downsample`` are needed in training only, by models with dropout and
by the methods ``sbpool`` and ``lps``.

A parameter path is a public identifier. In a published network it follows from the name in a
PyTorch state dict (torchvision's, or akamaster's for the CIFAR ResNets) by one rule: a dot before a
number becomes an underscore, every other dot a slash, and the last word becomes

====================  =======================================================================
``weight``            ``kernel`` of a convolution, (out, in, kh, kw) to (kh, kw, in, out), and
                      of a dense layer, (out, in) to (in, out); ``scale`` of a BatchNorm
``bias``              ``bias``
``running_mean``      ``mean`` in ``batch_stats``
``running_var``       ``var`` in ``batch_stats``
====================  =======================================================================

so ``layer1.0.downsample.0.weight`` is ``layer1_0/downsample_0/kernel`` and
``features.1.conv.0.1.running_mean`` is ``features_1/conv_0_1/mean``. Maps are flattened in
PyTorch's order (channels, height, width), so dense kernels need no permutation. What a learned
downsampling adds lies beside its layer, under ``…_down/logits``.
"""

from kernsym_jax.models.registry import (
    NAMES,
    create,
    default_input_size,
    describe,
    intermediates,
)
from kernsym_jax.models.variant import Variant, vary

__all__ = [
    "NAMES",
    "Variant",
    "create",
    "default_input_size",
    "describe",
    "intermediates",
    "vary",
]
