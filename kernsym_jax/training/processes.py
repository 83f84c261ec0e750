"""Several processes as one run: how they find each other, and what they have to agree on."""

import glob
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from kernsym_jax.cli import BAD_INPUT, describe

T = TypeVar("T")


class AgreedFailure(ValueError):
    """What went wrong on one of several processes, raised on all of them."""


def start(
    mode: str = "auto",
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins this process to the others of its run; before anything is computed.

    Args:
      mode: ``on``; ``off``; or ``auto``, which is on if a coordinator is named, in a step of Slurm
        or Open MPI with several tasks, and on a Cloud TPU.
      coordinator: ``host:port`` of process 0; ``None`` for JAX's own detection, or
        ``JAX_COORDINATOR_ADDRESS``.
      processes: how many there are; ``None`` for JAX's own detection.
      process: the number of this one, from 0; ``None`` likewise.

    Raises:
      ValueError: if something is missing.
      OSError: if the processes cannot reach each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if mode == "off" or (mode == "auto" and not (coordinator or _on_cluster())):
        return
    if (processes is None) != (process is None):
        raise ValueError("the number of processes and that of this process go together")
    # Loopback is for one machine alone: other machines have no business at the port.
    bind = coordinator if coordinator and coordinator.startswith("127.") else None
    try:
        jax.distributed.initialize(coordinator, processes, process, coordinator_bind_address=bind)
    except ValueError as error:
        raise ValueError(f"several processes were asked for, but {error}") from error
    except RuntimeError as error:
        place = coordinator or "the cluster that was detected"
        raise OSError(f"no connection to the other processes through {place}: {error}") from error


def is_first() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Does something that may fail on any process; if it fails on one, it fails on all.

    Args:
      action: is called once on every process.

    Returns:
      What it returned on this process.

    Raises:
      AgreedFailure: among several processes, if it raised a ``ValueError`` or ``OSError`` on one.
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
    """Ends this process at once if it alone of several fails, since it would wait for the others.

    They notice that it has gone and end as well. What all have agreed on is raised as usual.
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
    """The number that process 0 has, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _on_cluster() -> bool:
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in tasks):
        return True
    # The files of a TPU's driver, and its library: together they are found on TPU machines only.
    on_tpu = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    device = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return on_tpu and bool(device) and importlib.util.find_spec("libtpu") is not None
