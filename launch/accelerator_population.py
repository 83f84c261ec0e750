"""The `population` part: several small networks at once, in five ways."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax

from kernsym_jax import data, training
from kernsym_jax.training.backend import choose_backend
from kernsym_jax.training.config import complete
from kernsym_jax.training.state import Recipe, make_recipe, optimizer

Row = tuple[str, dict[str, Any]]
Item = tuple[str, float, Callable[[], Iterator[Row]]]
Run = Callable[[int], tuple[Any, Any]]

OFFERED = ("vmap", "products", "turn")
"""The ways that ``config.population`` offers."""

_FIRST = 3


def items(*, tiny: bool) -> list[Item]:
    """The measurements: name, seconds that they take on a GPU, and the function."""
    ways = {
        "vmap": functools.partial(_as_one, products=False),
        "products": functools.partial(_as_one, products=True),
        "grouped": _grouped,
        "threads": _threads,
        "turn": _turn,
    }
    return [
        (
            f"{members} networks, {name}",
            35.0,
            functools.partial(_row, name, way, members, tiny),
        )
        for members in ((2,) if tiny else (8, 32))
        for name, way in ways.items()
    ]


def fastest(rows: list[dict[str, Any]]) -> str | None:
    """The offered way with the most images per second, by the geometric mean over the sizes."""
    speeds: dict[str, list[float]] = {}
    for row in rows:
        if row["way"] in OFFERED:
            speeds.setdefault(row["way"], []).append(row["img/s"])
    sizes = max(map(len, speeds.values()), default=0)
    whole = {way: np.prod(found) for way, found in speeds.items() if len(found) == sizes}
    return max(whole, key=whole.__getitem__, default=None)


def _row(
    name: str, way: Callable[[ml_collections.ConfigDict, int], Run], members: int, tiny: bool
) -> Iterator[Row]:
    rounds, steps = (1, 2) if tiny else (5, 100)
    config = _config(tiny)
    run, started = way(config, members), time.perf_counter()
    # The loss over the first steps is the same for all ways, if they compute the same.
    losses, _ = run(_FIRST)
    loss = float(np.mean(jax.device_get(losses)))
    compiled, seconds = time.perf_counter() - started, []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(run(steps))
        seconds.append(time.perf_counter() - started)
    speed = members * steps * config.batch_size / float(np.median(seconds))
    yield (
        "population",
        {
            "networks": members, "way": name, "img/s": speed,
            f"loss of {_FIRST} steps": round(loss, 4), "to compile, s": compiled,
        },
    )  # fmt: skip


def _config(tiny: bool) -> ml_collections.ConfigDict:
    """The network of the studies, on textures of 16 pixels."""
    batch = 4 if tiny else 128
    config = training.default()
    config.model.update(
        {"width": 4 if tiny else 16, "max_width": 64, "depth": 4, "strided": (2, 3, 4)}
    )
    config.batch_size = config.eval_batch_size = batch
    config.data.source = f"textures:size=16,n={4 * batch},test={batch}"
    config.epochs, config.log_every = 1e6, 1_000_000
    return training.resolve(config)


def _parts(config: ml_collections.ConfigDict, members: int, *, products: bool = False) -> Any:
    """The backend, the settings of a step, its batch, its keys and the initial state."""
    backend = choose_backend(config, members, products=products)
    dataset = data.open_dataset(config, backend)
    recipe = make_recipe(complete(config, dataset), dataset, backend.axis_name)
    states = [backend.initial_state(recipe, dataset.image_shape, s) for s in backend.seeds]
    keys = backend.keys(backend.seeds)
    return backend, recipe, next(dataset.train.start(0)), keys, backend.join(states)


def _as_one(config: ml_collections.ConfigDict, members: int, *, products: bool) -> Run:
    backend, recipe, batch, keys, state = _parts(config, members, products=products)
    step, states = backend.compile_train(recipe), [state]

    def run(steps: int) -> tuple[Any, Any]:
        for _ in range(steps):
            states[0], logs = step(states[0], batch, keys)
        return logs["meter"].loss / logs["meter"].steps, states[0].params

    return run


def _members(config: ml_collections.ConfigDict, members: int) -> list[Run]:
    """One network each, all with the same compiled step."""

    def one(seed: int) -> Run:
        own = ml_collections.ConfigDict(config)
        own.seed = seed
        return _as_one(own, 0, products=False)

    return [one(seed) for seed in range(members)]


def _turn(config: ml_collections.ConfigDict, members: int) -> Run:
    runs = _members(config, members)

    def run(steps: int) -> tuple[Any, Any]:
        found = [one(steps) for one in runs]
        return [loss for loss, _ in found], [params for _, params in found]

    return run


def _threads(config: ml_collections.ConfigDict, members: int) -> Run:
    runs = _members(config, members)
    pool = concurrent.futures.ThreadPoolExecutor(members)

    def run(steps: int) -> tuple[Any, Any]:
        found = list(pool.map(lambda one: jax.block_until_ready(one(steps)), runs))
        return [loss for loss, _ in found], [params for _, params in found]

    return run


def _grouped(config: ml_collections.ConfigDict, members: int) -> Run:
    """One network whose convolutions have a group of channels for each member."""
    _, recipe, batch, _, state = _parts(config, members)
    tx = optimizer(recipe)
    params, stats = _merged(state.params), _merged(state.batch_stats)
    images = jnp.moveaxis(batch["image"], 0, 3)  # (batch, height, width, members, channels)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, stats, opt_state, total = state
        loss_of = functools.partial(_merged_losses, recipe, members, stats)
        (_, (losses, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, images, labels
        )
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, total + losses

    jitted = jax.jit(step, donate_argnums=0)
    states, count = [(params, stats, tx.init(params), jnp.zeros(members))], [0]

    def run(steps: int) -> tuple[Any, Any]:
        for _ in range(steps):
            states[0] = jitted(states[0], images, batch["label"])
        count[0] += steps
        return states[0][3] / count[0], states[0][0]

    return run


def _merged(tree: Any) -> Any:
    """The arrays of all members as one network's: channels of one member lie side by side."""

    def merge(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 5:  # kernels (members, kh, kw, in, out)
            return jnp.moveaxis(leaf, 0, 3).reshape(*leaf.shape[1:4], -1)
        return leaf if leaf.ndim == 3 else leaf.reshape(-1)

    return jax.tree.map(merge, tree)


def _merged_losses(
    recipe: Recipe, members: int, stats: Any, params: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """The sum of the members' losses; the loss of each; and the new running statistics.

    Args:
      recipe: with a small_cnn without bias, pooling and augmentation.
      members: how many.
      stats: running statistics.
      params: merged parameters.
      images: (batch, height, width, members, channels) uint8.
      labels: (members, batch).
    """
    model: Any = recipe.model
    x = data.normalize(images, recipe.mean, recipe.std).reshape(*images.shape[:3], -1)
    new_stats = {}
    for number in range(1, model.depth + 1):
        stride = 2 if number in model.strided else 1
        x = lax.conv_general_dilated(
            x,
            params[f"conv{number}"]["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=members,
        )
        name = f"bn{number}"
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        size = x.size // x.shape[-1]
        found = {"mean": mean, "var": var * size / (size - 1)}
        new_stats[name] = {key: 0.9 * stats[name][key] + 0.1 * found[key] for key in found}
        scale = params[name]["scale"] * lax.rsqrt(var + model.variant.bn_epsilon)
        x = jax.nn.relu((x - mean) * scale + params[name]["bias"])
    features = x.mean((1, 2)).reshape(len(x), members, -1)
    head = params["head"]
    logits = jnp.einsum("bmc,mck->mbk", features, head["kernel"])
    logits += head["bias"].reshape(members, 1, -1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(1)
    return losses.sum(), (losses, new_stats)
