"""Networks of depthwise convolutions: MobileNetV2, EfficientNet and ConvNeXt, as in torchvision."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop
from kernsym_jax.models.variant import Variant, normal, torch_uniform

# Expansion, channels, blocks and stride of each stage, from table 2 of the MobileNetV2 paper.
_MOBILENET_STAGES = (
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
        for expansion, channels, blocks, stride in _MOBILENET_STAGES:
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
        return nn.Dense(self.num_classes, kernel_init=normal(0.01), name="classifier_1")(x)


def scaled_channels(count: int, width: float) -> int:
    """Returns ``count * width`` rounded to a multiple of 8, and never rounded below 90 % of it."""
    scaled = count * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


# Expansion, kernel size, stride, channels and blocks of each stage of EfficientNet B0 (table 1).
_EFFICIENTNET_STAGES = (
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
        counts = [math.ceil(blocks * self.depth) for *_, blocks in _EFFICIENTNET_STAGES]
        done, index = 0, 0
        for stage, (expansion, kernel_size, stride, channels, _) in enumerate(_EFFICIENTNET_STAGES):
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


_INIT = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7×7 convolution, LayerNorm, and two dense layers on the channels of each pixel.

    Layers have torchvision's numbers, which count activations too: ``block_0``, ``block_2``,
    ``block_3`` and ``block_5``; ``layer_scale`` (channels, 1, 1) scales what the block adds.

    Attributes:
      skipped: probability that training skips the block for a sample.
      variant: padding, downsampling and type of the computation.
    """

    skipped: float
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to the same shape."""
        v, channels = self.variant, x.shape[-1]
        y = v.conv("block_0", channels, 7, groups=channels, use_bias=True)(x)
        y = _layer_norm(v, "block_2", y)
        y = _dense(v, "block_3", 4 * channels)(y)
        y = _dense(v, "block_5", channels)(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (channels, 1, 1))
        y = y * scale.astype(y.dtype).reshape(1, 1, 1, channels)
        return v.stochastic_depth(y, self.skipped, train) + crop(x, v.margin(7))


class ConvNeXt(nn.Module):
    """Stages of blocks, each after a strided convolution whose windows do not overlap.

    Layers are ``features_0_0`` (its LayerNorm ``features_0_1``), ``features_1_0/block_0``, …,
    ``features_2_0`` (LayerNorm) and ``features_2_1`` before the second stage, …, ``classifier_0``
    (LayerNorm) and ``classifier_2``. The strided convolutions are never padded, whatever the
    ``padding``.

    Attributes:
      num_classes: number of outputs.
      blocks: number of blocks of each stage.
      width: channels of the first stage, doubled at each further one.
      stochastic_depth: probability that training skips the last block for a sample; it grows
        linearly from 0 at the first block.
      variant: padding, downsampling and type of the computation.

    Reference: Liu et al., "A ConvNet for the 2020s", CVPR 2022, section 3.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    stochastic_depth: float = 0.1
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(self.variant, kernel_init=_INIT)
        x = _patches(v, "features_0_0", images.astype(v.dtype), self.width, 4, index=0, train=train)
        x = _layer_norm(v, "features_0_1", x)
        done, last = 0, sum(self.blocks) - 1
        for stage, count in enumerate(self.blocks):
            if stage > 0:
                name = f"features_{2 * stage}"
                x = _layer_norm(v, f"{name}_0", x)
                x = _patches(v, f"{name}_1", x, 2 * x.shape[-1], 2, index=stage, train=train)
            for i in range(count):
                skipped = self.stochastic_depth * done / max(last, 1)
                x = ConvNeXtBlock(skipped, v, name=f"features_{2 * stage + 1}_{i}")(x, train)
                done += 1
        x = x.astype(jnp.float32).mean((1, 2))
        v = dataclasses.replace(v, dtype=jnp.float32)
        x = _layer_norm(v, "classifier_0", x)
        return _dense(v, "classifier_2", self.num_classes)(x)


def _patches(
    v: Variant, name: str, x: jax.Array, features: int, size: int, *, index: int, train: bool
) -> jax.Array:
    """Convolves with kernel and stride ``size``, as strided place number ``index``."""
    down = v.down(f"{name}_down", size, index)
    x = v.extend_for_step(x, size, down)
    conv = v.conv(name, features, size, stride=down.inside, pad=0, use_bias=True)
    return down(conv(x, down.position(train)), train)[0]


def _layer_norm(v: Variant, name: str, x: jax.Array) -> jax.Array:
    """Normalises the channels of each pixel in float32."""
    # The fast variance, E[x²] - E[x]², loses digits where the mean is large.
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(v.dtype)


def _dense(v: Variant, name: str, features: int) -> nn.Dense:
    return nn.Dense(features, dtype=v.dtype, kernel_init=v.kernel_init, name=name)
