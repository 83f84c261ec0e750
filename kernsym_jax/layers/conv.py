"""Two-dimensional convolution with every padding mode."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers.convolve import convolve
from kernsym_jax.layers.padding import Pair, check_padding, module_path, pair
from kernsym_jax.layers.sbpool import Position
from kernsym_jax.layers.window import place_windows


class Conv(nn.Module):
    """Cross-correlation of a map with a learned ``kernel`` (kh, kw, in / groups, out).

    Attributes:
      features: output channels.
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``.
      pad: rows and columns added per side; ``None`` for ``dilation * (k - 1) // 2``, which keeps
        the size at stride 1. ``valid`` ignores it, and so does ``same`` unless it is 0.
      dilation: distance between taps.
      groups: number of groups that the channels are split into.
      use_bias: whether to add a learned ``bias`` (out,).
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      dtype: type of the computation; parameters are float32.

    Reference: for ``padding="partial"``, Liu et al., "Partial Convolution based Padding", arXiv
    1811.11718.
    """

    features: int
    kernel_size: int | Pair = 3
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None
    dilation: int | Pair = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Convolves a map.

        Args:
          x: map (batch, height, width, channels).
          position: SBPool's choice for a strided layer (``Downsample.position``), or ``None``.

        Returns:
          Map (batch, out_h, out_w, features), of type ``dtype``. Its size is the same for every
          ``position``.

        Raises:
          ValueError: if the padding is unknown or too wide for its mode, ``groups`` does not divide
            the channels, the map is empty, or the kernel is larger than the padded map.
        """
        layer = module_path(self)
        check_padding(self.padding, layer)
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"{layer}: {self.groups} groups do not divide {channels} input and "
                f"{self.features} output channels"
            )
        kernel_size, stride, dilation = map(pair, (self.kernel_size, self.stride, self.dilation))
        kernel = self.param(
            "kernel", self.kernel_init, (*kernel_size, channels // self.groups, self.features)
        )
        windows = place_windows(
            x.astype(self.dtype),
            kernel=kernel_size,
            stride=stride,
            padding=self.padding,
            pad=self.pad,
            dilation=dilation,
            position=position,
            fill=0.0,
            layer=layer,
        )
        y = convolve(
            windows.x,
            kernel.astype(self.dtype),
            stride=stride,
            amounts=windows.amounts,
            dilation=dilation,
            groups=self.groups,
        )
        if windows.scale is not None:
            y = y * jnp.asarray(windows.scale, self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y
