"""The `consistency` bench: what a full grid of shifts costs, in time and in memory."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from kernsym_jax import evaluation, models

_REACHES = (1, 3, 7)
_PASSES = 50


def bench_consistency(name: str, images: int, batch_size: int, rounds: int) -> None:
    """Prints the memory for three sizes of the grid, and the time of one beside plain passes.

    Args:
      name: of the network.
      images: how many.
      batch_size: images per pass.
      rounds: how often both are timed.
    """
    print(f"{name}, {images} images in batches of {batch_size}")
    for reach in _REACHES:
        size = peak_bytes(name, images, batch_size, reach)
        print(
            f"peak memory, {(2 * reach + 1) ** 2:3d} offsets: {size / 2**20:7.0f} MiB", flush=True
        )
    grid, plain, ratio = cost(name, images, batch_size, rounds)
    print(f"grid of 49 offsets:       {grid:8.2f} s")
    print(f"50 plain forward passes:  {plain:8.2f} s")
    print(f"ratio:                    {ratio:8.3f}")


def subject(name: str, images: int, batch_size: int) -> tuple[Partial, list[dict[str, Any]]]:
    """An untrained network and batches of noise, on the host."""
    size = models.default_input_size(name)
    model = models.create(name)
    random = np.random.default_rng(0)
    noise = random.normal(size=(images, size, size, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), noise[:1])
    batches = [
        {"image": part, "label": np.zeros(len(part), np.int32)}
        for part in np.split(noise, range(batch_size, images, batch_size))
    ]
    return Partial(model.apply, variables), batches


def cost(name: str, images: int, batch_size: int, rounds: int) -> tuple[float, float, float]:
    """What the grid of 49 offsets takes beside 50 plain forward passes of the same batches.

    Args:
      name: of the network.
      images: how many.
      batch_size: images per pass.
      rounds: how often both are timed, one after the other.

    Returns:
      Median seconds of the grid, of the plain passes, and the median of their ratio.
    """
    predict, batches = subject(name, images, batch_size)
    plain = jax.jit(lambda predict, images: predict(images))

    def grid() -> None:
        evaluation.measure(predict, batches, evaluation.Shifts("circular", -3, 3), flips=False)

    def passes() -> None:
        for batch in batches:
            images = jax.device_put(batch["image"])
            jax.block_until_ready([plain(predict, images) for _ in range(_PASSES)])

    few = evaluation.Shifts("circular", 0, 1)
    evaluation.measure(predict, batches, few, flips=False)
    for batch in (batches[0], batches[-1]):
        jax.block_until_ready(plain(predict, batch["image"]))
    seconds = np.array([[_timed(grid), _timed(passes)] for _ in range(rounds)])
    one, other = np.median(seconds, axis=0)
    return float(one), float(other), float(np.median(seconds[:, 0] / seconds[:, 1]))


def peak_bytes(name: str, images: int, batch_size: int, reach: int) -> int:
    """The most memory that a process of its own needs for the grid of (2 · reach + 1)² offsets.

    Returns:
      Bytes of device memory where the device counts them, otherwise of the process.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return int(pool.apply(_peak_of_this_process, (name, images, batch_size, reach)))


def _peak_of_this_process(name: str, images: int, batch_size: int, reach: int) -> int:
    predict, batches = subject(name, images, batch_size)
    shifts = evaluation.Shifts("circular", -reach, reach)
    evaluation.measure(predict, batches, shifts, flips=False)
    counted = jax.local_devices()[0].memory_stats() or {}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(counted.get("peak_bytes_in_use", own))


def _timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
