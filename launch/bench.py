"""Measures what the project claims about its own speed, on the machine that runs it.

python launch/bench.py measure
"""

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from kernsym_jax import data, models, symmetry, training
from kernsym_jax.training import loop, step

_ROUNDS = flags.DEFINE_integer("rounds", 30, "How often each thing is timed.", lower_bound=3)


def bench_measure() -> None:
    """`symmetry.measure` on ResNet-50's weights beside a bare mean, and its share of training."""
    model = models.create("resnet50", num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
    spatial = {
        path: weight
        for path, weight in symmetry.conv_kernels(params).items()
        if weight.shape[0] * weight.shape[1] > 1
    }
    count = sum(weight.size for weight in spatial.values())
    print(f"ResNet-50: {len(spatial)} spatial kernels, {count / 1e6:.1f} M weights")

    jax.block_until_ready(jax.jit(jnp.sin)(1.0))  # the compiler's own start is not measured
    started = time.perf_counter()
    measure = jax.jit(symmetry.measure).lower(params).compile()
    print(f"measure, to compile:    {time.perf_counter() - started:8.2f} s")
    mean = jax.jit(lambda tree: {path: jnp.mean(w, axis=(2, 3)) for path, w in tree.items()})
    ours, bare, ratio = side_by_side(lambda: measure(params), lambda: mean(spatial))
    print(f"measure, a call:        {1e3 * ours:8.2f} ms")
    print(f"bare jnp.mean, a call:  {1e3 * bare:8.2f} ms")
    print(f"ratio:                  {ratio:8.2f}")

    *_, ratio = side_by_side(_training_run(50), _training_run(1_000_000))
    print(f"training, measured every 50 steps: {100 * (ratio - 1):+.2f} % time")


def _training_run(log_every: int) -> Callable[[], Any]:
    """200 steps of the network and data of configs/digits.py, compiled and ready to be timed."""
    config = training.default()
    config.batch_size, config.log_every = 64, log_every
    config.model.update({"width": 16, "depth": 6, "strided": (3, 5)})
    images = data.load("digits", "train")
    config = loop.complete(training.resolve(config), images)
    batches = data.DeviceBatches(images, 64, 0, jax.device_put, jax.device_put)
    recipe = loop.make_recipe(config, steps_per_epoch=1_000_000)
    train_step, _ = step.jit_steps(recipe)
    batch = next(batches.start(0))
    key = jax.random.key(0)
    states = [loop.initial_state(recipe, config, images)]

    def run() -> Any:
        for _ in range(200):
            states[0], logs = train_step(states[0], batch, key)
        return logs

    run()
    return run


def side_by_side(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float, float]:
    """Median seconds of two functions called in turn, and the median of their ratio.

    The ratio is taken pair by pair, so that a slow spell of the machine hits both sides of it.
    """
    functions, seconds = (first, second), []
    for function in functions:
        jax.block_until_ready(function())
    for _ in range(_ROUNDS.value):
        pair = []
        for function in functions:
            started = time.perf_counter()
            jax.block_until_ready(function())
            pair.append(time.perf_counter() - started)
        seconds.append(pair)
    times = np.array(seconds)
    one, other = np.median(times, axis=0)
    return float(one), float(other), float(np.median(times[:, 0] / times[:, 1]))


BENCHES = {"measure": bench_measure}


def main(argv: Sequence[str]) -> None:
    """Runs the benches that are named."""
    unknown = set(argv[1:]) - set(BENCHES)
    if unknown or len(argv) < 2:
        raise app.UsageError(f"name some of {', '.join(BENCHES)}")
    device = jax.devices()[0]
    print(
        f"{jax.device_count()} × {device.device_kind}, {platform.machine()}, jax {jax.__version__}"
    )
    for name in argv[1:]:
        BENCHES[name]()


if __name__ == "__main__":
    app.run(main)
