"""How the layers of one network are made: padding, downsampling and the type of the computation."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    Downsample,
    MaxPool,
    check_downsample,
    check_padding,
    pad_map,
)

# The initialiser of most published definitions; fan_out counts kh * kw * out.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# One object each, because JAX traces layers apart that have different objects for initialisers.
HE_NORMAL = nn.initializers.he_normal()
normal = functools.cache(nn.initializers.normal)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Makes the layers of a network, all with the same padding, downsampling and type.

    Every network of this package has one field ``variant``; `models.create` builds it. The
    attributes up to ``dtype`` are the caller's choice. The others belong to the published
    definition, and the network sets them with ``dataclasses.replace``.

    Attributes:
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      blur_size: number of taps of the filter of ``downsample="blur"``, 1 to 7.
      bn_axis_name: axis over which ``pmap`` shares BatchNorm statistics, or None.
      dtype: type of the computation.
      bn_epsilon: number that BatchNorm adds to the variance.
      bn_momentum: share of the old running statistics that BatchNorm keeps at each step.
      kernel_init: initialiser of the convolution kernels.

    >>> from kernsym_jax import models
    >>> model = models.create("small_cnn", padding="circular", downsample="blur")
    >>> model.variant.padding, model.variant.downsample
    ('circular', 'blur')
    """

    padding: str = "zero"
    downsample: str = "stride"
    blur_size: int = 4
    bn_axis_name: str | None = None
    dtype: Any = jnp.float32
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT

    def conv(self, name: str, features: int, kernel_size: Any, **fields: Any) -> Conv:
        """Returns a convolution without bias, unless ``fields`` ask for one."""
        defaults = {
            "padding": self.padding,
            "use_bias": False,
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
        }
        return Conv(features, kernel_size, name=name, **{**defaults, **fields})

    def norm(self, name: str) -> BatchNorm:
        """Returns a BatchNorm."""
        return BatchNorm(
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
            name=name,
        )

    def down(self, name: str, stride: int, index: int) -> Downsample:
        """Returns the module that takes the step of strided place number ``index``."""
        return Downsample(self.downsample, stride, index, self.blur_size, self.dtype, name=name)

    def max_pool(
        self, name: str, x: jax.Array, kernel_size: int, pad: int, *, index: int, train: bool
    ) -> jax.Array:
        """Max-pools with stride 2.

        Args:
          name: name of the pooling; its step is ``{name}_down``.
          x: map (batch, height, width, channels).
          kernel_size: height and width of the window.
          pad: rows and columns added per side.
          index: number of this strided place in the network, from 0.
          train: draw what the downsampling draws in training.

        Returns:
          Map (batch, out_h, out_w, channels).
        """
        return self.max_pool_and_phases(name, x, kernel_size, pad, index=index, train=train)[0]

    def max_pool_and_phases(
        self, name: str, x: jax.Array, kernel_size: int, pad: int, *, index: int, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Max-pools as ``max_pool`` does and also returns the phases that the step has chosen."""
        down = self.down(f"{name}_down", 2, index)
        if kernel_size == 2 and pad == 0:
            x = self.extend_for_step(x, 2, down)
        pool = MaxPool(kernel_size, down.inside, self.padding, pad, name=name)
        return down(pool(x, down.position(train)), train)

    def average_pool(self, name: str, x: jax.Array, *, index: int, train: bool) -> jax.Array:
        """Averages 2×2 windows with stride 2; the arguments are those of ``max_pool``."""
        down = self.down(f"{name}_down", 2, index)
        x = self.extend_for_step(x, 2, down)
        pool = AvgPool(2, down.inside, self.padding, pad=0, name=name)
        return down(pool(x, down.position(train)), train)[0]

    def stochastic_depth(self, x: jax.Array, rate: float, train: bool) -> jax.Array:
        """Sets the branch ``x`` to zero for a share ``rate`` of the samples of a training batch."""
        drop = nn.Dropout(rate, (1, 2, 3), deterministic=not train, name="stochastic_depth")
        return drop(x)

    def extend_for_step(self, x: jax.Array, kernel_size: int, down: Downsample) -> jax.Array:
        """Extends a circular map for unpadded windows that ``down`` subsamples afterwards.

        Without padding, the windows that would wrap around the border are missing. The polyphase
        components of a rolled map are rolled components only if every pixel has its window.
        """
        if self.padding != "circular" or down.inside == down.stride:
            return x
        extra = (0, kernel_size - 1)
        return pad_map(x, (extra, extra), "circular")

    def margin(self, kernel_size: int) -> int:
        """Returns the pixels per side that an unpadded convolution removes from its map.

        A shortcut beside the convolution is cropped by the same number.
        """
        return (kernel_size - 1) // 2 if self.padding == "valid" else 0


def make_variant(
    model: str,
    padding: str = "zero",
    downsample: str = "stride",
    dtype: Any = jnp.float32,
    blur_size: int = 4,
    bn_axis_name: str | None = None,
) -> Variant:
    """Returns the variant with these choices, checked.

    Args:
      model: name for error messages.
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      dtype: a float type or its name.
      blur_size: number of taps of the filter of ``downsample="blur"``.
      bn_axis_name: axis over which ``pmap`` shares BatchNorm statistics, or None.

    Raises:
      ValueError: for an unknown padding or downsampling, or a type that is not a float type.
    """
    check_padding(padding, model)
    check_downsample(downsample, model)
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"{model}: dtype must be a float type such as bfloat16, got {dtype!r}")
    return Variant(padding, downsample, blur_size, bn_axis_name, kind)


def vary(model: nn.Module, **changes: Any) -> nn.Module:
    """Returns the same network with another padding, downsampling or type.

    Args:
      model: a network with a field ``variant``.
      **changes: attributes of `Variant`, for example ``downsample="blur"``.

    >>> from kernsym_jax import models
    >>> model = models.create("small_cnn")
    >>> models.vary(model, downsample="blur").variant.downsample
    'blur'
    """
    variant: Variant = model.variant
    return model.clone(variant=dataclasses.replace(variant, **changes))


@functools.cache
def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initialiser of kernels and biases: uniform within ±1/√fan_in."""

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
    """Applies a dense layer to ``x`` (batch, in).

    The bias starts with PyTorch's default initialiser, and so does the kernel unless
    ``kernel_init`` is given.
    """
    uniform = torch_uniform(x.shape[-1])
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=uniform if kernel_init is None else kernel_init,
        bias_init=uniform,
        name=name,
    )(x)


def flatten_channels_first(x: jax.Array) -> jax.Array:
    """Flattens (batch, height, width, channels) to (batch, channels * height * width)."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
