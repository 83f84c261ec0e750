"""Inception-v3 with its auxiliary head, as torchvision defines it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import AvgPool, MaxPool, Position, crop_to_common
from kernsym_jax.models.variant import Variant, normal, torch_dense

# The two halves of a factorised 7×7 convolution.
_WIDE: dict[str, Any] = {"kernel_size": (1, 7), "pad": (0, 3)}
_TALL: dict[str, Any] = {"kernel_size": (7, 1), "pad": (3, 0)}


class BasicConv(nn.Module):
    """A convolution ``conv``, its BatchNorm ``bn`` and a ReLU.

    Attributes:
      features: output channels.
      kernel_size: height and width, or one number for both.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
      pad: rows and columns added per side.
      stride: stride of the convolution itself.
      stddev: standard deviation of the initial kernel.
    """

    features: int
    kernel_size: int | tuple[int, int]
    variant: Variant
    pad: int | tuple[int, int] = 0
    stride: int = 1
    stddev: float = 0.1

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, position: Position | None = None
    ) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, features)."""
        v = self.variant
        conv = v.conv(
            "conv",
            self.features,
            self.kernel_size,
            pad=self.pad,
            stride=self.stride,
            kernel_init=normal(self.stddev),
        )
        return nn.relu(v.norm("bn")(conv(x, position), train))


class InceptionA(nn.Module):
    """The 35×35 block: 1×1, 5×5, double 3×3 and pooling branches.

    Attributes:
      pool_features: channels of the pooling branch.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    pool_features: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, 224 + pool_features)."""

        def conv(name: str, x: jax.Array, features: int, kernel_size: Any, pad: Any = 0) -> Any:
            return BasicConv(features, kernel_size, self.variant, pad, name=name)(x, train)

        one = conv("branch1x1", x, 64, 1)
        five = conv("branch5x5_1", x, 48, 1)
        five = conv("branch5x5_2", five, 64, 5, 2)
        three = conv("branch3x3dbl_1", x, 64, 1)
        three = conv("branch3x3dbl_2", three, 96, 3, 1)
        three = conv("branch3x3dbl_3", three, 96, 3, 1)
        pool = _average(self.variant)(x)
        pool = conv("branch_pool", pool, self.pool_features, 1)
        return _join(one, five, three, pool)


class InceptionB(nn.Module):
    """The downsampling from 35×35 to 17×17, in three branches that share their phases.

    Attributes:
      index: number of this strided place in the network.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, channels + 480)."""
        v = self.variant
        double = BasicConv(64, 1, v, name="branch3x3dbl_1")(x, train)
        double = BasicConv(96, 3, v, pad=1, name="branch3x3dbl_2")(double, train)
        steps = {"branch3x3": (x, 384), "branch3x3dbl_3": (double, 96)}
        return _step(v, self.index, steps, x, train)


class InceptionC(nn.Module):
    """The 17×17 block: 1×1, factorised 7×7, double factorised 7×7 and pooling branches.

    Attributes:
      channels: channels of the 7×7 branches.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    channels: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, 768)."""
        v, c = self.variant, self.channels

        def conv(name: str, x: jax.Array, features: int, **fields: Any) -> jax.Array:
            return BasicConv(features, variant=v, name=name, **fields)(x, train)

        one = conv("branch1x1", x, 192, kernel_size=1)
        seven = conv("branch7x7_1", x, c, kernel_size=1)
        seven = conv("branch7x7_2", seven, c, **_WIDE)
        seven = conv("branch7x7_3", seven, 192, **_TALL)
        double = conv("branch7x7dbl_1", x, c, kernel_size=1)
        double = conv("branch7x7dbl_2", double, c, **_TALL)
        double = conv("branch7x7dbl_3", double, c, **_WIDE)
        double = conv("branch7x7dbl_4", double, c, **_TALL)
        double = conv("branch7x7dbl_5", double, 192, **_WIDE)
        pool = conv("branch_pool", _average(v)(x), 192, kernel_size=1)
        return _join(one, seven, double, pool)


class InceptionD(nn.Module):
    """The downsampling from 17×17 to 8×8, in three branches that share their phases.

    Attributes:
      index: number of this strided place in the network.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, channels + 512)."""
        v = self.variant
        three = BasicConv(192, 1, v, name="branch3x3_1")(x, train)
        seven = BasicConv(192, 1, v, name="branch7x7x3_1")(x, train)
        seven = BasicConv(192, variant=v, name="branch7x7x3_2", **_WIDE)(seven, train)
        seven = BasicConv(192, variant=v, name="branch7x7x3_3", **_TALL)(seven, train)
        steps = {"branch3x3_2": (three, 320), "branch7x7x3_4": (seven, 192)}
        return _step(v, self.index, steps, x, train)


class InceptionE(nn.Module):
    """The 8×8 block; its 3×3 branches end in parallel 1×3 and 3×1 convolutions.

    Attributes:
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height, width, 2048)."""

        def conv(name: str, x: jax.Array, features: int, kernel_size: Any, pad: Any = 0) -> Any:
            return BasicConv(features, kernel_size, self.variant, pad, name=name)(x, train)

        one = conv("branch1x1", x, 320, 1)
        three = conv("branch3x3_1", x, 384, 1)
        wide = conv("branch3x3_2a", three, 384, (1, 3), (0, 1))
        tall = conv("branch3x3_2b", three, 384, (3, 1), (1, 0))
        double = conv("branch3x3dbl_1", x, 448, 1)
        double = conv("branch3x3dbl_2", double, 384, 3, 1)
        double_wide = conv("branch3x3dbl_3a", double, 384, (1, 3), (0, 1))
        double_tall = conv("branch3x3dbl_3b", double, 384, (3, 1), (1, 0))
        pool = conv("branch_pool", _average(self.variant)(x), 192, 1)
        return _join(one, wide, tall, double_wide, double_tall, pool)


class AuxiliaryHead(nn.Module):
    """A classifier on the 17×17 map, for training only.

    Attributes:
      num_classes: number of outputs.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    num_classes: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of a map of at least 17×17."""
        x = AvgPool(5, 3, pad=0, name="avgpool")(x)
        x = BasicConv(128, 1, self.variant, name="conv0")(x, train)
        x = BasicConv(768, 5, self.variant, stddev=0.01, name="conv1")(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return torch_dense("fc", self.num_classes, x, kernel_init=normal(0.001))


class InceptionV3(nn.Module):
    """Inception-v3; in training it also returns the logits of the auxiliary head.

    Layers are named as in torchvision: ``Conv2d_1a_3x3/conv``, ``Mixed_5b/branch1x1/conv``, …,
    ``AuxLogits/conv0/conv`` and ``fc``.

    Attributes:
      num_classes: number of outputs.
      auxiliary: whether there is an auxiliary head; it needs images of about 299×299 in training.
      dropout: share of the features that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, table 1.
    """

    num_classes: int = 1000
    auxiliary: bool = True
    dropout: float = 0.5
    variant: Variant = Variant()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Returns logits of images (batch, height, width, channels).

        Args:
          images: float32, already normalised, at least 75×75.
          train: whether to use the statistics of the batch, dropout and the auxiliary head.

        Returns:
          Logits (batch, num_classes), float32; in training with ``auxiliary``, a pair of these
          logits and those of the auxiliary head.
        """
        v = dataclasses.replace(self.variant, bn_epsilon=1e-3)
        x = _stem(v, images.astype(v.dtype), train)
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(pool_features, v, name=name)(x, train)
        x = InceptionB(3, v, name="Mixed_6a")(x, train)
        for letter, channels in zip("bcde", (128, 160, 160, 192), strict=True):
            x = InceptionC(channels, v, name=f"Mixed_6{letter}")(x, train)
        auxiliary = None
        if self.auxiliary and (train or self.is_initializing()):
            head = AuxiliaryHead(self.num_classes, v, name="AuxLogits")
            # The parameters do not depend on the size of the map. They are initialised on the map
            # of 299×299 images, because the map of smaller images can be too small.
            auxiliary = head(x, train) if train else head(jnp.zeros((1, 17, 17, 768), v.dtype))
        x = InceptionD(4, v, name="Mixed_7a")(x, train)
        x = InceptionE(v, name="Mixed_7b")(x, train)
        x = InceptionE(v, name="Mixed_7c")(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        logits = torch_dense("fc", self.num_classes, x, kernel_init=normal(0.1))
        return (logits, auxiliary) if train and auxiliary is not None else logits


def _stem(v: Variant, x: jax.Array, train: bool) -> jax.Array:
    """Maps images of 299×299×3 to a map of 35×35×192."""
    down = v.down("Conv2d_1a_3x3_down", 2, 0)
    first = BasicConv(32, 3, v, stride=down.inside, name="Conv2d_1a_3x3")
    x, _ = down(first(x, train, down.position(train)), train)
    x = BasicConv(32, 3, v, name="Conv2d_2a_3x3")(x, train)
    x = BasicConv(64, 3, v, pad=1, name="Conv2d_2b_3x3")(x, train)
    x = v.max_pool("maxpool1", x, 3, 0, index=1, train=train)
    x = BasicConv(80, 1, v, name="Conv2d_3b_1x1")(x, train)
    x = BasicConv(192, 3, v, name="Conv2d_4a_3x3")(x, train)
    return v.max_pool("maxpool2", x, 3, 0, index=2, train=train)


def _average(variant: Variant) -> AvgPool:
    """Returns the 3×3 average pooling of the pooling branches."""
    return AvgPool(3, 1, variant.padding, name="avgpool")


def _join(*branches: jax.Array) -> jax.Array:
    """Concatenates branches; unpadded ones differ in size and are cropped to the smallest."""
    return jnp.concatenate(crop_to_common(list(branches)), axis=-1)


def _step(
    v: Variant, index: int, convs: dict[str, tuple[jax.Array, int]], x: jax.Array, train: bool
) -> jax.Array:
    """Concatenates 3×3 convolutions and a max-pooling, all with stride 2 and the same phases."""
    down = v.down("down", 2, index)
    position = down.position(train)
    *inputs, x = crop_to_common([*(y for y, _ in convs.values()), x])
    branches, phases = [], None
    for (name, (_, features)), y in zip(convs.items(), inputs, strict=True):
        conv = BasicConv(features, 3, v, stride=down.inside, name=name)
        y, phases = down(conv(y, train, position), train, phases)
        branches.append(y)
    pool = MaxPool(3, down.inside, v.padding, pad=0, name="maxpool")
    branches.append(down(pool(x, position), train, phases)[0])
    return jnp.concatenate(branches, axis=-1)
