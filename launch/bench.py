"""Measures what the project claims about its own speed, on the machine that runs it.

python launch/bench.py measure train population
"""

import contextlib
import io
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
import optax
from absl import app, flags

from kernsym_jax import data, models, symmetry, training
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import make_recipe

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
    ours, bare = side_by_side(timed(lambda: measure(params)), timed(lambda: mean(spatial)))
    print(f"measure, a call:        {1e3 * np.median(ours):8.2f} ms")
    print(f"bare jnp.mean, a call:  {1e3 * np.median(bare):8.2f} ms")
    print(f"ratio:                  {np.median(ours / bare):8.2f}")

    often, never = (steps_alone(small_network(log_every=each), 0, 200) for each in (50, 1_000_000))
    with_measure, without = side_by_side(timed(often), timed(never))
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
            loop = whole_run(config, folder, waiting)
            ours, bare = side_by_side(loop, by_hand(config))
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
        one, turn = side_by_side(together, timed(in_turn))
        images = config.batch_size * _STEPS.value * members
        print(
            f"{members:8d} {images / np.median(one):13,.0f} {images / np.median(turn):9,.0f}"
            f" {np.median(turn / one):7.2f}"
        )


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
    config: ml_collections.ConfigDict, folder: str, waiting: list[float]
) -> Callable[[], float]:
    """`training.train_and_evaluate` with its data, logs and files; gives img/s between logs."""
    per_epoch = len(data.load(config.data.source, "train")) // config.batch_size
    whole = ml_collections.ConfigDict(config)
    whole.epochs = whole.eval_every_epochs = whole.checkpoint_every_epochs = (
        _STEPS.value / per_epoch
    )

    def run() -> float:
        workdir = tempfile.mkdtemp(dir=folder)
        with contextlib.redirect_stdout(io.StringIO()):
            summary = training.train_and_evaluate(whole, workdir)
        waiting.append(summary["waiting_share"])
        return summary["images_per_second"]

    return run


def by_hand(config: ml_collections.ConfigDict) -> Callable[[], float]:
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
        for _ in range(_STEPS.value // log_every):
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
    first: Callable[[], float], second: Callable[[], float]
) -> tuple[np.ndarray, np.ndarray]:
    """What two measurements give when they are taken in turn, round by round.

    Ratios are to be taken pair by pair, so that a slow spell of the machine hits both sides.
    """
    first(), second()
    pairs = np.array([(first(), second()) for _ in range(_ROUNDS.value)])
    return pairs[:, 0], pairs[:, 1]


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
