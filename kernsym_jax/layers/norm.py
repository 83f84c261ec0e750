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
      momentum: share of the old running statistics kept at each step (PyTorch's is one minus it).
      epsilon: added to the variance.
      axis_name: the axis of ``pmap`` or ``shard_map`` over which statistics are shared, or
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
        x = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            old_mean, old_var = mean, var
            mean, var, count = self._batch_statistics(x, old_mean)
            if not self.is_initializing():
                fresh, unbiased = 1.0 - self.momentum, count / max(count - 1, 1)
                running_mean.value = self.momentum * old_mean + fresh * mean
                running_var.value = self.momentum * old_var + fresh * unbiased * var
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = (x - _channels(mean)) * _channels(factor) + _channels(bias)
        return y.astype(self.dtype)

    def _batch_statistics(
        self, x: jax.Array, centre: jax.Array
    ) -> tuple[jax.Array, jax.Array, int]:
        """Mean, biased variance and the number of values per channel."""
        # Moments about the running mean: one pass over x, without the cancellation of raw moments.
        centre = jax.lax.stop_gradient(centre)
        shifted = x - _channels(centre)
        first, second = shifted.mean((0, 1, 2)), jnp.square(shifted).mean((0, 1, 2))
        count = x.size // x.shape[-1]
        if self.axis_name is not None and not self.is_initializing():
            first, second = jax.lax.pmean((first, second), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        return first + centre, jnp.maximum(second - jnp.square(first), 0.0), count


def _channels(values: jax.Array) -> jax.Array:
    """Per-channel values, shaped to broadcast over a map."""
    return values.reshape(1, 1, 1, -1)
