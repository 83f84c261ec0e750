"""What varies over a whole network: padding, downsampling and the type of the computation."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import BatchNorm, Conv, Downsample, MaxPool, pad_map

# The initialisers that the published definitions name; fan_out counts kh * kw * out.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Makes the layers of a network, all in one style.

    Attributes:
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      blur_size: taps of the filter of ``downsample="blur"``.
      bn_axis_name: axis over which ``pmap`` shares BatchNorm statistics.
      dtype: type of the computation.
      bn_epsilon: added to BatchNorm's variance.
      kernel_init: initialiser of convolution kernels.
    """

    padding: str
    downsample: str
    blur_size: int
    bn_axis_name: str | None
    dtype: Any
    bn_epsilon: float = 1e-5
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT

    def conv(self, name: str, features: int, kernel_size: Any, **fields: Any) -> Conv:
        """A convolution without bias, unless ``fields`` say otherwise."""
        defaults = {
            "padding": self.padding,
            "use_bias": False,
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
        }
        return Conv(features, kernel_size, name=name, **{**defaults, **fields})

    def norm(self, name: str) -> BatchNorm:
        """A BatchNorm with the network's epsilon, PyTorch's momentum and the shared axis."""
        return BatchNorm(
            epsilon=self.bn_epsilon, axis_name=self.bn_axis_name, dtype=self.dtype, name=name
        )

    def down(self, name: str, stride: int, index: int) -> Downsample:
        """The step of the strided place number ``index``."""
        return Downsample(self.downsample, stride, index, self.blur_size, self.dtype, name=name)

    def max_pool(
        self, name: str, x: jax.Array, kernel_size: int, pad: int, index: int, train: bool
    ) -> jax.Array:
        """Max-pooling with stride 2 as the strided place number ``index``."""
        return self.max_pool_and_phases(name, x, kernel_size, pad, index, train)[0]

    def max_pool_and_phases(
        self, name: str, x: jax.Array, kernel_size: int, pad: int, index: int, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """What ``max_pool`` gives, and the phases that its step has chosen."""
        down = self.down(f"{name}_down", 2, index)
        if self.padding == "circular" and down.inside == 1 and kernel_size == 2 and pad == 0:
            # Unstrided, a circular map has a window at every pixel, the last included; without it
            # the polyphase components of a rolled map would not be rolled themselves.
            x = pad_map(x, ((0, 1), (0, 1)), "circular")
        pool = MaxPool(kernel_size, down.inside, self.padding, pad, name=name)
        return down(pool(x, down.position(train)), train)

    def margin(self, kernel_size: int) -> int:
        """Pixels per side that an unpadded convolution takes away and a shortcut has to crop."""
        return (kernel_size - 1) // 2 if self.padding == "valid" else 0


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's own initialiser of kernels and biases: uniform within ±1/√fan_in."""

    def initialise(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return initialise


def torch_dense(
    name: str,
    features: int,
    x: jax.Array,
    dtype: Any = jnp.float32,
    kernel_init: nn.initializers.Initializer | None = None,
) -> jax.Array:
    """A dense layer on ``x`` (batch, in), initialised as PyTorch does unless told otherwise."""
    uniform = torch_uniform(x.shape[-1])
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=uniform if kernel_init is None else kernel_init,
        bias_init=uniform,
        name=name,
    )(x)


def flatten_channels_first(x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) to (batch, channels * height * width), PyTorch's order."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
