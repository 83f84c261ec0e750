"""However training ends, no thread is left that uses JAX while the interpreter ends."""

import subprocess
import sys
import threading
import time

import pytest
import tiny

from kernsym_jax import training

STREAMED = {"data__streaming": True, "eval_batch_size": 90}


def left_over(before):
    """The threads that are alive and were not before, once those that end have had their time."""
    end = time.monotonic() + 60
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        if time.monotonic() > end:
            return left
        time.sleep(0.05)
    return []


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_that_ends_leaves_no_thread(tmp_path, streamed):
    before = threading.enumerate()
    training.train_and_evaluate(tiny.config(**(STREAMED if streamed else {})), tmp_path / "run")
    assert left_over(before) == []


def test_a_run_that_fails_leaves_no_thread_while_its_error_is_handled(tmp_path):
    before = threading.enumerate()
    wild = tiny.config(**STREAMED, optimizer__learning_rate=1e30)
    # As at the end of a binary, the traceback keeps all local variables of the loop.
    with pytest.raises(ValueError, match="not finite") as kept:
        training.train_and_evaluate(wild, tmp_path / "run")
    assert left_over(before) == []
    assert kept.tb is not None


EXIT = """
import faulthandler, sys
faulthandler.enable()
sys.path.insert(0, {support!r})
import tiny
from kernsym_jax import training
try:
    training.train_and_evaluate(
        tiny.config(data__streaming=True, optimizer__learning_rate=1e30), {workdir!r}
    )
except ValueError as error:
    sys.exit(str(error))
"""


def test_a_process_ends_in_order_after_a_failed_run(repository, tmp_path):
    code = EXIT.format(support=str(repository / "tests/support"), workdir=str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code],
        capture_output=True, text=True, timeout=300, cwd=repository,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "not finite" in done.stderr.splitlines()[-1]
    assert "Fatal" not in done.stderr
