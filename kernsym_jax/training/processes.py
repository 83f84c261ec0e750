"""Several processes as one run: how they meet, agree, fail together and stop on a signal."""

import glob
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from kernsym_jax.cli import BAD_INPUT, describe

T = TypeVar("T")


class AgreedFailure(ValueError):
    """An error on one of several processes, raised on all of them."""


class Preempted(Exception):
    """The run was asked to stop and has saved its state.

    >>> from kernsym_jax import cli, training
    >>> def run():
    ...     raise training.Preempted("stopped after step 40; what has been trained is saved")
    ...
    >>> try:
    ...     run()
    ... except training.Preempted as stopped:
    ...     print(f"{stopped} (exit status {cli.PREEMPTED})")
    ...
    stopped after step 40; what has been trained is saved (exit status 75)
    """


def start(
    mode: str = "auto",
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Connects this process to the other processes of its run, before JAX computes anything.

    Args:
      mode: ``on``, ``off`` or ``auto``. ``auto`` connects if there is a coordinator, in a step of
        Slurm or Open MPI with several tasks, and on a Cloud TPU.
      coordinator: ``host:port`` of process 0; None for ``JAX_COORDINATOR_ADDRESS``, or JAX's own
        detection.
      processes: number of processes; None for JAX's own detection.
      process: index of this process from 0; None for JAX's own detection.

    Raises:
      ValueError: if a setting is missing.
      OSError: if the processes cannot reach each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if mode == "off" or (mode == "auto" and not (coordinator or _on_cluster())):
        return
    if (processes is None) != (process is None):
        raise ValueError("give the number of processes together with the number of this process")
    # With a loopback address all processes are on this machine, and no other may reach the port.
    bind = coordinator if coordinator and coordinator.startswith("127.") else None
    try:
        jax.distributed.initialize(coordinator, processes, process, coordinator_bind_address=bind)
    except ValueError as error:
        raise ValueError(f"several processes were asked for, but {error}") from error
    except RuntimeError as error:
        place = coordinator or "the cluster that was detected"
        raise OSError(f"no connection to the other processes through {place}: {error}") from error


def is_first() -> bool:
    """Returns whether this process writes the files of the run."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Calls a function on every process; if it fails on one process, it fails on all.

    Args:
      action: function that every process calls once.

    Returns:
      Its result on this process.

    Raises:
      AgreedFailure: with several processes, if it raises `ValueError` or `OSError` on one of them.
    """
    if jax.process_count() == 1:
        return action()
    from jax.experimental import multihost_utils

    failure: Exception | None = None
    try:
        result = action()
    except (ValueError, OSError) as error:
        failure = error
    with jax.transfer_guard("allow"):
        failed = multihost_utils.process_allgather(np.array(failure is not None)).nonzero()[0]
    if failure is not None:
        raise AgreedFailure(str(failure)) from failure
    if len(failed):
        raise AgreedFailure(f"stopped, because process {failed[0]} cannot go on; it says why")
    return result


@contextmanager
def leaving_on_failure() -> Iterator[None]:
    """Ends this process at once if it is the only one of several that fails.

    Otherwise it would wait for the others; they notice that it has gone, and end as well. An
    `AgreedFailure` is raised as usual.
    """
    try:
        yield
    except AgreedFailure:
        raise
    except (ValueError, OSError) as error:
        if jax.process_count() == 1:
            raise
        print(f"process {jax.process_index()}: {describe(error)}", file=sys.stderr, flush=True)
        os._exit(BAD_INPUT)


def first_says(value: int) -> int:
    """Returns the number of process 0, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Stop:
    """A request to stop the run."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked.set()

    def asked(self) -> bool:
        """Returns whether to stop in the middle of an action; never with several processes."""
        return self._asked.is_set() and jax.process_count() == 1

    def agreed(self, step: int) -> bool:
        """Returns whether all processes stop after a step; call it with every completed step."""
        if jax.process_count() == 1:
            return self._asked.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Takes SIGTERM and SIGINT inside the block for requests to stop."""
    stop = Stop()
    # Only the main thread may handle signals; elsewhere the caller keeps them.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[int, Any] = {
        number: lambda *_: stop.ask() for number in (signal.SIGTERM, signal.SIGINT)
    }
    if jax.process_count() > 1:
        # JAX handles SIGTERM itself and tells the other processes.
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_cluster() -> bool:
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in tasks):
        return True
    # Only TPU machines have both the files of a TPU's driver and its library.
    on_tpu = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    device = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return on_tpu and bool(device) and importlib.util.find_spec("libtpu") is not None
