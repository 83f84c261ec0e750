"""ResNet, ResNeXt, Wide ResNet and DenseNet as in torchvision, and the ResNets for small images.

The 3×3 convolution of a bottleneck takes the stride. The ResNets for small images are akamaster's,
with shortcuts without parameters (option A)."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop, subsample
from kernsym_jax.models.variant import HE_NORMAL, Variant, torch_dense, torch_uniform


class CifarBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters.

    If the block has a stride, the shortcut keeps every other pixel and appends channels of zeros.

    Attributes:
      planes: channels.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    planes: int
    stride: int
    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, planes)."""
        v = self.variant
        down = v.down("conv1_down", self.stride, self.index)
        position = down.position(train)
        y = v.conv("conv1", self.planes, 3, stride=down.inside)(x, position)
        y, phases = down(nn.relu(v.norm("bn1")(y, train)), train)
        y = v.norm("bn2")(v.conv("conv2", self.planes, 3)(y), train)
        x, _ = down(crop(x, v.margin(3)), train, phases)
        x = crop(subsample(x, down.inside, position), v.margin(3))
        missing = self.planes - x.shape[-1]
        near = missing // 2
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (near, missing - near)))
        return nn.relu(y + x)


class CifarResNet(nn.Module):
    """A residual network with 6n + 2 layers for images of 32×32 pixels.

    Layers are ``conv1``, ``bn1``, ``layer1_0/conv1``, … and ``linear``.

    Attributes:
      num_classes: number of outputs.
      blocks: number of blocks of each stage.
      width: channels of the first stage, doubled at each further one.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """

    num_classes: int = 10
    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(self.variant, kernel_init=HE_NORMAL)
        x = v.conv("conv1", self.width, 3)(images.astype(v.dtype))
        x = nn.relu(v.norm("bn1")(x, train))
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                x = CifarBlock(
                    planes=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    index=stage - 1,
                    variant=v,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return torch_dense("linear", self.num_classes, x, kernel_init=v.kernel_init)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the first convolution takes the stride.

    Attributes:
      planes: channels.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    planes: int
    stride: int
    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, planes)."""
        v = self.variant
        down = v.down("conv1_down", self.stride, self.index)
        position = down.position(train)
        y = v.conv("conv1", self.planes, 3, stride=down.inside)(x, position)
        y, phases = down(nn.relu(v.norm("bn1")(y, train)), train)
        y = v.conv("conv2", self.planes, 3)(y)
        y = v.norm("bn2")(y, train)
        x = crop(x, v.margin(3))
        if self.stride > 1 or x.shape[-1] != self.planes:
            x, _ = down(x, train, phases)
            x = v.conv("downsample_0", self.planes, 1, stride=down.inside)(x, position)
            x = v.norm("downsample_1")(x, train)
        return nn.relu(y + crop(x, v.margin(3)))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the 3×3 convolution takes the stride.

    Attributes:
      planes: a quarter of the output channels.
      inner: channels of the 3×3 convolution.
      groups: groups of the 3×3 convolution.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    planes: int
    inner: int
    groups: int
    stride: int
    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, 4 * planes)."""
        v = self.variant
        down = v.down("conv2_down", self.stride, self.index)
        position = down.position(train)
        y = nn.relu(v.norm("bn1")(v.conv("conv1", self.inner, 1)(x), train))
        middle = v.conv("conv2", self.inner, 3, stride=down.inside, groups=self.groups)
        y = middle(y, position)
        y, phases = down(nn.relu(v.norm("bn2")(y, train)), train)
        y = v.norm("bn3")(v.conv("conv3", 4 * self.planes, 1)(y), train)
        x = crop(x, v.margin(3))
        if self.stride > 1 or x.shape[-1] != 4 * self.planes:
            x, _ = down(x, train, phases)
            x = v.conv("downsample_0", 4 * self.planes, 1, stride=down.inside)(x, position)
            x = v.norm("downsample_1")(x, train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """A residual network for large images: ResNet, ResNeXt or Wide ResNet.

    Layers are ``conv1``, ``bn1``, ``layer1_0/conv1``, … and ``fc``. The projection of a shortcut is
    ``downsample_0`` and its BatchNorm ``downsample_1``.

    Attributes:
      num_classes: number of outputs.
      blocks: number of blocks of each stage.
      bottleneck: whether the blocks are bottleneck blocks instead of basic ones.
      width: channels of the stem, doubled at each stage after the first.
      groups: groups of the 3×3 convolution of a bottleneck block (ResNeXt's cardinality).
      width_per_group: channels of each of these groups in the first stage, if ``width`` is 64.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; Xie et
      al., "Aggregated Residual Transformations", CVPR 2017, table 1; Zagoruyko & Komodakis, "Wide
      Residual Networks", BMVC 2016.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant
        down = v.down("conv1_down", 2, 0)
        x = v.conv("conv1", self.width, 7, stride=down.inside)(
            images.astype(v.dtype), down.position(train)
        )
        x, _ = down(nn.relu(v.norm("bn1")(x, train)), train)
        x = v.max_pool("maxpool", x, 3, 1, index=1, train=train)
        for stage, count in enumerate(self.blocks):
            block = self._block(self.width * 2**stage)
            for i in range(count):
                x = block(
                    stride=2 if stage > 0 and i == 0 else 1,
                    index=stage + 1,
                    variant=v,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return torch_dense("fc", self.num_classes, x.astype(jnp.float32).mean((1, 2)))

    def _block(self, planes: int) -> Callable[..., nn.Module]:
        """Returns the class of a stage's blocks with the fields that they share."""
        if not self.bottleneck:
            return functools.partial(BasicBlock, planes)
        inner = planes * self.width_per_group // 64 * self.groups
        return functools.partial(Bottleneck, planes, inner, self.groups)


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


_KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


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
        v = dataclasses.replace(self.variant, kernel_init=_KAIMING_FAN_IN)
        features = Features(self.blocks, self.growth, self.width, v, name="features")
        x = nn.relu(features(images.astype(v.dtype), train)).astype(jnp.float32).mean((1, 2))
        kernel_init = torch_uniform(x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)
