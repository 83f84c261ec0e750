"""The pure steps of a run: one of training and one of evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kernsym_jax import models, symmetry
from kernsym_jax.data import VOID, augment, normalize
from kernsym_jax.evaluation.answers import confusion_matrix
from kernsym_jax.training.loss import counted, cross_entropy, label_weights
from kernsym_jax.training.state import NEVER, Meter, Recipe, TrainState, optimizer

Batch = dict[str, jax.Array]
Logs = dict[str, Any]
Sums = dict[str, jax.Array]

AUXILIARY_WEIGHT = 0.4
"""Weight of an auxiliary head's loss, as usual for Inception-v3."""


def train_step(
    recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Logs]:
    """Trains for one step.

    The numbers depend on the number of devices only by rounding: the augmentation of an image is
    drawn with a key of its place in the whole batch. (Under ``pmap`` dropout and LPS draw other
    noise than under ``jit``, of the same distribution.)

    Args:
      recipe: static. With an ``axis_name`` the step runs once on each device of that axis, on its
        part of the batch.
      state: the state before the step.
      batch: ``image`` (batch, height, width, channels) uint8, and ``label``: (batch,) int32 classes
        or (batch, height, width) uint8 masks with ``data.VOID`` for pixels without a class.
      key: the run's key; the step folds ``state.step`` into it.

    Returns:
      The state after the step, and its logs: ``meter``, a `Meter`; ``symmetry``, ``{path:
      KernelSymmetry}``, NaN unless `Recipe.logs_at` this step; with moving averages also their
      ``ema_symmetry``; with a symmetry term also ``symmetry_loss``, its value for the weights
      before the step. The meter's loss does not include the symmetry term.
    """
    augment_key, layer_key = jax.random.split(jax.random.fold_in(key, state.step))
    images, labels = _vary(recipe, batch["image"], batch["label"], augment_key)
    gradients, batch_stats, sums = _gradients(recipe, state, images, labels, layer_key)
    logs: Logs = {}
    if recipe.lever.loss_weight:
        # Computed once: the weights are the same for every part of the batch and every device.
        logs["symmetry_loss"], slopes = jax.value_and_grad(recipe.lever.loss)(state.params)
        gradients = jax.tree.map(jnp.add, gradients, slopes)
    updates, opt_state = optimizer(recipe).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if recipe.lever.constrains:
        params = recipe.lever.projected(params)
    step = state.step + 1
    ema = _average(recipe, state.ema, {"params": params, "batch_stats": batch_stats}, step)
    # The loss of a step may be finite and its update not.
    finite = jnp.isfinite(sums["loss"]) & _all_finite(params)
    meter = _advance(state.meter, state.step % recipe.log_every == 0, step, sums, finite)
    state = TrainState(step, params, batch_stats, opt_state, ema, meter)
    return state, {"meter": meter, **logs, **_measured(recipe, state)}


def eval_step(recipe: Recipe, state: TrainState, batch: Batch) -> Sums:
    """Evaluates the network on one batch.

    Args:
      recipe: static.
      state: the parameters and statistics to evaluate.
      batch: as in training, with ``weight`` (batch,) float32: 0 for images that only fill the
        batch.

    Returns:
      float32 sums over the images that count: ``images``, ``correct``, and ``loss`` (without label
      smoothing and class weights). With masks ``loss`` sums over labelled pixels, and ``confusion``
      (classes, classes) int32, with true classes in rows, replaces ``correct``. With moving
      averages also their sums, with the prefix ``ema_``.
    """
    images, labels = normalize(batch["image"], recipe.mean, recipe.std), batch["label"]
    sums = {"images": jnp.sum(batch["weight"])}
    counts = (batch["weight"] > 0).reshape(-1, *[1] * (labels.ndim - 1)) & counted(labels)
    for prefix, variables in state.evaluated.items():
        logits: Any = recipe.model.apply(variables, images, train=False)
        # The loss of an image that does not count may be infinite; 0 times that is NaN.
        sums[f"{prefix}loss"] = jnp.sum(jnp.where(counts, cross_entropy(logits, labels), 0))
        if labels.ndim == 1:
            sums[f"{prefix}correct"] = jnp.sum(_correct(logits, labels) * batch["weight"])
            continue
        answers, known = jnp.argmax(logits, axis=-1), jnp.where(counts, labels, VOID)
        every = confusion_matrix(answers, known, logits.shape[-1])
        sums[f"{prefix}confusion"] = jnp.sum(every, axis=0)
    return _over_devices(recipe, jax.lax.psum, sums)


def _vary(
    recipe: Recipe, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    places = jnp.arange(len(images))
    if recipe.axis_name is not None:
        places = places + jax.lax.axis_index(recipe.axis_name) * len(images)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    if labels.ndim == 1:
        vary = jax.vmap(lambda image, key: augment(image[None], key, recipe.augment)[0])
        return vary(images, keys), labels

    def both(image: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        varied, label = augment(image[None], key, recipe.augment, mask[None])
        return varied[0], label[0]

    return jax.vmap(both)(images, labels, keys)


def _gradients(
    recipe: Recipe, state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[Any, Any, Sums]:
    """Returns the gradient of the batch's mean loss, the new statistics, and the meter's sums."""
    parts = recipe.optimizer.accumulate
    # Over the whole batch: parts and devices differ in the number of their labelled pixels.
    total = jnp.sum(label_weights(labels, recipe.class_weights))
    total = _over_devices(recipe, jax.lax.psum, total)
    total = jnp.where(total > 0, total, 1)

    def one_part(carry: tuple, part: tuple) -> tuple[tuple, None]:
        gradients, batch_stats, loss, correct = carry
        loss_of = functools.partial(_part_loss, recipe, batch_stats, total=total, key=key)
        (part_loss, (batch_stats, part_correct)), part_gradients = jax.value_and_grad(
            loss_of, has_aux=True
        )(state.params, part)
        gradients = jax.tree.map(jnp.add, gradients, part_gradients)
        return (gradients, batch_stats, loss + part_loss, correct + part_correct), None

    zero = jnp.zeros((), jnp.float32)
    carry = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, zero, zero)
    if parts == 1:
        carry, _ = one_part(carry, (images, labels, 0))
    else:
        # Part i takes the images i, i + n, i + 2n, …, so that every image stays on its device.
        split = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in (images, labels)]
        # XLA:CPU runs convolutions inside a loop many times slower than outside of it.
        unroll = parts if jax.default_backend() == "cpu" else 1
        carry, _ = jax.lax.scan(one_part, carry, (*split, jnp.arange(parts)), unroll=unroll)
    gradients, batch_stats, loss, correct = carry
    known = jnp.sum(counted(labels).astype(jnp.float32))
    sums = {"loss": loss, "correct": correct, "images": known}
    gradients, sums = _over_devices(recipe, jax.lax.psum, (gradients, sums))
    return gradients, batch_stats, sums


def _part_loss(
    recipe: Recipe, batch_stats: Any, params: Any, part: tuple, *, total: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    """Returns the share of a part in the batch's mean loss, the new statistics, and the hits.

    Args:
      recipe: static.
      batch_stats: BatchNorm's statistics before the part.
      params: the parameters.
      part: images, labels and the number of the part.
      total: sum of the label weights of the whole batch.
      key: key of the step for noise in layers.
    """
    images, labels, number = part
    with models.naming_failures(recipe.model):
        output: Any = recipe.model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(images, recipe.mean, recipe.std),
            train=True,
            mutable=["batch_stats"],
            rngs=_layer_keys(recipe, jax.random.fold_in(key, number)),
        )
    logits, updates = output

    def mean_loss(logits: jax.Array) -> jax.Array:
        losses = cross_entropy(logits, labels, recipe.label_smoothing)
        return jnp.sum(losses * label_weights(labels, recipe.class_weights)) / total

    loss = jnp.zeros((), jnp.float32)
    if isinstance(logits, tuple):
        logits, auxiliary = logits
        loss = AUXILIARY_WEIGHT * mean_loss(auxiliary)
    loss = loss + mean_loss(logits)
    return loss, (updates.get("batch_stats", {}), jnp.sum(_correct(logits, labels)))


def _layer_keys(recipe: Recipe, key: jax.Array) -> dict[str, jax.Array]:
    dropout, downsample = jax.random.split(key)
    if recipe.axis_name is not None:
        # Noise per image has to differ between devices; SBPool draws one offset per batch.
        device = jax.lax.axis_index(recipe.axis_name)
        dropout = jax.random.fold_in(dropout, device)
        if recipe.model.variant.downsample == "lps":
            downsample = jax.random.fold_in(downsample, device)
    return {"dropout": dropout, "downsample": downsample}


def _average(recipe: Recipe, old: Any, new: Any, step: jax.Array) -> Any:
    if not recipe.ema_decay:
        return {}
    # The average is short at first, so that the initial weights soon vanish from it.
    count = step.astype(jnp.float32)
    decay = jnp.minimum(recipe.ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)
    if recipe.lever.constrains:
        # A mean of projected weights is projected up to rounding, which would add up.
        ema["params"] = recipe.lever.projected(ema["params"])
    return ema


def _measured(recipe: Recipe, state: TrainState) -> Logs:
    measured = {"symmetry": state.params}
    if state.ema:
        measured["ema_symmetry"] = state.ema["params"]

    def measure(trees: dict[str, Any]) -> Logs:
        return {name: symmetry.measure(tree) for name, tree in trees.items()}

    # The program itself decides, so that one compiled step serves the whole run.
    return jax.lax.cond(
        (state.step % recipe.log_every == 0) | (state.step == recipe.total_steps),
        measure,
        lambda trees: jax.tree.map(
            lambda row: jnp.full(row.shape, jnp.nan, row.dtype), jax.eval_shape(measure, trees)
        ),
        measured,
    )


def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32)).astype(jnp.float32)


def _over_devices(recipe: Recipe, reduce: Any, tree: Any) -> Any:
    return tree if recipe.axis_name is None else reduce(tree, recipe.axis_name)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _advance(
    meter: Meter, anew: jax.Array, step: jax.Array, sums: Sums, finite: jax.Array
) -> Meter:
    kept = jnp.where(anew, 0.0, 1.0)
    bad = jnp.where(finite, NEVER, step)
    return Meter(
        loss=jnp.where(anew, 0.0, meter.loss) + sums["loss"],
        correct=kept * meter.correct + sums["correct"],
        images=kept * meter.images + sums["images"],
        steps=kept * meter.steps + 1,
        bad_step=jnp.minimum(meter.bad_step, bad),
    )
