"""Plain networks, without skips: a small one for quick studies, AlexNet and VGG."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import Conv, adaptive_average_pool
from kernsym_jax.models.variant import Variant, flatten_channels_first, torch_dense, torch_uniform


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
        v = dataclasses.replace(self.variant, kernel_init=nn.initializers.he_normal())
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
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(0.01), name=name)
