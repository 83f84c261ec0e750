"""The fixed settings of a training step, its optimizer, and the state that it carries on."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from kernsym_jax import data, geometry, models
from kernsym_jax.training.loss import SymmetryLever

NEVER = 2**31 - 1
"""The value of `Meter.bad_step` while every step has been finite."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The fixed settings of a step. Equal recipes share their compiled programs.

    Attributes:
      model: a network of `kernsym_jax.models`.
      optimizer: the keys under ``config.optimizer``.
      warmup_steps: steps over which the learning rate rises.
      total_steps: steps of the run.
      mean: mean of the images per channel; white is 1.
      std: standard deviation of the images per channel.
      augment: random changes of the training images.
      log_every: steps between two measurements of symmetry, and between two log lines.
      label_smoothing: share of the target that is spread over all classes.
      class_weights: weight of each class in the loss; () for equal weights.
      ema_decay: decay of the moving average of the weights; 0 for no average.
      lever: symmetry term of the loss, or projection of the weights.
      axis_name: mapped axis of the devices that share a batch; None if each array is the whole.
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
        """Returns whether a log line follows that many completed steps."""
        return step % self.log_every == 0 or step == self.total_steps


def make_recipe(
    config: ml_collections.ConfigDict, dataset: data.Dataset, axis_name: str | None = None
) -> Recipe:
    """Returns the settings of the steps of a run; they are equal for all seeds.

    Args:
      config: the complete config of the run.
      dataset: the data of the run.
      axis_name: mapped axis of the devices that share a batch.

    Raises:
      ValueError: if the registry has no such model.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model.to_dict().items()
    }
    steps_per_epoch = dataset.train.steps_per_epoch
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
    return Recipe(
        model=models.create(**{**fields, "bn_axis_name": axis_name}),
        optimizer=ml_collections.FrozenConfigDict(config.optimizer),
        warmup_steps=min(warmup_steps, total_steps - 1),
        total_steps=total_steps,
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


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Returns the schedule: a linear rise from 0, then half a cosine down to 0 at the last step.

    Args:
      recipe: settings of the run.

    Returns:
      A function from the number of completed steps to the learning rate.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if recipe.warmup_steps else recipe.optimizer.learning_rate,
        peak_value=recipe.optimizer.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=recipe.total_steps,
    )
    # As a float from the start: optax mixes the count with floats, which strict promotion forbids.
    return lambda count: schedule(jnp.asarray(count, jnp.float32))


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Returns SGD with momentum, and weight decay on kernels but not on BatchNorm and biases.

    ``clip_norm`` bounds the length of the gradient before weight decay is added.

    Args:
      recipe: settings of the run.
    """
    settings = recipe.optimizer

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        # Without clipping the chain is as long, so that the states of all runs have equal paths.
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.sgd(learning_rate(recipe), settings.momentum, settings.nesterov),
    )


@flax.struct.dataclass
class Meter:
    """Sums over the steps since the last log line.

    It is a part of the state, so that a resumed run logs the same figures.

    Attributes:
      loss: float32, sum of the mean losses of the batches.
      correct: float32, number of images (with masks: pixels) that are classified correctly.
      images: float32, number of images (with masks: of labelled pixels).
      steps: float32, number of steps.
      bad_step: int32, first step of the run with a loss or weights that are not finite; `NEVER` if
        there is none.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array
    steps: jax.Array
    bad_step: jax.Array

    @classmethod
    def empty(cls) -> "Meter":
        """Returns a meter before the first step."""
        names = ("loss", "correct", "images", "steps")
        sums = {name: jnp.zeros((), jnp.float32) for name in names}
        return cls(bad_step=jnp.full((), NEVER, jnp.int32), **sums)


@flax.struct.dataclass
class TrainState:
    """The state of a run; a checkpoint holds all of it, and it refers to no code.

    Attributes:
      step: int32, number of completed steps.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32.
      opt_state: the optimizer's state.
      ema: moving averages of ``params`` and ``batch_stats``, float32; {} without averages.
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
        """The first argument of the model's ``apply``."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, dict[str, Any]]:
        """The variables to evaluate, by the prefix of their figures: ``""`` and ``ema_``."""
        return {"": self.variables, **({"ema_": self.ema} if self.ema else {})}


def initial_state(recipe: Recipe, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    """Returns the state before the first step, a function of the run's key alone.

    Args:
      recipe: settings of the run.
      image_shape: (height, width, channels).
      key: key of the run.

    Returns:
      The state; all arrays are fresh.
    """
    # A key of its own, so that the initial weights share no bits with the first step.
    key = jax.random.fold_in(key, NEVER)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    with models.naming_failures(recipe.model):
        variables = recipe.model.init(key, images, train=False)
    others = sorted(set(variables) - {"params", "batch_stats"})
    if others or "params" not in variables:
        raise ValueError(
            f"{type(recipe.model).__name__} keeps {others or 'no parameters'}; wanted params, and "
            "batch_stats if it has BatchNorm"
        )
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if recipe.lever.active:
        # Raises if a pattern matches no layer, before the run writes a file.
        recipe.lever.chosen(params)
    if recipe.lever.constrains:
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


def require_fit(recipe: Recipe, state: TrainState, dataset: data.Dataset) -> None:
    """Raises `ValueError` if a network for images gets data with masks, or the other way round."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    answer: Any = jax.eval_shape(
        lambda v, x: recipe.model.apply(v, x, train=False), state.variables, images
    )
    network = type(recipe.model).__name__
    if not isinstance(answer, jax.ShapeDtypeStruct):
        raise ValueError(f"{network} returns {type(answer).__name__}, wanted an array of logits")
    wanted = (*images.shape[: 3 if dataset.masks else 1], answer.shape[-1])
    if answer.shape[-1] < len(dataset.classes):
        raise ValueError(
            f"{network} gives {answer.shape[-1]} logits for {len(dataset.classes)} classes"
        )
    if answer.shape != wanted:
        kind = "masks" if dataset.masks else "class labels"
        raise ValueError(
            f"{network} gives logits of shape {answer.shape} for images of shape {images.shape}; "
            f"data with {kind} want {wanted} (config.model.name=unet is for masks)"
        )


def layer_rows(
    recipe: Recipe, state: TrainState, image_shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Returns the convolutions and poolings in forward order, the content of ``layers.json``."""
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    rows = geometry.audit(
        lambda v, x: recipe.model.apply(v, x, train=False), state.variables, example
    )
    return [row.to_dict() for row in rows]
