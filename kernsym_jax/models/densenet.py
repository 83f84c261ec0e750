"""DenseNets, as torchvision defines them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop
from kernsym_jax.models.variant import Variant, torch_uniform

_BOTTLENECK = 4


class DenseLayer(nn.Module):
    """A 1×1 and a 3×3 convolution, each after its BatchNorm and ReLU.

    Attributes:
      growth: channels that the layer adds.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    growth: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, channels + growth)."""
        v = self.variant
        y = nn.relu(v.norm("norm1")(x, train))
        y = v.conv("conv1", _BOTTLENECK * self.growth, 1)(y)
        y = nn.relu(v.norm("norm2")(y, train))
        y = v.conv("conv2", self.growth, 3)(y)
        return jnp.concatenate([crop(x, v.margin(3)), y], axis=-1)


class DenseBlock(nn.Module):
    """Dense layers ``denselayer1``, ``denselayer2``, …, each on the output of all before it.

    Attributes:
      layers: number of layers.
      growth: channels that each layer adds.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    layers: int
    growth: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (…, channels + layers * growth)."""
        for number in range(1, self.layers + 1):
            x = DenseLayer(self.growth, self.variant, name=f"denselayer{number}")(x, train)
        return x


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1×1 convolution that halves the channels, and a 2×2 average pooling.

    Attributes:
      index: number of this strided place in the network.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, channels // 2)."""
        v = self.variant
        y = nn.relu(v.norm("norm")(x, train))
        y = v.conv("conv", x.shape[-1] // 2, 1)(y)
        return v.average_pool("pool", y, index=self.index, train=train)


class Features(nn.Module):
    """All layers of a DenseNet but the classifier; the attributes are those of `DenseNet`."""

    blocks: tuple[int, ...]
    growth: int
    width: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images (batch, height, width, channels) to the last map."""
        v = self.variant
        down = v.down("conv0_down", 2, 0)
        x = v.conv("conv0", self.width, 7, stride=down.inside)(x, down.position(train))
        x, _ = down(nn.relu(v.norm("norm0")(x, train)), train)
        x = v.max_pool("pool0", x, 3, 1, index=1, train=train)
        for number, layers in enumerate(self.blocks, start=1):
            if number > 1:
                x = Transition(number, v, name=f"transition{number - 1}")(x, train)
            x = DenseBlock(layers, self.growth, v, name=f"denseblock{number}")(x, train)
        return v.norm("norm5")(x, train)


class DenseNet(nn.Module):
    """A network of blocks in which every layer sees the output of all layers before it.

    Layers are ``features/conv0``, ``features/norm0``, ``features/denseblock1/denselayer1/norm1``,
    …, ``features/transition1/conv``, …, ``features/norm5`` and ``classifier``.

    Attributes:
      num_classes: number of outputs.
      blocks: layers of each block.
      growth: channels that each layer adds.
      width: channels of the first convolution.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, table 1.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        v = dataclasses.replace(self.variant, kernel_init=kaiming)
        features = Features(self.blocks, self.growth, self.width, v, name="features")
        x = nn.relu(features(images.astype(v.dtype), train)).astype(jnp.float32).mean((1, 2))
        kernel_init = torch_uniform(x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)
