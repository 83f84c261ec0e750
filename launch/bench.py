"""Measures what the project claims about its own speed, on the machine that runs it.

python launch/bench.py measure train population
"""

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import bench_analyze
import bench_consistency
import bench_step
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from bench_training import by_hand, side_by_side, small_network, steps_alone, timed, whole_run

from kernsym_jax import models, symmetry

_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each thing is timed.", lower_bound=3)
_NETWORKS = flags.DEFINE_list("networks", ["small_cnn", "cifar_resnet20"], "For train.")
_MEMBERS = flags.DEFINE_list("members", ["8", "32"], "For population: how many networks.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "For train: float32 or bfloat16.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "For train.", lower_bound=1)
_PEERS_PYTHON = flags.DEFINE_string(
    "peers_python",
    None,
    "A Python with torch for step; for analyze with weightwatcher and torchconvquality, too.",
)
_NETWORK = flags.DEFINE_string("network", "cifar_resnet20", "For consistency.")
_IMAGES = flags.DEFINE_integer("images", 1000, "For consistency: how many.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 150, "For train and population: a round.", lower_bound=3)


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
    ours, bare = side_by_side(
        timed(lambda: measure(params)), timed(lambda: mean(spatial)), _ROUNDS.value
    )
    print(f"measure, a call:        {1e3 * np.median(ours):8.2f} ms")
    print(f"bare jnp.mean, a call:  {1e3 * np.median(bare):8.2f} ms")
    print(f"ratio:                  {np.median(ours / bare):8.2f}")

    often, never = (steps_alone(small_network(log_every=each), 0, 200) for each in (50, 1_000_000))
    with_measure, without = side_by_side(timed(often), timed(never), _ROUNDS.value)
    share = np.median(with_measure / without) - 1
    print(f"training, measured every 50 steps: {100 * share:+.2f} % time")


def bench_train() -> None:
    """The whole training loop beside a step by hand that has its batch on the device already."""
    print(
        f"{_ROUNDS.value} rounds of {_STEPS.value} steps, batches of {_BATCH.value}, {_DTYPE.value}"
    )
    print("network          the loop   by hand   ratio   waiting for input")
    for name in _NETWORKS.value:
        size = models.default_input_size(name)
        config = small_network(log_every=max(1, _STEPS.value // 3))
        if name != "small_cnn":
            config.model = ml_collections.ConfigDict({"name": name})
            config.data.source = f"noise:size={size},n={4 * _BATCH.value},test={_BATCH.value}"
        config.model.dtype, config.batch_size = _DTYPE.value, _BATCH.value
        with tempfile.TemporaryDirectory() as folder:
            waiting: list[float] = []
            loop = whole_run(config, folder, waiting, _STEPS.value)
            ours, bare = side_by_side(loop, by_hand(config, _STEPS.value), _ROUNDS.value)
        ratio = np.median(ours / bare)
        print(
            f"{name:15s} {np.median(ours):9,.0f} {np.median(bare):9,.0f} {100 * ratio:6.1f} %"
            f" {100 * np.median(waiting):8.2f} %   img/s"
        )


def bench_population() -> None:
    """Small networks on the digits: several as one program, and one after another."""
    print(f"{_ROUNDS.value} rounds of {_STEPS.value} steps; img/s of all networks together")
    print("networks   one program   in turn   ratio")
    config = small_network(log_every=1_000_000)
    for members in map(int, _MEMBERS.value):
        single = steps_alone(config, 0, _STEPS.value)

        def in_turn(single: Callable[[], Any] = single, members: int = members) -> Any:
            return [single() for _ in range(members)]

        together = timed(steps_alone(config, members, _STEPS.value))
        one, turn = side_by_side(together, timed(in_turn), _ROUNDS.value)
        images = config.batch_size * _STEPS.value * members
        print(
            f"{members:8d} {images / np.median(one):13,.0f} {images / np.median(turn):9,.0f}"
            f" {np.median(turn / one):7.2f}"
        )


BENCHES = {
    "analyze": lambda: bench_analyze.bench_analyze(_ROUNDS.value, _PEERS_PYTHON.value),
    "consistency": lambda: bench_consistency.bench_consistency(
        _NETWORK.value, _IMAGES.value, 250, _ROUNDS.value
    ),
    "measure": bench_measure,
    "population": bench_population,
    "step": lambda: bench_step.bench_step(_ROUNDS.value, _PEERS_PYTHON.value),
    "train": bench_train,
}


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
