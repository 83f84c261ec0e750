"""How every binary starts, explains itself and ends; and text from files made safe to print."""

from kernsym_jax.cli.binary import (
    BAD_INPUT,
    PREEMPTED,
    Command,
    complete,
    describe,
    explain,
    fail,
    folder,
    run,
)
from kernsym_jax.cli.shipped import CONFIGS, STUDIES, ConfigFile, find_shipped, list_shipped
from kernsym_jax.cli.text import (
    PIPE_WIDTH,
    console,
    input_size,
    nearest,
    one_line,
    path_name,
    printable,
)

__all__ = [
    "BAD_INPUT",
    "CONFIGS",
    "PIPE_WIDTH",
    "PREEMPTED",
    "STUDIES",
    "Command",
    "ConfigFile",
    "complete",
    "console",
    "describe",
    "explain",
    "fail",
    "find_shipped",
    "folder",
    "input_size",
    "list_shipped",
    "nearest",
    "one_line",
    "path_name",
    "printable",
    "run",
]
