"""A small plain network for quick studies."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import Conv
from kernsym_jax.models.variant import Variant, flatten_channels_first, torch_dense


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
