"""The binaries as a user meets them: exit statuses, one line for bad input, real signals."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import compiler
import pytest

CONFIG = """
from kernsym_jax.training import default

def get_config():
    config = default()
    config.epochs, config.batch_size, config.log_every = {epochs}, 64, 2
    config.eval_every_epochs = config.checkpoint_every_epochs = {every}
    config.consistency.images = 16
    config.model.update({{"width": 4, "depth": 2, "strided": (2,)}})
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(epochs=4 / 22, every=4 / 22))
    return path


def start(repository, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    # One device is enough, and starts faster than the suite's eight.
    environment["XLA_FLAGS"] = compiler.one_device()
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finish(process):
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def test_train_then_analyze_as_the_readme_does(repository, config, tmp_path):
    status, out, _ = finish(
        start(repository, "kernsym_jax.train", f"--config={config}", f"--workdir={tmp_path}/run",
              "--config.model.width=6")
    )  # fmt: skip
    assert status == 0
    assert "img/s" in out
    assert "ETA" in out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["width"] == 6
    status, out, _ = finish(
        start(repository, "kernsym_jax.analyze", tmp_path / "run", f"--out={tmp_path}/report")
    )
    assert status == 0
    assert "conv1" in out
    assert "first" in out
    assert "strided" in out
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--config={c}", "--workdir={t}/run", "--config.epoch=3"], "epochs"),
        (["train", "--config={t}/none.py", "--workdir={t}/run"], "none.py"),
        (["train", "--config={c}"], "--workdir is missing: .* --workdir=runs/config$"),
        (["train", "--workdir={t}/run"], "--config is missing"),
        (["train", "--config={c}", "--workdir={c}"], "config.py is a file; a folder is wanted"),
        (["train", "--config={c}", "--workdir={t}/run", "--speed=9"], "speed"),
        (["train", "--config={c}", "--prepare", "--config.data.source=tfds:nowhere_to_be"], "tfds"),
        (
            ["train", "--config={c}", "--workdir={t}/run", "--config.data.source=folder:{t}/none"],
            "none: no such folder",
        ),
        (
            [
                "train",
                "--config={c}",
                "--workdir={t}/run",
                "--config.data.source=masks:{t}/none",
                "--config.data.void=11",
            ],
            "none: no such folder or archive",
        ),
        (
            [
                "train",
                "--config={c}",
                "--workdir={t}/run",
                "--config.symmetry.project=True",
                "--config.symmetry.layers=conv9",
            ],
            "config.symmetry.layers: 'conv9' matches no spatial convolution",
        ),
        (
            ["train", "--config={c}", "--workdir={t}/run", "--config.model.padding=zeros"],
            "padding",
        ),
        (["analyze", "{t}/none"], "none"),
        (["analyze", "{t}"], "no run directory and no file of weights"),
        (["analyze", "--out={t}/report"], "name at least one"),
    ],
)
def test_bad_input_is_one_line_with_status_two(run_binary, config, tmp_path, arguments, says):
    filled = [argument.format(c=config, t=tmp_path) for argument in arguments]
    status, _, errors = run_binary(*filled)
    assert status == 2
    (line,) = errors.splitlines()
    assert re.search(says, line)
    assert not (tmp_path / "run").exists()


def test_a_process_with_bad_input_prints_one_line_and_ends_with_status_two(
    repository, config, tmp_path
):
    arguments = (f"--config={config}", f"--workdir={tmp_path}/run", "--config.epoch=3")
    status, _, errors = finish(start(repository, "kernsym_jax.train", *arguments))
    assert status == 2
    (line,) = [line for line in errors.splitlines() if "xla_bridge" not in line]
    assert "epochs" in line
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_by_a_signal_saves_exits_75_and_ends_like_the_others(
    repository, run_binary, tmp_path
):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(epochs=7.0, every=0.5))
    train = ("kernsym_jax.train", f"--config={config}")
    stopped = start(repository, *train, f"--workdir={tmp_path}/run")
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 20)
    stopped.send_signal(signal.SIGTERM)
    status, out, _ = finish(stopped)
    assert status == 75
    assert "which is saved" in out
    killed = start(repository, *train, f"--workdir={tmp_path}/run")
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 80)
    killed.kill()
    finish(killed)
    for name in ("run", "whole"):
        assert run_binary("train", f"--config={config}", f"--workdir={tmp_path}/{name}")[0] == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "whole")]
    assert logs[0] == logs[1]


def wait_for_lines(path: pathlib.Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not reach {count} lines")


def test_importing_the_package_loads_nothing_heavy(repository):
    code = (
        "import sys, kernsym_jax; assert 'jax' not in sys.modules; "
        "from kernsym_jax import symmetry, geometry, layers, models, data, weights, report; "
        "from kernsym_jax import studies; "
        "heavy = {'matplotlib', 'orbax', 'tensorflow_datasets', 'sklearn', 'h5py', 'onnx', "
        "'scipy.stats', 'tensorboardX', 'jinja2', 'PIL', 'tensorflow', 'torch', 'grain'}; "
        "loaded = heavy & set(sys.modules); assert not loaded, loaded"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
