"""Pieces of the benches: training steps and loops to be timed, and how two are timed in turn."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from kernsym_jax import data, models, training
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import make_recipe


def small_network(log_every: int) -> ml_collections.ConfigDict:
    """Network and data of configs/digits.py, without augmentation."""
    config = training.default()
    config.batch_size, config.log_every = 64, log_every
    config.model.update({"width": 16, "depth": 6, "strided": (3, 5)})
    return config


def steps_alone(config: ml_collections.ConfigDict, members: int, steps: int) -> Callable[[], Any]:
    """Some steps on one batch, compiled; of so many members as one program, 0 for one network."""
    config = training.resolve({**config.to_dict(), "epochs": 1e6, "eval_batch_size": 64})
    backend = choose_backend(config, members)
    seeds = backend.seeds
    dataset = data.open_dataset(config, backend)
    recipe = make_recipe(complete(config, dataset), dataset, backend.axis_name)
    step, keys = backend.compile_train(recipe), backend.keys(seeds)
    batch = next(dataset.train.start(0))
    states = [backend.join([backend.initial_state(recipe, dataset.image_shape, s) for s in seeds])]

    def run() -> Any:
        for _ in range(steps):
            states[0], logs = step(states[0], batch, keys)
        return logs

    return run


def whole_run(
    config: ml_collections.ConfigDict, folder: str, waiting: list[float], steps: int
) -> Callable[[], float]:
    """`training.train_and_evaluate` with its data, logs and files; gives img/s between logs."""
    per_epoch = len(data.load(config.data.source, "train")) // config.batch_size
    whole = ml_collections.ConfigDict(config)
    whole.epochs = whole.eval_every_epochs = whole.checkpoint_every_epochs = steps / per_epoch

    def run() -> float:
        workdir = tempfile.mkdtemp(dir=folder)
        with contextlib.redirect_stdout(io.StringIO()):
            summary = training.train_and_evaluate(whole, workdir)
        waiting.append(summary["waiting_share"])
        return summary["images_per_second"]

    return run


def by_hand(config: ml_collections.ConfigDict, steps: int) -> Callable[[], float]:
    """A step as one writes it for one network, on a batch of floats; gives img/s between logs."""
    train = data.load(config.data.source, "train")
    model = models.create(**{**config.model.to_dict(), "num_classes": len(train.classes)})
    images = jax.device_put(train.images[: config.batch_size].astype(np.float32) / 255)
    labels = jax.device_put(train.labels[: config.batch_size])
    decayed = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    tx = optax.chain(
        optax.add_decayed_weights(5e-4, decayed),
        optax.sgd(optax.cosine_decay_schedule(0.1, 10_000), momentum=0.9, nesterov=True),
    )

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, batch_stats, opt_state = state

        def loss_fn(params: Any) -> Any:
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates["batch_stats"])

        (loss, (logits, new_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        accuracy = (logits.argmax(-1) == labels).mean()
        return (optax.apply_updates(params, updates), new_stats, opt_state), (loss, accuracy)

    jitted = jax.jit(step, donate_argnums=0)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    params = variables["params"]
    states = [(params, variables["batch_stats"], tx.init(params))]
    states[0], _ = jitted(states[0], images, labels)

    def run() -> float:
        speeds, log_every = [], config.log_every
        for _ in range(steps // log_every):
            started = time.perf_counter()
            for _ in range(log_every):
                states[0], metrics = jitted(states[0], images, labels)
            jax.device_get(metrics)
            speeds.append(config.batch_size * log_every / (time.perf_counter() - started))
        return float(np.median(speeds))

    return run


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """The function's seconds, once it has been called."""
    jax.block_until_ready(function())

    def run() -> float:
        started = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - started

    return run


def side_by_side(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """What two measurements give when they are taken in turn, round by round.

    Ratios are to be taken pair by pair, so that a slow spell of the machine hits both sides.
    """
    first(), second()
    pairs = np.array([(first(), second()) for _ in range(rounds)])
    return pairs[:, 0], pairs[:, 1]
