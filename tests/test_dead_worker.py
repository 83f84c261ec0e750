"""A process of the suite that dies ends the suite, which names its test."""

import shutil
import subprocess
import sys

DIES = """
import os, signal
def test_before(): pass
def test_that_dies(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
"""
LIVES = """
import time, pytest
@pytest.mark.parametrize("number", range(20))
def test_that_takes_its_time(number): time.sleep(0.1)
"""


def test_a_worker_that_dies_ends_the_suite_at_once(repository, tmp_path):
    (tmp_path / "tests" / "support").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/support/compiler.py"):
        shutil.copy(repository / name, tmp_path / name)
    for name, content in {"a": DIES, "b": LIVES, "c": LIVES, "d": LIVES}.items():
        (tmp_path / "tests" / f"test_{name}.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n2", "--dist=loadfile", "--no-loadscope-reorder"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running 'tests/test_a.py::test_that_dies'" in done.stdout
    assert "1 failed, " in done.stdout
