"""One writer at a time: a file that locks a folder for the process named in it.

The process also holds the system's advisory lock (flock) on the file, which ends with the process.
So a lock whose process has died on this host is taken over. On a file system without flock, the
process named in the file decides alone. Nobody here can know whether a process on another host is
alive: its lock is refused, with the file to remove.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from absl import logging

from kernsym_jax.cli import path_name, printable
from kernsym_jax.json_file import INT, TEXT, Form, check, or_null, parse

JOB_VARIABLE = "KERNSYM_JAX_JOB"
"""Environment variable that names a job of which only one process runs at a time, on any host."""

_FORM = Form(
    "not a lock",
    {"host": TEXT, "pid": INT, "started": TEXT, "ticks": or_null(INT), "job": or_null(TEXT)},
)
_MOST_BYTES = 4096
_POLL_SECONDS = 0.2


class Locked(ValueError):
    """Another process holds the lock."""


class LockedElsewhere(Locked):
    """A process on another host holds the lock, or has died there."""


class _Owner(NamedTuple):
    """The content of a lock.

    Attributes:
      host: name of the host.
      pid: number of the process on that host.
      started: when it took the lock.
      ticks: when the process started, in the host's own clock; numbers of processes are reused.
      job: the job that a scheduler starts again elsewhere under the same name; None without one.
    """

    host: str
    pid: int
    started: str
    ticks: int | None
    job: str | None


@contextlib.contextmanager
def only_writer(
    path: pathlib.Path, keep_waiting: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Holds a lock inside the block.

    Args:
      path: file of the lock, in an existing folder.
      keep_waiting: returns whether to wait for the process that holds the lock; it is asked several
        times a second.

    Raises:
      Locked: naming the process that holds the lock.
      LockedElsewhere: at once, also naming the file to remove if that process has died.
      OSError: if the file cannot be written.
    """
    file = _acquire(path, keep_waiting)
    try:
        yield
    finally:
        with file:
            # Removed while it is locked, so that nobody else has it open as a valid lock.
            if _is_file_at(file, path):
                path.unlink(missing_ok=True)


def _acquire(path: pathlib.Path, keep_waiting: Callable[[], bool]) -> IO[bytes]:
    told = False
    while True:
        file = _open(path)
        try:
            _take(file, path)
            # The process that had it may have removed the file since it was opened here.
            if _is_file_at(file, path):
                return file
            file.close()
        except BaseException as error:
            file.close()
            busy = isinstance(error, Locked) and not isinstance(error, LockedElsewhere)
            if not (busy and keep_waiting()):
                raise
            if not told:
                logging.warning("waiting: %s", error)
                told = True
            time.sleep(_POLL_SECONDS)


def _open(path: pathlib.Path) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    return os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)


def _take(file: IO[bytes], path: pathlib.Path) -> None:
    """Takes the lock, or raises `Locked`."""
    import fcntl

    works = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(_held_by(_read(file), path)) from None
    except OSError:
        works = False
    owner, this = _read(file), _this_process()
    if owner is not None and owner.host != this.host and not _restarted(owner, this):
        raise LockedElsewhere(
            f"{_held_by(owner, path)}; if that process has ended, remove {path_name(path)}"
        )
    if not works and owner is not None and owner.host == this.host and _is_alive(owner):
        raise Locked(_held_by(owner, path))
    try:
        _write(file, this)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if not works:
        # Another process may have found the same dead owner at the same time.
        time.sleep(_POLL_SECONDS)
        if (now := _read(file)) != this:
            raise Locked(_held_by(now, path))


def _held_by(owner: _Owner | None, path: pathlib.Path) -> str:
    folder = path_name(path.parent)
    if owner is None:
        return f"{folder}: another process writes there (lock {path_name(path.name)})"
    host, started = printable(owner.host)[:100], printable(owner.started)[:40]
    return f"{folder}: process {owner.pid} on {host} has been writing there since {started}"


def _restarted(owner: _Owner, this: _Owner) -> bool:
    """Returns whether a scheduler has ended the owner and started this process in its place."""
    if this.job is None or owner.job != this.job:
        return False
    # The tasks of one job on Slurm may run side by side, until the job is queued again.
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return not this.job.startswith("SLURM") or (count.isdecimal() and int(count) > 0)


def _this_process() -> _Owner:
    return _Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ticks=_ticks(os.getpid()),
        job=_job(),
    )


def _job() -> str | None:
    # A job keeps its name when SkyPilot recovers it elsewhere, or Slurm queues it again.
    for name in (JOB_VARIABLE, "SKYPILOT_TASK_ID", "SLURM_JOB_ID"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    return None


def _is_alive(owner: _Owner) -> bool:
    try:
        os.kill(max(owner.pid, 1), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return owner.ticks is None or _ticks(owner.pid) == owner.ticks


def _ticks(pid: int) -> int | None:
    """Returns when a process started, in clock ticks since the system started.

    None if it has ended, and where the system has no ``/proc``.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name of the program is in brackets and may hold anything.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _read(file: IO[bytes]) -> _Owner | None:
    """Returns the owner; None if the file is empty or damaged."""
    try:
        content = os.pread(file.fileno(), _MOST_BYTES, 0)
        value = parse(content, "", _FORM.problem)
        check(value, "", _FORM)
    except (OSError, ValueError):
        return None
    return _Owner(**{name: value[name] for name in _Owner._fields})


def _write(file: IO[bytes], owner: _Owner) -> None:
    content = json.dumps(owner._asdict()).encode() + b"\n"
    os.ftruncate(file.fileno(), 0)
    if os.pwrite(file.fileno(), content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # On a bucket, other hosts see the file from here on.
    os.fsync(file.fileno())


def _is_file_at(file: IO[bytes], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except OSError:
        return False
