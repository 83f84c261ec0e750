"""Linen layers: convolution and pooling with every padding and every downsampling.

Maps are (batch, height, width, channels) and kernels (kh, kw, in / groups, out). Parameters and
BatchNorm statistics are float32; ``dtype`` sets the type of the computation.
"""

from kernsym_jax.geometry.foveation import window_scale
from kernsym_jax.layers.conv import BatchNorm, Conv, by_products, subsample
from kernsym_jax.layers.downsample import (
    DOWNSAMPLINGS,
    Downsample,
    PhaseLogits,
    adaptive_average_pool,
    aps_weights,
    binomial,
    blur_pool,
    check_downsample,
    lps_weights,
    mix,
    polyphase,
    upsample,
)
from kernsym_jax.layers.padding import (
    PADDINGS,
    AvgPool,
    MaxPool,
    Position,
    check_padding,
    corner,
    crop,
    crop_to_common,
    layer_padding,
    pad_map,
    random_position,
)

__all__ = [
    "DOWNSAMPLINGS",
    "PADDINGS",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Downsample",
    "MaxPool",
    "PhaseLogits",
    "Position",
    "adaptive_average_pool",
    "aps_weights",
    "binomial",
    "blur_pool",
    "by_products",
    "check_downsample",
    "check_padding",
    "corner",
    "crop",
    "crop_to_common",
    "layer_padding",
    "lps_weights",
    "mix",
    "pad_map",
    "polyphase",
    "random_position",
    "subsample",
    "upsample",
    "window_scale",
]
