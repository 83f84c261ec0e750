"""The `analyze` bench: whole processes, ours beside its peers' on the same weights."""

import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from kernsym_jax import geometry, models

# A network of plain convolutions with the file's weights, as either peer wants one to look at.
_PEER = """
import sys, torch
from safetensors.torch import load_file
weights = [w for w in load_file(sys.argv[1]).values() if w.ndim == 4]
layers = []
for w in weights:
    layer = torch.nn.Conv2d(w.shape[1], w.shape[0], tuple(w.shape[2:]), bias=False)
    layer.weight.data = w
    layers.append(layer)
model = torch.nn.Sequential(*layers)
"""
# Started from a process as small as can be: a child counts its parent's memory as its own.
_CLOCK = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""
_PEERS = {
    "torchconvquality": _PEER + "import torchconvquality; torchconvquality.measure_quality(model)",
    "weightwatcher": _PEER
    + "import weightwatcher; weightwatcher.WeightWatcher(model=model).analyze(plot=False)",
}


def bench_analyze(rounds: int, peers_python: str | None) -> None:
    """ResNet-50 (102 MB), and 100 CIFAR ResNet-20 checkpoints, random weights.

    Args:
      rounds: how often each command is run; medians are printed.
      peers_python: an interpreter with torch, safetensors, weightwatcher and torchconvquality.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        big = write_random("resnet50", folder / "resnet50.safetensors", 0)
        for index in range(100):
            write_random("cifar_resnet20", folder / f"many/{index:03d}.safetensors", index)
        bare = "import jax, jax.numpy as jnp; jnp.ones(3).block_until_ready()"
        analyze = [sys.executable, "-m", "kernsym_jax.analyze"]
        commands = {
            "bare JAX": [sys.executable, "-c", bare],
            "analyze": [*analyze, str(big), f"--out={folder}/report"],
            "100 checkpoints": [*analyze, f"{folder}/many", f"--out={folder}/report"],
        }
        for name, code in _PEERS.items() if peers_python else ():
            commands[name] = [str(peers_python), "-c", code, str(big)]
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                figures[name].append(timed(command))
        ours = np.array(figures["analyze"])
        for name, pairs in figures.items():
            seconds, memory = np.median(pairs, axis=0)
            ratio = np.median(np.array(pairs)[:, 0] / ours[:, 0])
            print(f"{name:18} {seconds:7.2f} s  {memory / 1e6:5.0f} MB  {ratio:6.2f} × analyze")
        above = np.median(ours[:, 1]) - np.median(np.array(figures["bare JAX"])[:, 1])
        print(f"analyze above bare JAX: {above / big.stat().st_size:.2f} times the file's size")


def write_random(model: str, path: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes random convolution weights of a registry model, as PyTorch would name and lay them."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    arrays = {}
    module = models.create(model, num_classes=1000 if model == "resnet50" else 10)
    size = models.default_input_size(model)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    order = {row.layer: index for index, row in enumerate(geometry.audit_module(module, size))}
    flat = {
        "/".join(key.key for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    for name in sorted(flat, key=lambda n: order.get(n.rpartition("/")[0], len(order))):
        shape = flat[name].shape
        stored = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
        renamed = name.replace("/", ".").replace("kernel", "weight")
        arrays[renamed] = rng.standard_normal(stored, np.float32)
    path.parent.mkdir(exist_ok=True)
    save_file(arrays, path)
    return path


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds, and most bytes of memory, of a command."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", _CLOCK, *command], capture_output=True, text=True, check=True
    )
    seconds, kibibytes, status = ran.stdout.split()
    if int(status):
        raise RuntimeError(f"{' '.join(command[:3])} … ended with {status}")
    return float(seconds), 1024 * float(kibibytes)
