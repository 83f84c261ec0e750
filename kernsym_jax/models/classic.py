"""Classic networks of plain convolutions: a small one for quick studies, AlexNet, VGG and U-Net."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import Conv, adaptive_average_pool, upsample
from kernsym_jax.models.variant import (
    HE_NORMAL,
    Variant,
    flatten_channels_first,
    normal,
    torch_dense,
    torch_uniform,
)

ENCODERS = ("strided", "max_pool")


class SmallCNN(nn.Module):
    """Convolutions with BatchNorm, global average pooling and a dense head.

    Layers are ``conv1``, ``bn1``, ``conv2``, … and ``head``. With ``pool``, ``pool2`` follows a
    strided ``conv2``; with ``separable``, ``conv2_pointwise`` follows the depthwise ``conv2``.

    Attributes:
      num_classes: number of outputs.
      width: channels of the first convolution, doubled at each further strided one.
      max_width: largest number of channels; 0 for no limit.
      depth: number of convolutions.
      strided: numbers, from 1, of the convolutions with stride 2; None for the second and fourth.
      kernel_size: height and width of every kernel.
      pool: whether a 2×2 max-pooling after each of these convolutions takes the stride instead.
      norm: whether a BatchNorm follows each convolution; without it, convolutions have a bias.
      separable: whether all convolutions but the first are depthwise, each followed by a 1×1 one.
      flatten: whether the head reads the whole last map instead of its average.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    num_classes: int = 10
    width: int = 32
    max_width: int = 0
    depth: int = 4
    strided: tuple[int, ...] | None = None
    kernel_size: int = 3
    pool: bool = False
    norm: bool = True
    separable: bool = False
    flatten: bool = False
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(self.variant, kernel_init=HE_NORMAL)
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"small_cnn needs a width and depth of 1 or more, got {self.width} and {self.depth}"
            )
        numbers = range(1, self.depth + 1)
        strided = tuple(n for n in (2, 4) if n in numbers) if self.strided is None else self.strided
        if not set(strided) <= set(numbers):
            raise ValueError(f"small_cnn: strided names convolutions 1 to {self.depth}: {strided}")
        x = images.astype(v.dtype)
        features, index = self.width, 0
        for number in range(1, self.depth + 1):
            steps = number in strided
            if steps and number > 1:
                features *= 2
            if self.max_width:
                features = min(features, self.max_width)
            down = v.down(f"conv{number}_down", 2 if steps and not self.pool else 1, index)
            x = self._conv(v, number, x, features, stride=down.inside)(x, down.position(train))
            if self.separable and number > 1:
                x = v.conv(f"conv{number}_pointwise", features, 1, use_bias=not self.norm)(x)
            if self.norm:
                x = v.norm(f"bn{number}")(x, train)
            x, _ = down(nn.relu(x), train)
            if steps and self.pool:
                x = v.max_pool(f"pool{number}", x, 2, 0, index=index, train=train)
            if steps:
                index += 1
        x = x.astype(jnp.float32)
        x = flatten_channels_first(x) if self.flatten else x.mean((1, 2))
        return torch_dense("head", self.num_classes, x)

    def _conv(self, v: Variant, number: int, x: jax.Array, features: int, stride: int) -> Conv:
        groups = x.shape[-1] if self.separable and number > 1 else 1
        return v.conv(
            f"conv{number}",
            features if groups == 1 else groups,
            self.kernel_size,
            stride=stride,
            groups=groups,
            # The 1×1 convolution behind a depthwise one has the bias.
            use_bias=not self.norm and groups == 1,
        )


class AlexNet(nn.Module):
    """Five convolutions, three max-poolings and three dense layers.

    Layers have torchvision's numbers: the convolutions are ``features_0``, ``_3``, ``_6``, ``_8``
    and ``_10``, the poolings ``features_2``, ``_5`` and ``_12``, the dense layers
    ``classifier_1``, ``_4`` and ``_6``.

    Attributes:
      num_classes: number of outputs.
      width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
      hidden: units of the first two dense layers.
      dropout: share of the inputs of those layers that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """

    num_classes: int = 1000
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant

        def conv(number: int, x: jax.Array, share: int, kernel_size: int, **fields: Any) -> Any:
            uniform = torch_uniform(x.shape[-1] * kernel_size**2)
            return v.conv(
                f"features_{number}",
                share * self.width,
                kernel_size,
                use_bias=True,
                kernel_init=uniform,
                bias_init=uniform,
                **fields,
            )

        x = images.astype(v.dtype)
        down = v.down("features_0_down", 4, 0)
        x = conv(0, x, 1, 11, stride=down.inside, pad=2)(x, down.position(train))
        x, _ = down(nn.relu(x), train)
        x = v.max_pool("features_2", x, 3, 0, index=1, train=train)
        x = nn.relu(conv(3, x, 3, 5)(x))
        x = v.max_pool("features_5", x, 3, 0, index=2, train=train)
        x = nn.relu(conv(6, x, 6, 3)(x))
        x = nn.relu(conv(8, x, 4, 3)(x))
        x = nn.relu(conv(10, x, 4, 3)(x))
        x = v.max_pool("features_12", x, 3, 0, index=3, train=train)
        x = flatten_channels_first(adaptive_average_pool(x, 6))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_0")(x)
        x = nn.relu(torch_dense("classifier_1", self.hidden, x, v.dtype))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_3")(x)
        x = nn.relu(torch_dense("classifier_4", self.hidden, x, v.dtype))
        return torch_dense("classifier_6", self.num_classes, x.astype(jnp.float32))


class VGG(nn.Module):
    """Five stages of 3×3 convolutions with a max-pooling after each, and three dense layers.

    Layers have torchvision's numbers, which count activations too: ``features_0``, … and
    ``classifier_0``, ``_3`` and ``_6``.

    Attributes:
      num_classes: number of outputs.
      convs: number of convolutions of each stage.
      batch_norm: whether a BatchNorm follows each convolution.
      width: channels of the first stage; doubled at the next three.
      hidden: units of the first two dense layers.
      dropout: share of these units that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Simonyan & Zisserman, "Very Deep Convolutional Networks", ICLR 2015, table 1.
    """

    num_classes: int = 1000
    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant
        x = images.astype(v.dtype)
        number = 0
        for stage, count in enumerate(self.convs):
            for _ in range(count):
                features = self.width * 2 ** min(stage, 3)
                x = v.conv(f"features_{number}", features, 3, use_bias=True)(x)
                if self.batch_norm:
                    number += 1
                    x = v.norm(f"features_{number}")(x, train)
                x = nn.relu(x)
                number += 2
            x = v.max_pool(f"features_{number}", x, 2, 0, index=stage, train=train)
            number += 1
        x = flatten_channels_first(adaptive_average_pool(x, 7))
        for name, after in (("classifier_0", "classifier_2"), ("classifier_3", "classifier_5")):
            x = nn.relu(_dense(name, self.hidden, v.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=after)(x)
        return _dense("classifier_6", self.num_classes, jnp.float32)(x)


def _dense(name: str, features: int, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=normal(0.01), name=name)


class DownBlock(nn.Module):
    """Two 3×3 convolutions; the first one, or a pooling before it, takes the stride.

    Attributes:
      features: channels.
      stride: step of the block, 1 or 2.
      index: number of the block's strided place in the network, from 0.
      encoder: one of ``ENCODERS``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    stride: int
    index: int
    encoder: str
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """Returns a map (batch, out_h, out_w, features) and the phases of the downsampling."""
        v, stride, phases = self.variant, self.stride, None
        if self.stride > 1 and self.encoder == "max_pool":
            x, phases = v.max_pool_and_phases("pool", x, 2, 0, index=self.index, train=train)
            stride = 1
        down = v.down("conv1_down", stride, self.index)
        x = v.conv("conv1", self.features, 3, stride=down.inside)(x, down.position(train))
        x, chosen = down(nn.relu(v.norm("bn1")(x, train)), train)
        x = nn.relu(v.norm("bn2")(v.conv("conv2", self.features, 3)(x), train))
        return x, phases if chosen is None else chosen


class UpBlock(nn.Module):
    """Upsampling to the size of the skip, concatenation with it, and two 3×3 convolutions.

    A transposed convolution would add a checkerboard, because its windows overlap unevenly if the
    stride does not divide the kernel size. So the block interpolates and then convolves.

    Attributes:
      features: channels.
      first: position of the first pixel that the downsampling kept, see ``layers.upsample``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    first: float
    variant: Variant

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array, phases: jax.Array | None, train: bool = False
    ) -> jax.Array:
        """Returns a map (batch, height, width, features) of the size of ``skip``."""
        v = self.variant
        size = (skip.shape[1], skip.shape[2])
        x = upsample(x, size, phases=phases, first=self.first, padding=v.padding)
        x = jnp.concatenate([skip, x], axis=-1)
        x = nn.relu(v.norm("bn1")(v.conv("conv1", self.features, 3)(x), train))
        return nn.relu(v.norm("bn2")(v.conv("conv2", self.features, 3)(x), train))


class UNet(nn.Module):
    """An encoder and a decoder with skip connections, for images of any height and width.

    Layers are ``down1/conv1``, ``down1/bn1``, ``down1/conv2``, …, on the way back from the lowest
    level ``up2/conv1``, …, ``up1/conv2``, and ``head``. The number is that of the level: ``down1``
    and ``up1`` work at the size of the image. With circular padding and ``aps`` or ``lps``, a
    circular shift of the image shifts the logits by the same amount, if ``2**(depth - 1)`` divides
    the size of the image.

    Attributes:
      num_classes: number of classes.
      width: channels of the first level, doubled at each further one.
      depth: number of levels; each has half the size of the level above.
      encoder: layer that takes the stride: a ``strided`` convolution or a 2×2 ``max_pool``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Ronneberger et al., "U-Net", MICCAI 2015, here with padding and BatchNorm; the way up
      by phase, Rojas-Gomez et al., "Learnable Polyphase Sampling", NeurIPS 2022.
    """

    num_classes: int = 11
    width: int = 32
    depth: int = 4
    encoder: str = "strided"
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, h, w, num_classes), float32, of images (batch, h, w, channels)."""
        self._check()
        v = dataclasses.replace(self.variant, kernel_init=HE_NORMAL)
        x = images.astype(v.dtype)
        levels = []
        for level in range(1, self.depth + 1):
            x, phases = DownBlock(
                features=self.width * 2 ** (level - 1),
                stride=1 if level == 1 else 2,
                index=level - 2,
                encoder=self.encoder,
                variant=v,
                name=f"down{level}",
            )(x, train)
            levels.append((x, phases))
        first = 0.5 if self.encoder == "max_pool" else 0.0
        for level in range(self.depth - 1, 0, -1):
            skip, phases = levels[level - 1][0], levels[level][1]
            x = UpBlock(self.width * 2 ** (level - 1), first, v, name=f"up{level}")(
                x, skip, phases, train
            )
        # A 1×1 convolution needs no padding. It runs in float32, as all logits are float32.
        uniform = torch_uniform(x.shape[-1])
        fields = {"use_bias": True, "kernel_init": uniform, "bias_init": uniform}
        return v.conv("head", self.num_classes, 1, dtype=jnp.float32, **fields)(x)

    def _check(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"unet needs a width and depth of 1 or more, got {self.width} and {self.depth}"
            )
        if self.encoder not in ENCODERS:
            raise ValueError(f"unet: unknown encoder {self.encoder!r}; wanted one of {ENCODERS}")
        if self.variant.padding == "valid":
            raise ValueError(
                "unet: padding 'valid' takes the border off every map, but each pixel needs a "
                "class; use a padding that keeps the size"
            )
