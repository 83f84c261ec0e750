"""A run of a network of the user's own, from a file in the current directory, in real processes."""

import json
import os
import subprocess
import sys

import pytest

NETWORK = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int
    width: int = 4
    rate: float = 0.0
    outputs: int | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.width, (3, 3), strides=2, use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2)(x))
        return nn.Dense(self.outputs or self.num_classes, name="head")(x.mean((1, 2)))

class Counting(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        self.variable("counts", "calls", lambda: 0)
        return nn.Dense(10)(x.mean((1, 2)))

class Named(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return {"logits": nn.Dense(10)(x.mean((1, 2)))}

class Failing(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        raise KeyError("absent")
"""

CONFIG = """
from kernsym_jax.training import default

def get_config():
    config = default()
    config.epochs, config.batch_size, config.log_every = 8 / 22, 64, 2
    config.eval_every_epochs = config.checkpoint_every_epochs = 4 / 22
    config.consistency.images, config.devices = 16, 1
    config.model.name = "own_net:Net"
    config.model.kwargs.rate = 0.1
    return config
"""


@pytest.fixture(scope="module")
def start(repository, tmp_path_factory):
    """Runs a binary in the folder of the network: status, output, errors."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_net.py").write_text(NETWORK)
    (folder / "config.py").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(repository)}

    def run(name, *arguments, cwd=folder):
        # As the installed command does, without the current directory in the path.
        code = f"import sys; sys.path.remove(''); from kernsym_jax import {name}; {name}.run()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        errors = [line for line in done.stderr.splitlines() if "xla_bridge" not in line]
        return done.returncode, done.stdout, errors

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def trained(start):
    status, _, errors = start(
        "train", "--config=config.py", "--workdir=run", "--config.model.kwargs.width=6"
    )
    assert status == 0, errors
    return start.folder / "run"


@pytest.fixture
def run_there(start, run_binary, monkeypatch):
    """Runs a binary in this process in the folder of the network, or in another one."""

    def run(name, *arguments, cwd=start.folder):
        monkeypatch.chdir(cwd)
        monkeypatch.delitem(sys.modules, "own_net", raising=False)
        status, out, errors = run_binary(name, *arguments)
        return status, out, errors.splitlines()

    return run


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text()


def test_the_run_records_the_network_and_resumes(start, run_there, trained):
    model = json.loads((trained / "config.json").read_text())["model"]
    assert (model["name"], model["kwargs"]) == ("own_net:Net", {"rate": 0.1, "width": 6})
    layers = json.loads((trained / "layers.json").read_text())
    assert [(row["layer"], row["stride"]) for row in layers] == [
        ("stem", [2, 2]), ("Conv_0", [2, 2])
    ]  # fmt: skip
    given = ("train", "--config=config.py", "--workdir=part", "--config.model.kwargs.width=6")
    # The same run, of which the second half starts from the checkpoint in its middle.
    part = start.folder / "part"
    assert run_there(*given)[0] == 0
    newest = max((part / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert newest.name == "8"
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    (part / "summary.json").unlink()
    status, out, errors = run_there(*given)
    assert status == 0, errors
    assert "4" in out
    assert lines(part) == lines(trained)
    status, _, errors = run_there(
        "train", "--config=config.py", "--workdir=run", "--config.model.kwargs.width=7"
    )
    assert (status, len(errors)) == (2, 1)
    assert "model.kwargs.width: 6 → 7" in errors[0]


def test_the_other_binaries_read_the_run(start, run_there, trained, tmp_path):
    status, _, errors = run_there("evaluate", f"--workdir={trained}", "--shift=1", "--limit=64")
    assert status == 0, errors
    found = json.loads((trained / "consistency.json").read_text())
    assert found["settings"]["model"]["name"] == "own_net:Net"
    status, out, errors = run_there("audit", str(trained), "--input_size=9")
    assert status == 0, errors
    assert "stem" in out
    status, out, errors = run_there(
        "audit", "--model=own_net:Net", "--num_classes=3", "--input_size=9"
    )
    assert status == 0, errors
    # `analyze` runs no code that a run names, so it works wherever the class is.
    for cwd in (start.folder, tmp_path):
        status, out, errors = run_there(
            "analyze", str(trained), f"--out={tmp_path}/report", cwd=cwd
        )
        assert status == 0, errors
        assert "stem" in out
        assert "strided" in out
    status, _, errors = run_there(
        "analyze", str(trained), "--input_size=9", f"--out={tmp_path}/report"
    )
    assert (status, len(errors)) == (2, 1)
    assert "own_net:Net" in errors[0]
    status, _, errors = run_there("evaluate", f"--workdir={trained}", cwd=tmp_path)
    assert (status, len(errors)) == (2, 1)
    assert "no module 'own_net' in the current directory" in errors[0]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name": "own_net:Not"}, "own_net has no class 'Not'"),
        ({"name": "own_not:Net"}, "no module 'own_not'"),
        ({"kwargs": {"wide": 7}}, "unknown fields ['wide']"),
        ({"padding": "reflect"}, "padding='reflect' needs a field"),
        ({"kwargs": {"outputs": 3}}, "Net gives 3 logits for 10 classes"),
        ({"name": "own_net:Counting"}, "Counting keeps ['counts']"),
        ({"name": "own_net:Named"}, "Named returns dict, wanted an array of logits"),
        ({"name": "own_net:Failing"}, "own_net:Failing: KeyError: 'absent' (own_net.py, line"),
    ],
)
def test_what_is_wrong_is_one_line(start, run_there, tmp_path, model, says):
    config = CONFIG.replace("    config.model.kwargs.rate = 0.1\n", "")
    update = f"    config.model.update({model!r})\n    return config"
    (tmp_path / "config.py").write_text(config.replace("    return config", update))
    status, _, errors = run_there(
        "train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/bad"
    )
    assert (status, len(errors)) == (2, 1), errors
    assert says in errors[0]
    assert not (tmp_path / "bad").exists()
