"""Batch normalisation with float32 statistics, whatever the compute type."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises each channel over batch, height and width.

    Parameters ``scale`` and ``bias``; running ``mean`` and ``var`` in the collection
    ``batch_stats``. As in PyTorch the running variance is the unbiased one. Under ``jit`` with a
    batch sharded over devices the statistics are those of the whole batch.

    Attributes:
      momentum: weight of the old running statistics at each step; PyTorch's is one minus this.
      epsilon: added to the variance.
      axis_name: axis of ``pmap`` or ``shard_map`` over which statistics are averaged, or
        ``None``.
      dtype: type of the result.

    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalises ``x`` (batch, height, width, channels), by its own statistics if ``train``."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        # Moments about the running mean take one pass over the map, without the cancellation of
        # raw moments.
        centre = jax.lax.stop_gradient(running_mean.value) if train else running_mean.value
        shifted = x.astype(jnp.float32) - _channels(centre)
        if train:
            mean, var, count = self._moments(shifted)
            if not self.is_initializing():
                fresh, unbiased = 1.0 - self.momentum, count / max(count - 1, 1)
                running_mean.value = self.momentum * centre + fresh * (mean + centre)
                running_var.value = self.momentum * running_var.value + fresh * unbiased * var
            factor = jax.lax.rsqrt(var + self.epsilon) * scale
            # The gradient of one factor and one term per channel reads fewer maps than that of
            # (shifted - mean) * factor + bias.
            bias = bias - mean * factor
        else:
            factor = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
        return (shifted * _channels(factor) + _channels(bias)).astype(self.dtype)

    def _moments(self, shifted: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Returns the mean, the biased variance and the number of values per channel."""
        first, second = shifted.mean((0, 1, 2)), jnp.square(shifted).mean((0, 1, 2))
        count = shifted.size // shifted.shape[-1]
        if self.axis_name is not None and not self.is_initializing():
            first, second = jax.lax.pmean((first, second), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        return first, jnp.maximum(second - jnp.square(first), 0.0), count


def _channels(values: jax.Array) -> jax.Array:
    """Reshapes values (channels,) so that they broadcast over a map."""
    return values.reshape(1, 1, 1, -1)
