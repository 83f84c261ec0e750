"""A small plain network for quick studies."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import BatchNorm, Conv, Downsample


class SmallCNN(nn.Module):
    """Convolutions with BatchNorm, global average pooling and a dense head.

    Layers are ``conv1``, ``bn1``, ``conv2``, … and ``head``; ``down1``, … hold what a downsampling
    method learns.

    Attributes:
      num_classes: outputs.
      width: channels of the first convolution; doubled at each strided one.
      depth: number of convolutions.
      strided: numbers, from 1, of the convolutions that step by 2.
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
    strided: tuple[int, ...] = (2, 4)
    kernel_size: int = 3
    padding: str = "zero"
    downsample: str = "stride"
    blur_size: int = 4
    bn_axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits (batch, num_classes), float32, of images (batch, height, width, channels)."""
        x = images.astype(self.dtype)
        steps = 0
        for i in range(1, self.depth + 1):
            down = Downsample(
                self.downsample,
                stride=2 if i in self.strided else 1,
                index=steps,
                blur_size=self.blur_size,
                dtype=self.dtype,
                name=f"down{i}",
            )
            steps += i in self.strided
            x = Conv(
                self.width * 2**steps,
                self.kernel_size,
                stride=down.inside,
                padding=self.padding,
                use_bias=False,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x, down.position(train))
            x = BatchNorm(axis_name=self.bn_axis_name, dtype=self.dtype, name=f"bn{i}")(x, train)
            x, _ = down(nn.relu(x), train)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32).mean((1, 2)))
