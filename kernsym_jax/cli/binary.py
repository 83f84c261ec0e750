"""How a binary starts and ends, what it says about itself, and how it prints."""

import contextlib
import dataclasses
import difflib
import gc
import os
import pathlib
import re
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

import kernsym_jax

SHELLS = ("bash", "zsh")
_WIDEST, _FLAG_COLUMN = 100, 27
_GENERAL = {
    "--help, -h": "Show this text; --helpfull adds the flags of the libraries.",
    "--version": "Show the version.",
    "--completion=bash|zsh": "Print the script with which the shell completes this command.",
    "--verbosity=1": "Show the traceback of an error.",
}

PIPE_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""

BAD_INPUT = 2
PREEMPTED = 75

_HELP = ("--help", "-h", "-help", "--helpshort", "-?")


@dataclasses.dataclass(frozen=True)
class Command:
    """A binary as its user meets it.

    Attributes:
      name: the last part of its module's name, such as ``train``.
      summary: what it does, in a sentence or two.
      usage: the forms of its arguments, such as ``[flags] SOURCE...``.
      groups: heading -> the flags below it, each as ``name`` or ``name=PLACEHOLDER``, separated by
        spaces. FILE or DIR in a placeholder makes shells complete paths.
      examples: arguments -> what they are an example of.
      choices: function that returns flag -> names that the flag takes -> a line on each.
        ``--flag=list`` prints them.
      more_flags: function that returns further flags for shells to complete.
    """

    name: str
    summary: str
    usage: Sequence[str]
    groups: Mapping[str, str]
    examples: Mapping[str, str]
    choices: Callable[[], Mapping[str, Mapping[str, str]]]
    more_flags: Callable[[], Iterable[str]] = tuple

    @property
    def script(self) -> str:
        """The console script."""
        return f"kernsym-{self.name}"

    def flags(self) -> Iterator[tuple[str, "_Flag"]]:
        """Yields heading and flag, in the order of the help."""
        for heading, entries in self.groups.items():
            for entry in entries.split():
                name, _, placeholder = entry.partition("=")
                yield heading, _Flag(flags.FLAGS[name], placeholder)


class _Flag:
    """One flag with its form on the command line."""

    def __init__(self, flag: flags.Flag, placeholder: str):
        # absl writes the values in front of the text, and tells how to repeat a flag behind it.
        text = re.sub(r"^<[^>]*>: ", "", flag.help or "")
        self.name, self.help = flag.name, re.sub(r";\s+repeat this option.*", "", text, flags=re.S)
        self.values: Sequence[str] = getattr(flag.parser, "enum_values", ())
        number = isinstance(flag.parser, flags.IntegerParser)
        self.placeholder = placeholder or "|".join(self.values) or ("N" if number else "TEXT")
        self.is_switch = bool(flag.boolean)
        if flag.default not in (None, False, ""):
            self.help += f" Default: {flag.default}."

    @property
    def form(self) -> str:
        """``--name=PLACEHOLDER``, or ``--name`` for a switch."""
        return f"--{self.name}" if self.is_switch else f"--{self.name}={self.placeholder}"

    @property
    def takes_path(self) -> bool:
        """Whether its value is a file or a folder."""
        return any(word in self.placeholder for word in ("FILE", "DIR"))


def explain(command: Command, program: str) -> str:
    """Returns the text of ``--help``.

    Args:
      command: the binary.
      program: how the user calls it, ``kernsym-train`` or ``python -m kernsym_jax.train``.
    """
    width = min(_WIDEST, max(40, shutil.get_terminal_size((_WIDEST, 24)).columns))
    lines = [textwrap.fill(command.summary, width), ""]
    lines += [
        f"{'Usage: ' if not n else '       '}{program} {form}"
        for n, form in enumerate(command.usage)
    ]
    heading = None
    for group, flag in command.flags():
        if group != heading:
            lines += ["", group]
            heading = group
        lines += _entry(flag.form, flag.help, width)
    lines += ["", "General"]
    for form, text in _GENERAL.items():
        lines += _entry(form, text, width)
    lines += ["", "Examples"]
    for arguments, text in command.examples.items():
        lines += [*textwrap.wrap(text, width - 4, initial_indent="  # ", subsequent_indent="  # ")]
        lines += [f"  {program} {arguments}"]
    return "\n".join(lines)


def listing(names: Mapping[str, str]) -> str:
    """Returns names with a line on each, in two columns."""
    column = max(map(len, names), default=0)
    return "\n".join(f"{name:{column}}  {text}".rstrip() for name, text in names.items())


def complete(command: Command, shell: str) -> str:
    """Returns the script with which a shell completes a console script.

    Args:
      command: the binary.
      shell: ``bash`` or ``zsh``.

    Raises:
      ValueError: for another shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"--completion is {' or '.join(SHELLS)}; got {shell!r}")
    choices = {name: tuple(names) for name, names in command.choices().items()}
    own = {flag.name: flag for _, flag in command.flags()}
    for name, flag in own.items():
        choices.setdefault(name, tuple(flag.values))
    return (_bash if shell == "bash" else _zsh)(command, own, choices)


_BASH = """\
# Lets bash complete {script}: source this, or save it as
# ~/.local/share/bash-completion/completions/{script}
_{function}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD - 1]}}
  # bash splits --flag=value at the equals sign.
  if [[ $word == "=" ]]; then
    word=""
  elif [[ $flag == "=" ]]; then
    flag=${{COMP_WORDS[COMP_CWORD - 2]}}
  fi
  COMPREPLY=()
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W '{flags}' -- "$word"))
    if [[ ${{COMPREPLY[0]-}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
    return
  fi
  case $flag in
{cases}
  esac
}}
# What the function leaves open, readline completes with the names of files.
complete -o default -F _{function} {script}
"""


def _bash(command: Command, own: Mapping[str, _Flag], choices: Mapping[str, Sequence[str]]) -> str:
    words = [f"--{name}" if flag.is_switch else f"--{name}=" for name, flag in own.items()]
    words += [f"--{key}=" for key in command.more_flags()]
    cases = [
        f"    --{name}) COMPREPLY=($(compgen -W '{' '.join(values)}' -- \"$word\")) ;;"
        for name, values in choices.items()
        if values
    ]
    return _BASH.format(
        script=command.script,
        function=command.script.replace("-", "_"),
        flags=" ".join([*words, "--help", "--version", "--completion="]),
        cases="\n".join(cases) or "    *) ;;",
    )


_ZSH = """\
#compdef {script}
# Lets zsh complete {script}: save this as _{script} in a folder of $fpath,
# or source it after compinit.
{helpers}_{script}() {{
  _arguments \\
{specs}
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _{script} "$@"
else
  compdef _{script} {script}
fi
"""


def _zsh(command: Command, own: Mapping[str, _Flag], choices: Mapping[str, Sequence[str]]) -> str:
    specs, helpers = [], []
    for name, flag in own.items():
        text = _zsh_text(flag.help)
        if flag.is_switch:
            specs.append(f"'--{name}[{text}]'")
            continue
        values, action = " ".join(choices[name]), "_files" if flag.takes_path else " "
        if values and flag.takes_path:
            action = f"_{command.script}-{name}"
            helpers.append(f"{action}() {{\n  compadd -- {values}\n  _files\n}}\n")
        elif values:
            action = f"({values})"
        specs.append(f"'--{name}=[{text}]:{name}:{action}'")
    specs += [f"'--{key}=[A key of the config]:value: '" for key in command.more_flags()]
    specs += ["'--help[Show the help]'", "'--version[Show the version]'"]
    specs += [f"'--completion=[Print this script]:shell:({' '.join(SHELLS)})'", "'*:file:_files'"]
    return _ZSH.format(
        script=command.script,
        helpers="".join(helpers),
        specs=" \\\n".join(f"    {spec}" for spec in specs),
    )


def _zsh_text(text: str) -> str:
    """Returns the text without the characters that mean something to ``_arguments``."""
    plain = text.replace("'", "’").replace("[", "(").replace("]", ")")
    return plain.replace("\\", "/").replace(":", "\\:")


def _entry(form: str, text: str, width: int) -> list[str]:
    """Returns the lines of a flag: its form on the left, its meaning on the right."""
    indent = " " * _FLAG_COLUMN
    lines = textwrap.wrap(text, width - _FLAG_COLUMN, break_on_hyphens=False) or [""]
    left = f"  {form}"
    if len(left) < _FLAG_COLUMN:
        return [left.ljust(_FLAG_COLUMN) + lines[0], *(indent + line for line in lines[1:])]
    return [left, *(indent + line for line in lines)]


def run(main: Callable[[Sequence[str]], int | None], command: Command) -> None:
    """Parses the flags, calls ``main(argv)`` and exits with its status.

    Args:
      main: takes the program's name and the arguments; returns an exit status, ``None`` for 0.
      command: the binary, for its help and its messages.

    Raises:
      SystemExit: always; status 0 after ``--help`` and the like, or if there are no arguments;
        status 2 with one line on stderr for bad usage, and for a ``ValueError`` or an ``OSError``
        from ``main``, which mean unusable input; ``--verbosity=1`` shows the traceback instead.
    """
    gc.set_threshold(20_000)  # importing and tracing make many objects and little garbage
    flags.FLAGS.set_gnu_getopt(True)
    answer = _answer(command, sys.argv)
    if answer is not None:
        with _reader_may_leave():
            print(answer)
        raise SystemExit(0)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            fail(_unknown_flag(command, error.flagname))
        # Any error is the user's: parsing runs the config file and checks its overrides.
        except Exception as error:
            fail(_with_nearest_value(describe(error)))

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:  # libraries report each of their steps at INFO
            logging.set_verbosity(logging.WARNING)
        try:
            with _reader_may_leave():
                return main(argv)
        except (ValueError, OSError) as error:
            if flags.FLAGS.verbosity >= 1:
                raise
            fail(describe(error))

    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Ends as other tools do once the reader of the output, such as ``head``, has gone."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)
        if not output.poll(0):
            raise  # another pipe has broken, such as that of a process which reads files
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise SystemExit(128 + signal.SIGPIPE) from None


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
            return f"kernsym-jax {kernsym_jax.__version__}"
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
        if value == "list":
            choices = command.choices()
            if flag in choices:
                return listing(choices[flag])
    return None


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


def console() -> Any:
    """Returns the rich console on which every binary prints its tables."""
    from rich.console import Console

    terminal = Console()
    # A pipe has no width of its own, and its reader wants every row on one line.
    return terminal if terminal.is_terminal else Console(width=PIPE_WIDTH)


def printable(text: str) -> str:
    """Returns the text with every character that controls a terminal replaced by its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Returns the text without line breaks, and `printable`."""
    return printable(" ".join(text.split()))


def path_name(path: str | os.PathLike) -> str:
    """Returns a path as valid Unicode text, with escapes for other bytes in its name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def nearest(word: str, known: Iterable[str], *, before: str = "") -> str:
    """Returns the end of an error message that offers the known word closest to an unknown one.

    Args:
      word: the unknown word.
      known: the words that would be right.
      before: text in front of the offered word, such as ``--``.

    Returns:
      ``"; did you mean 'digits'?"``, or nothing if no known word is close.
    """
    by_letters = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), by_letters, n=1)
    return f"; did you mean {before + by_letters[close[0]]!r}?" if close else ""


def input_size(text: str | None) -> int | tuple[int, int] | None:
    """Reads a flag that gives the pixels of images, one number or two as ``HxW``.

    Raises:
      ValueError: if it is neither.
    """
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)?)?", text or ""):
        raise ValueError(f"--input_size is one number, or two as HxW; got {text!r}")
    sizes = [int(number) for number in (text or "").split("x") if number]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else sizes[0] if sizes else None
