"""What a training step carries on: parameters, optimizer, running figures."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kernsym_jax.training.optimizer import optimizer
from kernsym_jax.training.recipe import Recipe

NEVER = 2**31 - 1
"""The step of `Meter.bad_step` while every loss has been finite."""


@flax.struct.dataclass
class Meter:
    """Sums over the steps since the last log line; part of the state, so a resumed run logs alike.

    Attributes:
      loss: float32, sum of the batches' mean losses.
      correct: float32, number of images classified correctly; of pixels if they have masks.
      images: float32, number of images; of the pixels that count if they have masks.
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
      ema: moving averages of ``params`` and ``batch_stats``, float32; empty if there are none.
      meter: sums since the last log line.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    meter: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def initial_state(recipe: Recipe, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    """The state before the first step, from the run's key alone.

    Args:
      recipe: of the run.
      image_shape: (height, width, channels).
      key: of the run.

    Returns:
      The state; all arrays are fresh.
    """
    # A key of its own, so that the initial weights share no bits with the first step.
    key = jax.random.fold_in(key, NEVER)
    variables = recipe.model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if recipe.lever:
        # Also finds layers that are not there before anything is written.
        recipe.lever.chosen(params)
    if recipe.lever.project:
        params = recipe.lever.projected(params)
    averages = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer(recipe).init(params),
        ema=averages if recipe.ema_decay else {},
        meter=Meter.empty(),
    )
