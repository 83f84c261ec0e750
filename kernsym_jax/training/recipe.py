"""All that is fixed about the steps of a run, as one value that programs are compiled for."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from kernsym_jax import data, models
from kernsym_jax.training.loss import median_frequency_weights
from kernsym_jax.training.symmetry_lever import SymmetryLever

# Enough to know how frequent classes are; reading all of a large set would take hours.
_MASKS_COUNTED = 2000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is fixed about a step. Equal recipes share their compiled programs.

    Attributes:
      model: a network of `kernsym_jax.models`.
      optimizer: the keys under ``config.optimizer``.
      warmup_steps: over which the learning rate rises.
      total_steps: of the run; symmetry is measured after the last one too.
      mean: of the images, per channel.
      std: of the images, per channel.
      augment: how training images are varied.
      log_every: symmetry is measured, and the meter starts anew, every so many steps.
      label_smoothing: share of the target that is spread over all classes.
      class_weights: what a label of each class counts in the loss; empty for all alike.
      ema_decay: of the weights' moving average; 0 for none.
      lever: what makes mean kernels more symmetric than the task alone.
      axis_name: the mapped axis along which devices share a batch; None where there is no such axis
        and every array is the whole one.
    """

    model: nn.Module
    optimizer: ml_collections.FrozenConfigDict
    warmup_steps: int
    total_steps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: data.Augment
    log_every: int
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ema_decay: float = 0.0
    lever: SymmetryLever = dataclasses.field(default_factory=SymmetryLever)
    axis_name: str | None = None

    def logs_at(self, step: int) -> bool:
        """Whether the logs of this step (counted as completed steps) are to be written."""
        return step % self.log_every == 0 or step == self.total_steps


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The length of a run in steps, at least 1."""
    return max(1, round(config.epochs * steps_per_epoch))


def make_recipe(
    config: ml_collections.ConfigDict, dataset: data.Dataset, axis_name: str | None = None
) -> Recipe:
    """All that is fixed about a step of this run.

    Args:
      config: of the run, complete.
      dataset: of the run.
      axis_name: the mapped axis along which devices share a batch.

    Returns:
      The recipe; it is the same for all seeds.

    Raises:
      ValueError: if there is no such model.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model.to_dict().items()
    }
    steps_per_epoch = dataset.train.steps_per_epoch
    steps = total_steps(config, steps_per_epoch)
    return Recipe(
        model=models.create(**{**fields, "bn_axis_name": axis_name}),
        optimizer=ml_collections.FrozenConfigDict(config.optimizer),
        warmup_steps=min(round(config.optimizer.warmup_epochs * steps_per_epoch), steps - 1),
        total_steps=steps,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        augment=dataset.augment,
        log_every=config.log_every,
        label_smoothing=config.label_smoothing,
        class_weights=tuple(map(float, config.class_weights)),
        ema_decay=config.ema_decay,
        lever=SymmetryLever.from_config(config.symmetry),
        axis_name=axis_name,
    )


def complete(config: ml_collections.ConfigDict, dataset: data.Dataset) -> ml_collections.ConfigDict:
    """The config with what the data decide: statistics of the images, classes and their weights.

    Args:
      config: of the run, resolved.
      dataset: of the run.

    Returns:
      A config for which the run is the same whatever is found in the data.

    Raises:
      ValueError: if the model has fewer classes than the data, or more than masks can have, or its
        images cannot be shifted or flipped as they are to be.
    """
    config = ml_collections.ConfigDict(config)
    config.data.mean, config.data.std = dataset.mean, dataset.std
    classes = len(dataset.classes)
    if 0 < config.model.num_classes < classes:
        raise ValueError(
            f"labels up to {classes - 1} are out of range for "
            f"config.model.num_classes={config.model.num_classes}"
        )
    config.model.num_classes = config.model.num_classes or classes
    if dataset.masks and config.model.num_classes > data.VOID:
        raise ValueError(
            f"masks have at most {data.VOID} classes, got "
            f"config.model.num_classes={config.model.num_classes}"
        )
    config.class_weights = _class_weights(config, dataset)
    height, width = dataset.image_shape[:2]
    if config.data.shift >= min(height, width):
        raise ValueError(
            f"config.data.shift={config.data.shift} leaves nothing of {height}×{width} images"
        )
    if config.data.flip == "d4" and height != width:
        raise ValueError(f"config.data.flip=d4 needs square images, got {height}×{width}")
    if config.consistency.images and config.consistency.shift >= min(height, width):
        raise ValueError(
            f"config.consistency.shift={config.consistency.shift} leaves nothing of "
            f"{height}×{width} images"
        )
    return config


def require_fit(recipe: Recipe, variables: Any, dataset: data.Dataset) -> None:
    """Raises `ValueError` if a network answers images and the data have masks, or the other way.

    Args:
      recipe: of the run.
      variables: of its network.
      dataset: of the run.
    """
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
    answer: Any = jax.eval_shape(
        lambda v, x: recipe.model.apply(v, x, train=False), variables, images
    )
    wanted = (*images.shape[: 3 if dataset.masks else 1], answer.shape[-1])
    if answer.shape != wanted:
        network, kind = type(recipe.model).__name__, "masks" if dataset.masks else "class labels"
        raise ValueError(
            f"{network} gives logits of shape {answer.shape} for images of shape {images.shape}; "
            f"data with {kind} want {wanted} (config.model.name=unet is for masks)"
        )


def _class_weights(config: ml_collections.ConfigDict, dataset: data.Dataset) -> tuple[float, ...]:
    """Those of the config, or what it asks of the training masks."""
    given, classes = tuple(config.class_weights), config.model.num_classes
    if config.class_balance != "none" and not dataset.masks:
        raise ValueError(
            f"config.class_balance={config.class_balance} is for masks, and the data have class "
            "labels; config.class_weights gives weights for these"
        )
    if given and len(given) != classes:
        raise ValueError(f"config.class_weights: {len(given)} numbers for {classes} classes")
    if given or config.class_balance == "none":
        return given
    masks = dataset.take_static(min(dataset.train_size, _MASKS_COUNTED))["label"]
    return median_frequency_weights(masks, classes)
