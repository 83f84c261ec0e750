"""A small plain network for quick studies."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.models.variant import Variant, torch_dense


class SmallCNN(nn.Module):
    """Convolutions with BatchNorm, global average pooling and a dense head.

    Layers are ``conv1``, ``bn1``, ``conv2``, … and ``head``.

    Attributes:
      num_classes: outputs.
      width: channels of the first convolution; doubled at each further strided one.
      depth: number of convolutions.
      strided: numbers, from 1, of the convolutions that step by 2; None for the second and fourth.
      kernel_size: of every convolution.
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      blur_size: taps of the filter of ``downsample="blur"``.
      bn_axis_name: axis over which ``pmap`` shares BatchNorm statistics.
      dtype: type of the computation.
    """

    num_classes: int = 10
    width: int = 32
    depth: int = 4
    strided: tuple[int, ...] | None = None
    kernel_size: int = 3
    padding: str = "zero"
    downsample: str = "stride"
    blur_size: int = 4
    bn_axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, num_classes), float32, of images (batch, height, width, channels)."""
        v = Variant(
            self.padding,
            self.downsample,
            self.blur_size,
            self.bn_axis_name,
            self.dtype,
            kernel_init=nn.initializers.he_normal(),
        )
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"small_cnn needs a width and depth of 1 or more, got {self.width} and {self.depth}"
            )
        numbers = range(1, self.depth + 1)
        strided = tuple(n for n in (2, 4) if n in numbers) if self.strided is None else self.strided
        if not set(strided) <= set(numbers):
            raise ValueError(f"small_cnn: strided names convolutions 1 to {self.depth}: {strided}")
        x = images.astype(self.dtype)
        features, index = self.width, 0
        for number in range(1, self.depth + 1):
            stride = 2 if number in strided else 1
            if stride > 1 and number > 1:
                features *= 2
            down = v.down(f"conv{number}_down", stride, index)
            conv = v.conv(f"conv{number}", features, self.kernel_size, stride=down.inside)
            x = v.norm(f"bn{number}")(conv(x, down.position(train)), train)
            x, _ = down(nn.relu(x), train)
            index += stride > 1
        return torch_dense("head", self.num_classes, x.astype(jnp.float32).mean((1, 2)))
