"""SIGTERM and SIGINT as a wish to stop, which is granted between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Preempted(Exception):
    """The run was asked to stop, and has saved its state."""


class Stop:
    """Whether the run has been asked to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked.set()

    def asked(self) -> bool:
        """Whether this process may stop what it is doing, without a word with the others."""
        return self._asked.is_set() and jax.process_count() == 1

    def agreed(self, step: int) -> bool:
        """Whether all processes stop after that step; to be called with every completed step."""
        if jax.process_count() == 1:
            return self._asked.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Takes SIGTERM and SIGINT for requests to stop, while it lasts."""
    stop = Stop()
    # Only the main thread may handle signals; elsewhere the caller keeps them.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[int, Any] = {
        number: lambda *_: stop.ask() for number in (signal.SIGTERM, signal.SIGINT)
    }
    if jax.process_count() > 1:
        # SIGTERM is JAX's own, which tells the other processes.
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
