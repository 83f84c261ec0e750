"""The optimizer and its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from kernsym_jax.training.recipe import Recipe


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to 0 at the last step.

    Args:
      recipe: of the run.

    Returns:
      The learning rate as a function of the number of completed steps.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if recipe.warmup_steps else recipe.optimizer.learning_rate,
        peak_value=recipe.optimizer.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=recipe.total_steps,
    )
    # In floats from the start: optax mixes the count with floats, which strict promotion forbids.
    return lambda count: schedule(jnp.asarray(count, jnp.float32))


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with momentum; weight decay on kernels only, not on BatchNorm and biases.

    Args:
      recipe: of the run. Its ``clip_norm`` bounds the length of the gradient before weight decay is
        added.

    Returns:
      The gradient transformation.
    """
    settings = recipe.optimizer

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        # A link of the chain either way, so that all runs' states have the same paths.
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.sgd(learning_rate(recipe), settings.momentum, settings.nesterov),
    )
