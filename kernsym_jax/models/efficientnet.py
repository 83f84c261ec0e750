"""EfficientNets, as torchvision defines them."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop
from kernsym_jax.models.mobilenet_v2 import scaled_channels
from kernsym_jax.models.variant import Variant, torch_uniform

# Expansion, kernel size, stride, channels and blocks of the stages of B0, from the paper's table 1.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a factor that depends on the averages of all channels.

    Attributes:
      squeezed: channels between the two 1×1 convolutions ``fc1`` and ``fc2``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    squeezed: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales a map (batch, height, width, channels)."""
        v = self.variant
        y = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
        y = nn.silu(v.conv("fc1", self.squeezed, 1, use_bias=True)(y))
        return x * nn.sigmoid(v.conv("fc2", x.shape[-1], 1, use_bias=True)(y))


class MBConv(nn.Module):
    """A 1×1 expansion, a depthwise convolution with the stride, and a linear 1×1 projection.

    A squeeze-and-excitation follows the depthwise convolution. Layers have torchvision's numbers:
    ``block_0_0``, ``block_0_1``, ….

    Attributes:
      features: output channels.
      expansion: channels of the depthwise convolution per input channel.
      kernel_size: height and width of the depthwise kernel.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      skipped: probability that training skips the block for a sample, where it has a shortcut.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    expansion: int
    kernel_size: int
    stride: int
    index: int
    skipped: float
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, features)."""
        v, channels = self.variant, x.shape[-1]
        hidden = self.expansion * channels
        y, number = x, 0
        if self.expansion != 1:
            y = nn.silu(v.norm("block_0_1")(v.conv("block_0_0", hidden, 1)(y), train))
            number = 1
        down = v.down(f"block_{number}_0_down", self.stride, self.index)
        depthwise = v.conv(
            f"block_{number}_0", hidden, self.kernel_size, stride=down.inside, groups=hidden
        )
        y = v.norm(f"block_{number}_1")(depthwise(y, down.position(train)), train)
        y, _ = down(nn.silu(y), train)
        y = SqueezeExcitation(max(1, channels // 4), v, name=f"block_{number + 1}")(y)
        y = v.conv(f"block_{number + 2}_0", self.features, 1)(y)
        y = v.norm(f"block_{number + 2}_1")(y, train)
        if self.stride == 1 and channels == self.features:
            y = v.stochastic_depth(y, self.skipped, train) + crop(x, v.margin(self.kernel_size))
        return y


class EfficientNet(nn.Module):
    """Inverted residual blocks with squeeze-and-excitation, scaled in width and depth.

    Layers are ``features_0_0`` (its BatchNorm ``features_0_1``), ``features_1_0/block_0_0``, …,
    ``features_8_0`` and ``classifier_1``.

    Attributes:
      num_classes: number of outputs.
      width: factor of every number of channels; the products are rounded to multiples of 8.
      depth: factor of the blocks of each stage; the products are rounded up.
      dropout: share of the features that training drops.
      stochastic_depth: probability that training skips the last block for a sample; it grows
        linearly from 0 at the first block.
      bn_epsilon: number that BatchNorm adds to the variance.
      bn_momentum: share of the old running statistics that BatchNorm keeps at each step.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Tan & Le, "EfficientNet", ICML 2019, table 1; Huang et al., "Deep Networks with
      Stochastic Depth", ECCV 2016.
    """

    num_classes: int = 1000
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(
            self.variant, bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum
        )
        down = v.down("features_0_0_down", 2, 0)
        x = v.conv("features_0_0", scaled_channels(32, self.width), 3, stride=down.inside)(
            images.astype(v.dtype), down.position(train)
        )
        x, _ = down(nn.silu(v.norm("features_0_1")(x, train)), train)
        counts = [math.ceil(blocks * self.depth) for *_, blocks in _STAGES]
        done, index = 0, 0
        for stage, (expansion, kernel_size, stride, channels, _) in enumerate(_STAGES):
            if stride > 1:
                index += 1
            for i in range(counts[stage]):
                x = MBConv(
                    features=scaled_channels(channels, self.width),
                    expansion=expansion,
                    kernel_size=kernel_size,
                    stride=stride if i == 0 else 1,
                    index=index,
                    skipped=self.stochastic_depth * done / sum(counts),
                    variant=v,
                    name=f"features_{stage + 1}_{i}",
                )(x, train)
                done += 1
        x = v.conv("features_8_0", 4 * x.shape[-1], 1)(x)
        x = nn.silu(v.norm("features_8_1")(x, train)).astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_0")(x)
        # torchvision bounds this kernel by the number of outputs, not of inputs.
        kernel_init = torch_uniform(self.num_classes)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier_1")(x)
