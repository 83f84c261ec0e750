"""The `bench` part: our step and loop on this device, beside other ways to do the same."""

import contextlib
import functools
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import bench_consistency
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from bench_training import by_hand, side_by_side, steps_alone, timed, whole_run

from kernsym_jax import data, models, symmetry, training
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import make_recipe
from kernsym_jax.training.step import train_step

Row = tuple[str, dict[str, Any]]
Item = tuple[str, float, Callable[[], Iterator[Row]]]

_LOG_EVERY = 50


def items(*, tiny: bool) -> list[Item]:
    """The measurements: name, seconds that they take on a GPU, and the function."""
    rounds, steps = (1, 3) if tiny else (5, 50)
    batches, pixels = ([8], 8) if tiny else ([512, 128], 32)
    small: dict[str, Any] = {"name": "small_cnn", "width": 16, "depth": 4, "strided": (2, 3, 4)}
    resnet20: dict[str, Any] = {"name": "cifar_resnet20"}
    resnet18 = resnet20 | {"blocks": (2, 2, 2, 2), "width": 64, "dtype": "bfloat16"}
    if tiny:
        small = resnet20 = {"name": "small_cnn", "width": 4, "depth": 2}
        resnet18 = small | {"dtype": "bfloat16"}

    def config(model: dict[str, Any], batch: int, *, varied: bool) -> ml_collections.ConfigDict:
        return _config(model, batch, pixels, varied=varied)

    of_batch = functools.partial(config, resnet18, varied=True)
    return [
        *(
            (
                f"ResNet-18 beside PyTorch, batch {batch}",
                100.0,
                functools.partial(_beside_torch, of_batch(batch), rounds, steps, tiny),
            )
            for batch in batches
        ),
        *(
            (
                f"the loop beside a step by hand, {name}",
                70.0,
                functools.partial(
                    _loop, name, config(model, batch, varied=False), rounds, 3 * steps
                ),
            )
            for name, model, batch in (
                ("ResNet-18 bf16", resnet18, batches[0]),
                ("ResNet-20", resnet20, 8 if tiny else 128),
            )
        ),
        ("measure", 60.0, functools.partial(_measure, of_batch(batches[0]), rounds, tiny)),
        (
            "consistency",
            40.0,
            functools.partial(_consistency, resnet20["name"], tiny),
        ),
        *(
            (
                f"several steps per dispatch, {name}",
                45.0,
                functools.partial(
                    _scan, name, config(model, batches[-1], varied=True), rounds, steps
                ),
            )
            for name, model in (("small network", small), ("ResNet-20", resnet20))
        ),
    ]


def _config(
    model: dict[str, Any], batch: int, pixels: int, *, varied: bool
) -> ml_collections.ConfigDict:
    """Images of noise, which cost as much as others."""
    config = training.default()
    config.model = ml_collections.ConfigDict(model)
    config.batch_size, config.eval_batch_size, config.log_every = batch, batch, _LOG_EVERY
    config.data.source = f"noise:size={pixels},n={4 * batch},test={batch}"
    if varied:
        config.data.shift, config.data.flip = 4, "horizontal"
    return config


def _beside_torch(
    config: ml_collections.ConfigDict, rounds: int, steps: int, tiny: bool
) -> Iterator[Row]:
    ours = timed(steps_alone(config, 0, steps))
    batch = config.batch_size
    row = {"batch": batch, "ours, img/s": None, "PyTorch, img/s": None, "ours / PyTorch": None}
    if importlib.util.find_spec("torch") is None:
        times = np.array([ours() for _ in range(rounds)])
        row["ours, img/s"] = batch * steps / np.median(times)
        yield "resnet18", row | {"note": "PyTorch is not installed"}
        return
    width, blocks = (4, 1) if tiny else (64, 2)
    with _torch_child(batch, width, blocks, steps) as theirs:
        one, other = side_by_side(ours, theirs, rounds)
    row["ours, img/s"] = batch * steps / np.median(one)
    row["PyTorch, img/s"] = batch / np.median(other)
    row["ours / PyTorch"] = np.median(steps * other / one)
    yield "resnet18", row | {"note": "PyTorch compiled, channels last, bfloat16"}


@contextlib.contextmanager
def _torch_child(*settings: int) -> Iterator[Callable[[], float]]:
    """Starts PyTorch's side; the result asks it for the seconds of a step."""
    file = pathlib.Path(__file__).with_name("torch_resnet18.py")
    with subprocess.Popen(
        [sys.executable, str(file), *map(str, settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask() -> str:
            stdin.write("\n")
            stdin.flush()
            return stdout.readline()

        try:
            if ask() != "ready\n":
                raise RuntimeError("PyTorch's side ended before it was ready")
            yield lambda: float(ask())
        finally:
            process.kill()


def _loop(name: str, config: ml_collections.ConfigDict, rounds: int, steps: int) -> Iterator[Row]:
    config.log_every, waiting = max(1, steps // 3), []
    config.consistency.images = 0
    with tempfile.TemporaryDirectory() as folder:
        loop = whole_run(config, folder, waiting, steps)
        ours, bare = side_by_side(loop, by_hand(config, steps), min(rounds, 3))
    yield (
        "loop",
        {
            "network": name,
            "batch": config.batch_size,
            "the loop, img/s": np.median(ours),
            "by hand, img/s": np.median(bare),
            "ratio": np.median(ours / bare),
            "waiting for input": np.median(waiting),
        },
    )


def _measure(config: ml_collections.ConfigDict, rounds: int, tiny: bool) -> Iterator[Row]:
    model = models.create("small_cnn" if tiny else "resnet50", num_classes=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape), jnp.float32), shapes)
    kernels = {k: w for k, w in symmetry.conv_kernels(params).items() if w.shape[0] > 1}
    measure = jax.jit(symmetry.measure)
    mean = jax.jit(lambda tree: {path: jnp.mean(w, axis=(2, 3)) for path, w in tree.items()})
    ours, bare = side_by_side(
        timed(lambda: measure(params)), timed(lambda: mean(kernels)), 4 * rounds
    )
    yield (
        "measure",
        {
            "what": f"one call for {len(kernels)} kernels, beside a bare mean",
            "ms": 1e3 * np.median(ours),
            "beside, ms": 1e3 * np.median(bare),
            "ratio": np.median(ours / bare),
        },
    )
    # Its share is far below the noise of a step. At every step it is 50 times as large.
    steps = 3 if tiny else 100
    config.log_every, seconds = 1, {}
    for every in (1, 1_000_000):
        config.log_every = every
        seconds[every] = timed(steps_alone(config, 0, steps))
    each, never = side_by_side(seconds[1], seconds[1_000_000], rounds)
    extra = np.median(each / never) - 1
    yield (
        "measure",
        {
            "what": f"a step of ResNet-18, batch {config.batch_size}, measured at each step, "
            f"beside never; share at log_every={_LOG_EVERY}: {extra / _LOG_EVERY:.3%}",
            "ms": 1e3 * np.median(each) / steps,
            "beside, ms": 1e3 * np.median(never) / steps,
            "ratio": 1 + extra,
        },
    )


def _consistency(network: str, tiny: bool) -> Iterator[Row]:
    images, batch, rounds = (16, 8, 1) if tiny else (1000, 250, 3)
    grid, plain, ratio = bench_consistency.cost(network, images, batch, rounds)
    yield (
        "consistency",
        {
            "network": network,
            "images": images,
            "grid of 49 offsets, s": grid,
            "50 plain passes, s": plain,
            "ratio": ratio,
        },
    )


def _scan(name: str, config: ml_collections.ConfigDict, rounds: int, steps: int) -> Iterator[Row]:
    per_dispatch = min(10, steps)
    config = training.resolve({**config.to_dict(), "epochs": 1e6})
    backend = choose_backend(config)
    dataset = data.open_dataset(config, backend)
    recipe = make_recipe(complete(config, dataset), dataset)
    keys, stream = backend.keys([config.seed]), dataset.train.start(0)
    batches = [next(stream) for _ in range(per_dispatch)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    one = backend.compile_train(recipe)

    def several(state: Any, batches: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(lambda s, batch: train_step(recipe, s, batch, keys), state, batches)

    scanned = jax.jit(several, donate_argnums=0)
    states = [backend.initial_state(recipe, dataset.image_shape, 0) for _ in range(2)]
    dispatches = max(1, steps // per_dispatch)

    def apart() -> Any:
        for _ in range(dispatches):
            for batch in batches:
                states[0], logs = one(states[0], batch, keys)
        return logs

    def together() -> Any:
        for _ in range(dispatches):
            states[1], logs = scanned(states[1], stacked, keys)
        return logs

    times = side_by_side(timed(apart), timed(together), rounds)
    images = config.batch_size * per_dispatch * dispatches
    losses = [float(state.meter.loss / state.meter.steps) for state in states]
    yield (
        "scan",
        {
            "network": name,
            "batch": config.batch_size,
            "one step per dispatch, img/s": images / np.median(times[0]),
            f"{per_dispatch} steps per dispatch, img/s": images / np.median(times[1]),
            "ratio": np.median(times[0] / times[1]),
            "losses": " / ".join(f"{loss:.4f}" for loss in losses),
        },
    )
