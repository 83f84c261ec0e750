"""The start and the end of every binary."""

import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from kernsym_jax.cli.text import nearest, one_line
from kernsym_jax.cli.usage import Command, complete, explain, listing

BAD_INPUT = 2
PREEMPTED = 75

_HELP = ("--help", "-h", "-help", "--helpshort", "-?")


def run(main: Callable[[Sequence[str]], int | None], command: Command) -> None:
    """Parses the flags, calls ``main(argv)`` and exits with its status.

    Args:
      main: takes the positional arguments (the program's name first) and returns an exit status,
        ``None`` for 0.
      command: the binary, for its help and its messages.

    Raises:
      SystemExit: always; status 0 after ``--help`` and the like, or if there are no arguments;
        status 2 with one line on stderr for bad usage, and for any ``ValueError`` or ``OSError``
        from ``main``, which in this project mean unusable input. ``--verbosity=1`` shows the
        traceback instead.
    """
    flags.FLAGS.set_gnu_getopt(True)
    answer = _answer(command, sys.argv)
    if answer is not None:
        print(answer)
        raise SystemExit(0)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            fail(_unknown_flag(command, error.flagname))
        # Parsing the flags runs the config file and checks its overrides, so any error is the
        # user's.
        except Exception as error:
            fail(_with_nearest_value(describe(error)))

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            # Libraries report each of their steps at the level INFO.
            logging.set_verbosity(logging.WARNING)
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            if flags.FLAGS.verbosity >= 1:
                raise
            fail(describe(error))

    app.run(guarded, flags_parser=parse)


def describe(error: BaseException) -> str:
    """Returns the error as one line."""
    text = str(error)
    if isinstance(error, KeyError | AttributeError):
        text = f"unknown key {error}"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        text = f"{os.fsdecode(error.filename)}: {reason}"
    return one_line(text) or type(error).__name__


def fail(message: str) -> NoReturn:
    """Prints one line on stderr and exits with status 2."""
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def folder(flag: str, path: str | None, hint: str) -> str:
    """Returns the folder that a flag names, which need not exist yet.

    Args:
      flag: name of the flag.
      path: its value.
      hint: a value that would do.

    Raises:
      ValueError: if there is no value, or it is a file.
    """
    if not path:
        raise ValueError(f"--{flag} is missing: name a folder for the results, as --{flag}={hint}")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"--{flag}={path} is a file; a folder is wanted, as --{flag}={hint}")
    return path


def _answer(command: Command, argv: Sequence[str]) -> str | None:
    """Returns what a command line asks to print, or None if it asks for the work of the binary."""
    program = command.script
    if argv[0].endswith(".py"):
        is_module = pathlib.PurePath(argv[0]).parent.name == "kernsym_jax"
        program = f"python -m kernsym_jax.{command.name}" if is_module else f"python {argv[0]}"
    words = list(argv[1:])
    if not words:
        return explain(command, program)
    for index, word in enumerate(words):
        if word == "--":
            return None
        if word in _HELP:
            return explain(command, program)
        if word == "--helpfull":
            return f"{explain(command, program)}\n\nAll flags\n{flags.FLAGS.get_help()}"
        if word == "--version":
            return _version()
        flag, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-"):
            continue
        if not equals:
            value = words[index + 1] if index + 1 < len(words) else ""
        if flag == "completion":
            try:
                return complete(command, value).rstrip()
            except ValueError as error:
                fail(str(error))
        if value == "list" and flag in (choices := command.choices()):
            return listing(choices[flag])
    return None


def _version() -> str:
    import kernsym_jax

    return f"kernsym-jax {kernsym_jax.__version__}"


def _unknown_flag(command: Command, name: str) -> str:
    if name.startswith("config."):
        return f"--{name} has no config to change; --config=NAME comes first"
    known = [flag.name for _, flag in command.flags()] + ["help", "version", "completion"]
    hint = nearest(name.removeprefix("--"), known, before="--")
    return f"unknown flag --{name}{hint or '; --help lists the flags'}"


def _with_nearest_value(message: str) -> str:
    """Returns absl's message on a wrong value of an enumeration with the nearest right one."""
    found = re.fullmatch(r"flag --(\w+)=(\S*): value should be one of <(.*)>", message)
    if found is None:
        return message
    name, value, known = found[1], found[2], found[3].split("|")
    return f"--{name} is {', '.join(known)}; got {value!r}{nearest(value, known)}"
