"""Changes of resolution: the five methods of a strided layer, upsampling, and fixed grids."""

import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernsym_jax.layers.conv import Conv
from kernsym_jax.layers.padding import (
    Pair,
    Position,
    check_map,
    check_window,
    corner,
    module_path,
    pad_map,
    pair,
    random_position,
)


def binomial(size: int) -> np.ndarray:
    """Returns row ``size - 1`` of Pascal's triangle, scaled to sum 1: (size,) float32.

    >>> from kernsym_jax import layers
    >>> layers.binomial(3).tolist()
    [0.25, 0.5, 0.25]
    """
    row = np.array([math.comb(size - 1, i) for i in range(size)], np.float64)
    return (row / row.sum()).astype(np.float32)


def blur_pool(
    x: jax.Array, size: int, stride: int, padding: str = "reflect", layer: str = "blur_pool"
) -> jax.Array:
    """Blurs each channel and keeps every ``stride``-th pixel.

    Args:
      x: map (batch, height, width, channels).
      size: taps of the binomial filter per axis, from 1 (plain subsampling) to 7.
      stride: step on both axes.
      padding: one of ``PADDINGS``; adds ⌊(size-1)/2⌋ pixels at the near and ⌈(size-1)/2⌉ at the far
        end of each axis.
      layer: name for error messages.

    Returns:
      Map (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels), of the type of ``x``.

    Raises:
      ValueError: if the size is not in 1..7, or the map is empty or too small for the padding.

    Reference: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 3.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> stripes = jnp.tile(jnp.array([0.0, 1.0]), (4, 2)).reshape(1, 4, 4, 1)
    >>> layers.blur_pool(stripes, size=1, stride=2)[0, 0, :, 0].tolist()
    [0.0, 0.0]
    >>> layers.blur_pool(stripes, size=3, stride=2)[0, 0, :, 0].tolist()
    [0.5, 0.5]
    """
    if size not in range(1, 8):
        raise ValueError(f"{layer}: blur size must be 1 to 7, got {size}")
    near, far = (size - 1) // 2, size // 2
    amounts = ((near, far), (near, far))
    check_map((x.shape[1], x.shape[2]), layer)
    check_window((x.shape[1], x.shape[2]), (size, size), (1, 1), amounts, padding, layer)
    x = pad_map(x, amounts, padding)
    taps = binomial(size).astype(x.dtype)
    # Sums of shifted slices, one axis after the other, are much faster than a depthwise convolution
    # on CPUs and as fast elsewhere.
    for axis in (1, 2):
        end = x.shape[axis] - size + 1
        x = sum(lax.slice_in_dim(x, i, i + end, stride, axis) * tap for i, tap in enumerate(taps))
    return x


def polyphase(x: jax.Array, stride: int) -> list[jax.Array]:
    """Splits a map into the ``stride**2`` subsampled maps that together hold every pixel.

    Args:
      x: map (batch, height, width, channels); a size that ``stride`` does not divide is
        first extended circularly at the far end.
      stride: step on both axes.

    Returns:
      Maps (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels); number i * stride + j starts at
      row i and column j.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> phases = layers.polyphase(jnp.arange(16).reshape(1, 4, 4, 1), stride=2)
    >>> phases[0][0, :, :, 0].tolist(), phases[1][0, :, :, 0].tolist()
    ([[0, 2], [8, 10]], [[1, 3], [9, 11]])
    """
    amounts = ((0, -x.shape[1] % stride), (0, -x.shape[2] % stride))
    x = pad_map(x, amounts, "circular")
    return [x[:, i::stride, j::stride] for i in range(stride) for j in range(stride)]


def mix(phases: list[jax.Array], weights: jax.Array) -> jax.Array:
    """Mixes the polyphase components of each sample.

    Args:
      phases: the components, as ``polyphase`` returns them.
      weights: (batch, stride**2), one weight per component.

    Returns:
      The weighted sum (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels).

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> phases = layers.polyphase(jnp.arange(16.0).reshape(1, 4, 4, 1), stride=2)
    >>> layers.mix(phases, jnp.array([[0.5, 0.5, 0.0, 0.0]]))[0, :, :, 0].tolist()
    [[0.5, 2.5], [8.5, 10.5]]
    """
    shares = weights.astype(phases[0].dtype)[:, :, None, None, None]
    mixed = shares[:, 0] * phases[0]
    for i, phase in enumerate(phases[1:], start=1):
        mixed = mixed + shares[:, i] * phase
    return mixed


def aps_weights(phases: list[jax.Array]) -> jax.Array:
    """Returns weight 1 for each sample's component of largest l2 norm, and 0 for the others.

    Args:
      phases: the components, as ``polyphase`` returns them.

    Returns:
      Weights (batch, stride**2), float32.

    Reference: Chaman & Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> phases = layers.polyphase(jnp.arange(16.0).reshape(1, 4, 4, 1), stride=2)
    >>> layers.aps_weights(phases).tolist()
    [[0.0, 0.0, 0.0, 1.0]]
    """
    energies = [jnp.square(phase.astype(jnp.float32)).sum((1, 2, 3)) for phase in phases]
    return jax.nn.one_hot(jnp.argmax(jnp.stack(energies, axis=1), axis=1), len(phases))


class PhaseLogits(nn.Module):
    """Scores each component for LPS by two 3×3 convolutions and an average.

    All components share the weights. Padding is circular, so a rolled component scores the same.

    Attributes:
      hidden: channels between the two convolutions.
      dtype: type of the computation.

    Reference: Rojas-Gomez et al., "Learnable Polyphase Sampling", NeurIPS 2022, section 4.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> phases = [jnp.ones((2, 4, 4, 3))] * 4
    >>> logits, _ = jax.eval_shape(layers.PhaseLogits().init_with_output, jax.random.key(0), phases)
    >>> logits.shape
    (2, 4)
    """

    hidden: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, phases: list[jax.Array]) -> jax.Array:
        """Returns logits (batch, stride**2), float32."""
        batch = phases[0].shape[0]
        x = jnp.concatenate(phases, axis=0)
        x = nn.relu(Conv(self.hidden, 3, padding="circular", dtype=self.dtype, name="conv1")(x))
        x = Conv(1, 3, padding="circular", dtype=self.dtype, name="conv2")(x)
        return x.astype(jnp.float32).mean((1, 2, 3)).reshape(len(phases), batch).T


def lps_weights(logits: jax.Array, key: jax.Array | None, temperature: float = 1.0) -> jax.Array:
    """Returns a Gumbel-softmax sample over the components, or the best one without a key.

    Args:
      logits: (batch, stride**2), float32.
      key: key of the Gumbel noise in training; ``None`` in evaluation.
      temperature: temperature of the softmax.

    Returns:
      Weights (batch, stride**2), float32, each row summing to 1.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> logits = jnp.array([[1.0, 2.0, 0.0, 0.0]])
    >>> layers.lps_weights(logits, key=None).tolist()
    [[0.0, 1.0, 0.0, 0.0]]
    >>> float(layers.lps_weights(logits, jax.random.key(0)).sum().round(3))
    1.0
    """
    if key is None:
        return jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1])
    noise = jax.random.gumbel(key, logits.shape)
    return jax.nn.softmax((logits + noise) / temperature, axis=1)


DOWNSAMPLINGS = ("stride", "blur", "sbpool", "aps", "lps")
"""The methods of `Downsample`."""


def check_downsample(downsample: str, layer: str) -> None:
    """Raises a ``ValueError`` naming ``layer`` unless ``downsample`` is in ``DOWNSAMPLINGS``.

    >>> from kernsym_jax import layers
    >>> layers.check_downsample("blurr", "layer1/down")
    Traceback (most recent call last):
        ...
    ValueError: layer1/down: unknown downsample 'blurr'; wanted one of ('stride', 'blur',
    'sbpool', 'aps', 'lps')
    """
    if downsample not in DOWNSAMPLINGS:
        raise ValueError(
            f"{layer}: unknown downsample {downsample!r}; wanted one of {DOWNSAMPLINGS}"
        )


class Downsample(nn.Module):
    """Downsamples the branches of a network that meet at one strided layer.

    ``stride`` and ``sbpool`` step inside the convolution or pooling. ``blur``, ``aps`` and ``lps``
    step later, after the normalisation and the activation that follow it::

        down = Downsample("aps", stride=2, index=0, name="down1")
        position = down.position(train)
        y = Conv(64, 3, stride=down.inside, name="conv1")(x, position)
        y, phases = down(nn.relu(y), train)
        shortcut, _ = down(x, train, phases)
        shortcut = Conv(64, 1, stride=down.inside, name="conv2")(shortcut, position)

    Training draws from the rng stream ``downsample``: one SBPool position per forward call, and LPS
    noise per sample.

    Attributes:
      method: one of ``DOWNSAMPLINGS``.
      stride: step on both axes; with 1 the module returns its input.
      index: number of the strided layer in forward order, from 0; it selects SBPool's corner in
        evaluation.
      blur_size: taps of the binomial filter of ``blur``, 1 to 7.
      dtype: type of the computation.

    Reference: SBPool, Alsallakh et al., ICLR 2023; BlurPool, Zhang, ICML 2019; APS, Chaman &
    Dokmanic, CVPR 2021; LPS, Rojas-Gomez et al., NeurIPS 2022.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> down = layers.Downsample("aps", stride=2)
    >>> kept, phases = down.apply({}, x)
    >>> down.inside, kept[0, :, :, 0].tolist(), phases.tolist()
    (1, [[5.0, 7.0], [13.0, 15.0]], [[0.0, 0.0, 0.0, 1.0]])
    """

    method: str = "stride"
    stride: int = 2
    index: int = 0
    blur_size: int = 4
    dtype: Any = jnp.float32

    @property
    def inside(self) -> int:
        """Returns the stride of the convolution or pooling itself."""
        check_downsample(self.method, module_path(self))
        return self.stride if self.method in ("stride", "sbpool") else 1

    def position(self, train: bool = False) -> Position | None:
        """Returns SBPool's window position: random in training, a corner in evaluation."""
        if self.method != "sbpool" or self.stride == 1:
            return None
        return random_position(self.make_rng("downsample")) if train else corner(self.index)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, phases: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Subsamples the map, unless the layer before has done so.

        Args:
          x: map (batch, height, width, channels).
          train: whether LPS samples a mixture of components instead of taking the best one.
          phases: weights that another branch has returned; ``None`` to choose them from ``x``.

        Returns:
          The map, and the weights (batch, stride**2) of its polyphase components for the other
          branches; ``None`` for methods without such weights.

        Raises:
          ValueError: if the method is unknown, or the map too small for the blur.
        """
        check_downsample(self.method, module_path(self))
        if self.stride == 1 or self.method in ("stride", "sbpool"):
            return x, None
        if self.method == "blur":
            return blur_pool(x, self.blur_size, self.stride, layer=module_path(self)), None
        components = polyphase(x, self.stride)
        if phases is None and self.method == "aps":
            phases = aps_weights(components)
        elif phases is None:
            logits = PhaseLogits(dtype=self.dtype, name="logits")(components)
            phases = lps_weights(logits, self.make_rng("downsample") if train else None)
        return mix(components, phases), phases


def adaptive_average_pool(x: jax.Array, size: int | Pair) -> jax.Array:
    """Averages a map onto a grid of fixed size.

    Cell i of n along an axis of h pixels averages rows ⌊i·h/n⌋ to ⌈(i+1)·h/n⌉ - 1, as PyTorch's
    ``AdaptiveAvgPool2d`` does; cells overlap where n does not divide h.

    Args:
      x: map (batch, height, width, channels).
      size: height and width of the grid, or one number for both.

    Returns:
      Map (batch, *size, channels), of the type of ``x``; averages are taken in float32.

    Raises:
      ValueError: if the map is empty.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    >>> layers.adaptive_average_pool(x, (1, 2)).ravel().tolist()
    [1.0, 3.0]
    """
    y = x.astype(jnp.float32)
    for axis, cells in zip((1, 2), pair(size), strict=True):
        length = y.shape[axis]
        if length == 0:
            raise ValueError(f"adaptive_average_pool: the input map is empty, shape {x.shape}")
        if length % cells == 0:
            shape = (*y.shape[:axis], cells, length // cells, *y.shape[axis + 1 :])
            y = y.reshape(shape).mean(axis + 1)
        else:
            means = [
                lax.slice_in_dim(
                    y, i * length // cells, -(-(i + 1) * length // cells), axis=axis
                ).mean(axis, keepdims=True)
                for i in range(cells)
            ]
            y = jnp.concatenate(means, axis)
    return y.astype(x.dtype)


def upsample(
    x: jax.Array,
    size: Pair,
    *,
    stride: int = 2,
    phases: jax.Array | None = None,
    first: float = 0.0,
    padding: str = "zero",
    layer: str = "upsample",
) -> jax.Array:
    """Enlarges a map bilinearly; its pixels end up ``stride`` pixels apart.

    Without ``phases`` the map lies in the middle of the result, so a flipped map gives a flipped
    result. With them pixel 0 lies where the kept polyphase component began, so downsampling by APS
    or LPS followed by this upsampling commutes with circular shifts.

    Args:
      x: map (batch, height, width, channels).
      size: height and width of the result.
      stride: the step on both axes.
      phases: weights (batch, stride**2) of the polyphase components, as ``Downsample`` returns
        them; the result is the mixture of those of every component.
      first: position of component 0, in pixels from the middle of the first pixel of the result: 0
        after a convolution, 1/2 after a 2×2 pooling.
      padding: padding of the network; ``circular`` wraps around, every other mode repeats the
        border.
      layer: name for error messages.

    Returns:
      Map (batch, *size, channels), of the type of ``x``.

    Raises:
      ValueError: if the map is empty.

    Reference: Rojas-Gomez et al., "Learnable Polyphase Sampling", NeurIPS 2022, section 4.3, for
      the way up by phase.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> layers.upsample(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), size=(1, 4)).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    height, width = x.shape[1:3]
    check_map((height, width), layer)
    beyond = "circular" if padding == "circular" else "replicate"
    if phases is None:
        rows, columns = (
            (wanted - 1 - stride * (given - 1)) / 2
            for wanted, given in zip(size, (height, width), strict=True)
        )
        return _spread(
            _spread(x, 1, size[0], stride, rows, beyond), 2, size[1], stride, columns, beyond
        )
    taller = [_spread(x, 1, size[0], stride, first + i, beyond) for i in range(stride)]
    return mix(
        [
            _spread(tall, 2, size[1], stride, first + j, beyond)
            for tall, j in itertools.product(taller, range(stride))
        ],
        phases,
    )


def _spread(
    x: jax.Array, axis: int, size: int, stride: int, first: float, padding: str
) -> jax.Array:
    """Moves pixel i of an axis to ``first + stride * i`` of ``size`` and interpolates linearly."""
    # Every stride-th pixel of the result divides the distance between its neighbours in the same
    # ratio, so two slices make it. A gather would have a slow scatter as its gradient.
    count = -(-size // stride)
    places = [(phase - first) / stride for phase in range(stride)]
    lows = [math.floor(place) for place in places]
    near, far = max(0, -min(lows)), max(0, max(lows) + 1 + count - x.shape[axis])
    amounts = ((near, far), (0, 0)) if axis == 1 else ((0, 0), (near, far))
    x = pad_map(x, amounts, padding)

    def between(low: int, share: float) -> jax.Array:
        start = low + near
        pixels = lax.slice_in_dim(x, start, start + count, axis=axis)
        if share == 0:
            return pixels
        after = lax.slice_in_dim(x, start + 1, start + 1 + count, axis=axis)
        return pixels * (1 - share) + after * share

    parts = [between(low, place - low) for low, place in zip(lows, places, strict=True)]
    joined = jnp.stack(parts, axis + 1)
    shape = (*x.shape[:axis], count * stride, *x.shape[axis + 1 :])
    return lax.slice_in_dim(joined.reshape(shape), 0, size, axis=axis)
