"""Readers that do what a hostile file could make a real one do; the guard must end each of them."""

import dataclasses
import os
import pathlib
import subprocess

import numpy as np


@dataclasses.dataclass
class Record:
    """A class that the caller may or may not expect in a result."""

    values: np.ndarray


def crash(source):
    """Ends as the HDF5 library does on damaged files."""
    os.abort()


def spin(source):
    """Never ends."""
    while True:
        pass


def fill(source):
    """Takes memory without end."""
    taken = []
    while True:
        taken.append(bytearray(64 << 20))


def recurse(source):
    """Calls itself without end."""
    return recurse(source)


def read_outside(source):
    """Opens a file that does not belong to the source."""
    return pathlib.Path("/etc/hostname").read_text()


def write(source):
    """Writes beside the source."""
    pathlib.Path(source).with_name("written").write_text("x")


def run(source):
    """Starts a program."""
    subprocess.run(["true"], check=True)


def long_error(source):
    """Fails with a message that spells out what it found."""
    raise RuntimeError("\x1b[31m" + "x" * 100_000)


def record(source):
    """Returns a record with an array in memory."""
    return Record(np.arange(6.0).reshape(2, 3).T)


def environment(source):
    """Returns what the process has imported and where it is."""
    import sys

    return "jax" in sys.modules, os.getcwd(), os.getpid()
