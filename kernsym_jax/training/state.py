"""What a training step carries on: parameters, optimizer, running figures."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

NEVER = 2**31 - 1
"""The step of `Meter.bad_step` while every loss has been finite."""


@flax.struct.dataclass
class Meter:
    """Sums over the steps since the last log line; part of the state, so a resumed run logs alike.

    Attributes:
      loss: float32, sum of the batches' mean losses.
      correct: float32, number of images classified correctly.
      images: float32, number of images.
      steps: float32, number of steps.
      bad_step: int32, the first step of the run whose loss was not finite, or `NEVER`.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array
    steps: jax.Array
    bad_step: jax.Array

    @classmethod
    def empty(cls) -> "Meter":
        """A meter that has seen nothing."""
        names = ("loss", "correct", "images", "steps")
        sums = {name: jnp.zeros((), jnp.float32) for name in names}
        return cls(bad_step=jnp.full((), NEVER, jnp.int32), **sums)


@flax.struct.dataclass
class TrainState:
    """The whole state of a run; all of it is saved, and none of it refers to code.

    Attributes:
      step: int32, number of completed steps.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32.
      opt_state: the optimizer's state.
      meter: sums since the last log line.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    meter: Meter


def learning_rate(config: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to 0 at the last step.

    Args:
      config: of the run, resolved.
      steps_per_epoch: training steps in an epoch.

    Returns:
      The learning rate as a function of the number of completed steps.
    """
    total = total_steps(config, steps_per_epoch)
    warmup = min(round(config.optimizer.warmup_epochs * steps_per_epoch), total - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.optimizer.learning_rate,
        peak_value=config.optimizer.learning_rate,
        warmup_steps=warmup,
        decay_steps=total,
    )
    # In floats from the start: optax mixes the count with floats, which strict promotion forbids.
    return lambda count: schedule(jnp.asarray(count, jnp.float32))


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The length of a run in steps, at least 1."""
    return max(1, round(config.epochs * steps_per_epoch))


def optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum; weight decay on kernels only, not on BatchNorm and biases.

    Args:
      config: of the run, resolved.
      schedule: learning rate by step.

    Returns:
      The gradient transformation.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(config.optimizer.weight_decay, decayed),
        optax.sgd(schedule, config.optimizer.momentum, config.optimizer.nesterov),
    )


def create_state(
    model: nn.Module, transformation: optax.GradientTransformation, key: jax.Array, images: Any
) -> TrainState:
    """The state before the first step.

    Args:
      model: a network of `kernsym_jax.models`.
      transformation: the optimizer.
      key: a JAX random key.
      images: an example batch, for its shape (batch, height, width, channels) and dtype.

    Returns:
      The state; all arrays are fresh.
    """
    variables = model.init(key, jnp.zeros(images.shape, images.dtype))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=transformation.init(variables["params"]),
        meter=Meter.empty(),
    )
