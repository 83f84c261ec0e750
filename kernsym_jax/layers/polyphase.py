"""APS and LPS: downsampling that selects among the polyphase components."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers.conv import Conv
from kernsym_jax.layers.padding import pad_map


def polyphase(x: jax.Array, stride: int) -> list[jax.Array]:
    """Splits a map into the ``stride**2`` subsampled maps that together hold every pixel.

    Args:
      x: map (batch, height, width, channels); a size that ``stride`` does not divide is
        first extended circularly at the far end.
      stride: step on both axes.

    Returns:
      Maps (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels); number i * stride + j starts at
      row i and column j.
    """
    amounts = ((0, -x.shape[1] % stride), (0, -x.shape[2] % stride))
    x = pad_map(x, amounts, "circular")
    return [x[:, i::stride, j::stride] for i in range(stride) for j in range(stride)]


def mix(phases: list[jax.Array], weights: jax.Array) -> jax.Array:
    """Returns the sum of the components, weighted per sample by ``weights`` (batch, stride**2)."""
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
    """
    if key is None:
        return jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1])
    noise = jax.random.gumbel(key, logits.shape)
    return jax.nn.softmax((logits + noise) / temperature, axis=1)
