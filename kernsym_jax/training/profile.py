"""A profile of a few training steps, on request."""

import jax

_SKIPPED, _LENGTH = 5, 5


class Profile:
    """Records what the devices do in steps 6 to 10 of a session, or fewer if it ends before.

    Args:
      folder: for TensorBoard's profile plugin, or Perfetto; ``None`` to record nothing.
      first: completed steps at the start of the session.
    """

    def __init__(self, folder: str | None, first: int) -> None:
        self._folder, self._first, self._running = folder, first, False

    def before(self, step: int) -> None:
        """Is called with the number of completed steps before each step."""
        if self._folder is not None and step == self._first + _SKIPPED:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._first + _SKIPPED + _LENGTH:
            self.close()

    def close(self) -> None:
        """Writes what was recorded."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
