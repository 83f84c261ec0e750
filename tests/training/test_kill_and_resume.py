"""A run that is killed at random moments ends like one that is not (short form of the script)."""

import os
import re
import subprocess
import sys

import compiler

CONFIG = """
from kernsym_jax.training import default

def get_config():
    config = default()
    config.epochs, config.batch_size, config.log_every = 10.0, 64, 1
    config.eval_every_epochs, config.checkpoint_every_epochs = 2.0, 50 / 22
    config.consistency.images = 16
    config.model.update({"width": 4, "depth": 2, "strided": (2,)})
    config.data.shift = 1
    return config
"""


def test_two_kills_leave_no_trace(repository, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    script = [sys.executable, repository / "launch" / "kill_and_resume.py", "--kills=2", "--seed=6"]
    done = subprocess.run(
        [*script, f"--workdir={tmp_path}/runs", f"--config={config}"],
        env={
            **os.environ,
            "PYTHONPATH": str(repository),
            "XLA_FLAGS": compiler.one_device(),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"killed after steps \[(\d+), (\d+)\] of 220: the same final", done.stdout)
    assert found
    assert 0 < int(found[1]) < int(found[2]) < 220
