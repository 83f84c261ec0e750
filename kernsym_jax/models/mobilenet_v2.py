"""MobileNetV2, as torchvision defines it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop
from kernsym_jax.models.variant import Variant

# Expansion, channels, blocks and stride of each stage, from table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a depthwise 3×3 convolution with the stride, and a linear 1×1 projection.

    Layers have torchvision's numbers: ``conv_0_0``, ``conv_0_1``, ….

    Attributes:
      features: output channels.
      expansion: channels of the depthwise convolution per input channel.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    expansion: int
    stride: int
    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, features)."""
        v = self.variant
        hidden = self.expansion * x.shape[-1]
        y, number = x, 0
        if self.expansion != 1:
            y = v.norm("conv_0_1")(v.conv("conv_0_0", hidden, 1)(y), train)
            y, number = nn.relu6(y), 1
        down = v.down(f"conv_{number}_0_down", self.stride, self.index)
        depthwise = v.conv(f"conv_{number}_0", hidden, 3, stride=down.inside, groups=hidden)
        y = v.norm(f"conv_{number}_1")(depthwise(y, down.position(train)), train)
        y, _ = down(nn.relu6(y), train)
        y = v.conv(f"conv_{number + 1}", self.features, 1)(y)
        y = v.norm(f"conv_{number + 2}")(y, train)
        if self.stride == 1 and x.shape[-1] == self.features:
            y = y + crop(x, v.margin(3))
        return y


class MobileNetV2(nn.Module):
    """Inverted residual blocks between two plain convolutions.

    Layers are ``features_0_0`` (its BatchNorm ``features_0_1``), ``features_1/conv_0_0``, …,
    ``features_18_0`` and ``classifier_1``.

    Attributes:
      num_classes: number of outputs.
      width: factor of every number of channels; the products are rounded to multiples of 8.
      dropout: share of the features that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Sandler et al., "MobileNetV2", CVPR 2018, table 2.
    """

    num_classes: int = 1000
    width: float = 1.0
    dropout: float = 0.2
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant
        down = v.down("features_0_0_down", 2, 0)
        x = v.conv("features_0_0", scaled_channels(32, self.width), 3, stride=down.inside)(
            images.astype(v.dtype), down.position(train)
        )
        x, _ = down(nn.relu6(v.norm("features_0_1")(x, train)), train)
        number, index = 1, 0
        for expansion, channels, blocks, stride in _STAGES:
            if stride > 1:
                index += 1
            for i in range(blocks):
                x = InvertedResidual(
                    features=scaled_channels(channels, self.width),
                    expansion=expansion,
                    stride=stride if i == 0 else 1,
                    index=index,
                    variant=v,
                    name=f"features_{number}",
                )(x, train)
                number += 1
        last = scaled_channels(1280, max(1.0, self.width))
        x = v.norm(f"features_{number}_1")(v.conv(f"features_{number}_0", last, 1)(x), train)
        x = nn.relu6(x).astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_0")(x)
        kernel_init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier_1")(x)


def scaled_channels(count: int, width: float) -> int:
    """Returns ``count * width`` rounded to a multiple of 8, and never rounded below 90 % of it."""
    scaled = count * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8
