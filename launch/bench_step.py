"""The `step` bench: a training step and its parts on one thread, beside PyTorch and other forms.

Each side is a process of its own, and the sides take turns, so that a slow spell of the machine
hits all of them. The tables hold medians.
"""

import contextlib
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kernsym_jax import layers, models
from kernsym_jax.layers.conv import convolve

BATCH = 128
# Name in the table -> our network, its settings, and the pixels of its images.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "plain": ("small_cnn", {"width": 16, "depth": 7, "strided": (2, 4, 6)}, 16),
    "vgg11": ("vgg11_bn", {"hidden": 512, "dropout": 0.0}, 32),
    "resnet20": ("cifar_resnet20", {}, 32),
}
# Pixels of the map, stride, channels in and channels out of 3×3 convolutions.
SHAPES = [
    (1, 1, 128, 128), (2, 1, 64, 64), (2, 1, 128, 128), (2, 1, 256, 256), (4, 2, 64, 128),
    (3, 1, 64, 64), (4, 1, 64, 64), (8, 1, 64, 64), (16, 1, 32, 32), (16, 1, 64, 128),
    (32, 1, 16, 16), (32, 2, 16, 32), (32, 1, 3, 16),
]  # fmt: skip
PARTS = ("result", "map gradient", "kernel gradient")
# Pixels and channels of the maps that BatchNorm normalises.
NORMS = [(32, 16), (16, 32), (8, 64), (2, 128)]
_PEER = pathlib.Path(__file__).with_name("torch_step.py")
_SECONDS = 0.1


def bench_step(rounds: int, peers_python: str | None) -> None:
    """Prints tables of whole steps, of convolutions and of BatchNorm, in Markdown.

    Args:
      rounds: how often each thing is timed.
      peers_python: an interpreter with torch; None to leave PyTorch out.
    """
    ours = [sys.executable, __file__]
    sides = {"ours": [*ours, "ours"], "XLA's convolution": [*ours, "plain"]}
    if peers_python:
        sides["PyTorch"] = [peers_python, str(_PEER), "default"]
        sides["PyTorch, channels last"] = [peers_python, str(_PEER), "channels_last"]
    with contextlib.ExitStack() as stack:
        ask = {name: stack.enter_context(_child(command)) for name, command in sides.items()}
        print(f"\nOne step with a batch of {BATCH}, ms (images/s):\n")
        _print_row("network", list(ask), head=True)
        for network in NETWORKS:
            medians = _in_turn(rounds, [functools.partial(ask[n], f"step {network}") for n in ask])
            cells = [f"{1e3 * t:.1f} ({BATCH / t:,.0f})" for t in medians]
            _print_row(network, cells)
        print("\n3×3 convolutions, padding 1, ms:\n")
        _print_row("convolution", list(FORMS), head=True)
        for (size, stride, inputs, outputs), part in ((s, p) for s in SHAPES for p in PARTS):
            request = f"conv {size} {stride} {inputs} {outputs} {part.replace(' ', '_')}"
            calls = [functools.partial(ask["ours"], f"{request} {form}") for form in FORMS]
            name = f"{size}×{size}, stride {stride}, {inputs}→{outputs}, {part}"
            _print_row(name, [f"{1e3 * t:.2f}" for t in _in_turn(rounds, calls)])
        print("\nBatchNorm and its gradient, ms:\n")
        _print_row("map", list(NORM_FORMS), head=True)
        for size, channels in NORMS:
            request = f"norm {size} {channels}"
            calls = [functools.partial(ask["ours"], f"{request} {form}") for form in NORM_FORMS]
            name = f"{size}×{size}, {channels} channels"
            _print_row(name, [f"{1e3 * t:.2f}" for t in _in_turn(rounds, calls)])


def _print_row(name: str, cells: Sequence[str], *, head: bool = False) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if head:
        print("|---" * (len(cells) + 1) + "|")


def _in_turn(rounds: int, calls: Sequence[Callable[[], float]]) -> list[float]:
    """Returns the median of what each call gives, one after another in every round."""
    taken = [[call() for call in calls] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


@contextlib.contextmanager
def _child(command: Sequence[str]) -> Iterator[Callable[[str], float]]:
    """Starts one side of the comparison; the result asks it for the seconds of a piece of work."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NPROC": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(request: str) -> float:
        stdin.write(request + "\n")
        stdin.flush()
        return float(stdout.readline())

    try:
        yield ask
    finally:
        stdin.close()
        process.wait()


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    steps, pads = (stride, stride), ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, steps, pads, dimension_numbers=numbers)


def ours(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of our layers."""
    return convolve(x, kernel, stride=(stride, stride), amounts=((1, 1), (1, 1)))


def shifted(x: jax.Array, stride: int) -> list[jax.Array]:
    """The pixels that each tap sees."""
    batch, size, _, channels = x.shape
    out = (size - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    reach = (out - 1) * stride + 1
    steps = (1, stride, stride, 1)
    return [
        lax.slice(padded, (0, i, j, 0), (batch, i + reach, j + reach, channels), steps)
        for i in range(3)
        for j in range(3)
    ]


def taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The sum of a product for each tap."""
    weights = kernel.reshape(9, *kernel.shape[2:])
    return sum(part @ weight for part, weight in zip(shifted(x, stride), weights, strict=True))


def patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """One product with the pixels of all taps side by side."""
    columns = jnp.concatenate(shifted(x, stride), axis=3)
    return columns @ kernel.reshape(-1, kernel.shape[3])


def parts(count: int) -> Callable[..., jax.Array]:
    """XLA's convolution of so many parts of the batch, one after another."""

    def in_parts(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        split = x.reshape(-1, count, *x.shape[1:])
        outputs = [plain(split[:, part], kernel, stride) for part in range(count)]
        return jnp.stack(outputs, axis=1).reshape(-1, *outputs[0].shape[1:])

    return in_parts


FORMS = {
    "plain": plain, "ours": ours, "taps": taps, "patches": patches,
    "parts_2": parts(2), "parts_8": parts(8), "parts_16": parts(16),
}  # fmt: skip


def conv_call(size: int, stride: int, inputs: int, outputs: int, part: str, form: str) -> Callable:
    """One part of a convolution in one form, compiled."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH, size, size, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, inputs, outputs)), jnp.float32)
    function = functools.partial(FORMS[form], stride=stride)
    y = plain(x, kernel, stride)
    if part == "result":
        return functools.partial(jax.jit(function), x, kernel)
    if part == "map_gradient":
        by_map = jax.jit(lambda kernel, y: jax.vjp(lambda x: function(x, kernel), x)[1](y))
        return functools.partial(by_map, kernel, y)
    by_kernel = jax.jit(lambda x, y: jax.vjp(lambda kernel: function(x, kernel), kernel)[1](y))
    return functools.partial(by_kernel, x, y)


def norm_moments(x: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance in one pass about a centre."""
    about = x - centre
    first, second = about.mean((0, 1, 2)), jnp.square(about).mean((0, 1, 2))
    return first + centre, second - jnp.square(first)


def norm_difference(x: jax.Array, centre: jax.Array) -> jax.Array:
    """One pass for the moments, then (x - mean) * factor."""
    mean, var = norm_moments(x, centre)
    return (x - mean) * lax.rsqrt(var + 1e-5)


def norm_raw(x: jax.Array, centre: jax.Array) -> jax.Array:
    """Raw moments, which cancel where the mean is large."""
    mean = x.mean((0, 1, 2)) + 0 * centre
    var = jnp.square(x).mean((0, 1, 2)) - jnp.square(mean)
    return (x - mean) * lax.rsqrt(var + 1e-5)


def norm_two_passes(x: jax.Array, centre: jax.Array) -> jax.Array:
    """The mean first, then the variance about it."""
    mean = x.mean((0, 1, 2)) + 0 * centre
    return (x - mean) * lax.rsqrt(jnp.square(x - mean).mean((0, 1, 2)) + 1e-5)


def norm_ours(x: jax.Array, centre: jax.Array) -> jax.Array:
    """Our layer."""
    one, zero = jnp.ones_like(centre), jnp.zeros_like(centre)
    variables = {
        "params": {"scale": one, "bias": zero}, "batch_stats": {"mean": centre, "var": one},
    }  # fmt: skip
    return layers.BatchNorm().apply(variables, x, True, mutable=["batch_stats"])[0]


NORM_FORMS = {
    "ours": norm_ours, "difference": norm_difference, "raw": norm_raw, "two_passes": norm_two_passes
}  # fmt: skip


def norm_call(size: int, channels: int, form: str) -> Callable:
    """BatchNorm, a ReLU and their gradient in one form, compiled."""
    rng = np.random.default_rng(0)
    x, y = (
        jnp.asarray(rng.normal(size=(BATCH, size, size, channels)), jnp.float32) for _ in range(2)
    )

    def both(x: jax.Array, y: jax.Array, centre: jax.Array) -> Any:
        result, gradient = jax.vjp(lambda x: jax.nn.relu(NORM_FORMS[form](x, centre)), x)
        return result, gradient(y)

    return functools.partial(jax.jit(both), x, y, jnp.full(channels, 0.1))


def step_call(network: str) -> Callable:
    """A step of SGD of one network on one batch that is there already, compiled."""
    name, fields, size = NETWORKS[network]
    model = models.create(name, num_classes=10, **fields)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, size, size, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, BATCH))
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))

    # Images are arguments: what is constant is computed when the program is compiled.
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
            return losses.mean(), updates["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    params = variables["params"]
    states = [(params, variables["batch_stats"], tx.init(params))]
    jitted = jax.jit(step, donate_argnums=0)

    def call() -> jax.Array:
        states[0], loss = jitted(states[0], images, labels)
        return loss

    return call


def main(side: str) -> None:
    """Answers requests in seconds until the other end closes the pipe."""
    if side == "plain":
        replaced = mock.patch(
            "kernsym_jax.layers.conv.convolve",
            lambda x, kernel, *, stride, amounts, dilation, groups: lax.conv_general_dilated(
                x,
                kernel,
                stride,
                amounts,
                rhs_dilation=dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            ),
        )
        replaced.start()
    calls: dict[str, Callable] = {}
    for line in sys.stdin:
        kind, *words = line.split()
        if line not in calls:
            made = {"step": step_call, "conv": conv_call, "norm": norm_call}[kind]
            calls[line] = made(*(int(word) if word.isdecimal() else word for word in words))
            jax.block_until_ready(calls[line]())
        started, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - started < _SECONDS:
            jax.block_until_ready(calls[line]())
            count += 1
        print((time.perf_counter() - started) / count, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
