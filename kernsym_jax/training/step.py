"""One pure training step and one pure evaluation step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kernsym_jax import symmetry
from kernsym_jax.data import Augment, augment, normalize
from kernsym_jax.training.state import NEVER, Meter, TrainState

Batch = dict[str, jax.Array]
Logs = dict[str, Any]


AUXILIARY_WEIGHT = 0.4
"""What an auxiliary head's loss counts (Inception-v3's usual share)."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is fixed about a step.

    Attributes:
      model: a network of `kernsym_jax.models`.
      transformation: the optimizer.
      mean: of the images, per channel.
      std: of the images, per channel.
      augment: how training images are varied.
      log_every: symmetry is measured, and the meter starts anew, every so many steps.
      total_steps: symmetry is measured after the last step too.
    """

    model: nn.Module
    transformation: optax.GradientTransformation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    log_every: int
    total_steps: int


def train_step(
    recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Logs]:
    """One step of training.

    Args:
      recipe: static.
      state: before the step.
      batch: ``image`` (batch, height, width, channels) uint8 and ``label`` (batch,) int32.
      key: the run's key; the step's own randomness is folded in from ``state.step``.

    Returns:
      The state after the step, and ``{"meter": Meter, "symmetry": {path: KernelSymmetry}}`` whose
      symmetry is NaN except where `logs_at` says that it is measured.
    """
    augment_key, *layer_keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
    images = augment(batch["image"], augment_key, recipe.augment)
    images = normalize(images, recipe.mean, recipe.std)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        output: Any = recipe.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs=dict(zip(("dropout", "downsample"), layer_keys, strict=True)),
        )
        logits, updates = output
        loss = jnp.zeros((), jnp.float32)
        if isinstance(logits, tuple):
            logits, auxiliary = logits
            loss = AUXILIARY_WEIGHT * mean_loss(auxiliary, batch["label"])
        loss = loss + mean_loss(logits, batch["label"])
        return loss, (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    updates, opt_state = recipe.transformation.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    meter = _advance(state.meter, state.step % recipe.log_every == 0, step, loss, logits, batch)
    # Decided inside the program: one compiled step serves the whole run.
    measured = jax.lax.cond(
        (step % recipe.log_every == 0) | (step == recipe.total_steps),
        symmetry.measure,
        lambda tree: jax.tree.map(
            lambda row: jnp.full(row.shape, jnp.nan, row.dtype),
            jax.eval_shape(symmetry.measure, tree),
        ),
        params,
    )
    return TrainState(step, params, batch_stats, opt_state, meter), {
        "meter": meter,
        "symmetry": measured,
    }


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The batch's mean cross-entropy of (batch, classes) logits with (batch,) int32 labels."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def logs_at(recipe: Recipe, step: int) -> bool:
    """Whether the logs of this step (counted as completed steps) are to be written."""
    return step % recipe.log_every == 0 or step == recipe.total_steps


def eval_step(recipe: Recipe, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """What a batch adds to the evaluation.

    Args:
      recipe: static.
      state: the parameters and statistics to evaluate.
      batch: as in training, with ``weight`` (batch,) float32: 0 for images that only fill it up.

    Returns:
      float32 sums over the images that count: ``loss``, ``correct``, ``images``.
    """
    logits: Any = recipe.model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        normalize(batch["image"], recipe.mean, recipe.std),
        train=False,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
    weight = batch["weight"]
    # An image that does not count may have any loss, also one that is not finite.
    return {
        "loss": jnp.sum(jnp.where(weight > 0, losses, 0)),
        "correct": jnp.sum(correct * weight),
        "images": jnp.sum(weight),
    }


def jit_steps(
    recipe: Recipe,
) -> tuple[Callable[..., tuple[TrainState, Logs]], Callable[..., dict[str, jax.Array]]]:
    """The two steps compiled, the training step with its state donated."""

    def train(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Logs]:
        return train_step(recipe, state, batch, key)

    def evaluate(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        return eval_step(recipe, state, batch)

    return jax.jit(train, donate_argnums=0), jax.jit(evaluate)


def _advance(
    meter: Meter,
    anew: jax.Array,
    step: jax.Array,
    loss: jax.Array,
    logits: jax.Array,
    batch: Batch,
) -> Meter:
    kept = jnp.where(anew, 0.0, 1.0)
    correct = jnp.argmax(logits, axis=-1) == batch["label"]
    bad = jnp.where(jnp.isfinite(loss), NEVER, step)
    return Meter(
        loss=jnp.where(anew, 0.0, meter.loss) + loss,
        correct=kept * meter.correct + jnp.sum(correct.astype(jnp.float32)),
        images=kept * meter.images + float(len(logits)),
        steps=kept * meter.steps + 1,
        bad_step=jnp.minimum(meter.bad_step, bad),
    )
