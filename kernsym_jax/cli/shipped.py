"""Config files: those that come with the package, by name, and the flag that reads one."""

import ast
import importlib.machinery
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

from absl import flags

from kernsym_jax.cli.binary import nearest, one_line

CONFIGS, STUDIES = "config", "study"
"""The two kinds of files that come with the package, named as the flags that take them."""

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_FOLDERS = {CONFIGS: "configs", STUDIES: "configs/studies"}


def list_shipped(kind: str) -> dict[str, str]:
    """Returns the name of each config or study of the package, with the first line about it.

    Args:
      kind: ``CONFIGS`` or ``STUDIES``.
    """
    return {name: _first_line(path) for name, path in _shipped(kind).items()}


def find_shipped(kind: str, text: str) -> pathlib.Path:
    """Finds a config or study by its file, or by its name in the package.

    Args:
      kind: ``CONFIGS`` or ``STUDIES``.
      text: a path, or a name such as ``digits``.

    Returns:
      The path as it is given, or that of the file in the package.

    Raises:
      FileNotFoundError: if it is neither; the message offers the nearest name.
    """
    path, known = pathlib.Path(text), _shipped(kind)
    if path.is_file():
        return path
    if text in known:
        return known[text]
    raise FileNotFoundError(
        f"{text}: no such {kind}{nearest(path.stem, known)} (--{kind}=list lists the names)"
    )


def _shipped(kind: str) -> dict[str, pathlib.Path]:
    """Returns name -> file: inside an installed package, or beside the package in a checkout."""
    within, beside = _PACKAGE / _FOLDERS[kind], _PACKAGE.parent / _FOLDERS[kind]
    is_checkout = (_PACKAGE.parent / "setup.py").is_file()
    folder = beside if is_checkout and not within.is_dir() else within
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"}


def _first_line(path: pathlib.Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


class ConfigFile(flags.ArgumentParser):
    """Reads the flag of a config: a Python file with ``get_config()``, or a name in the package."""

    def parse(self, argument: Any) -> Any:
        """Runs the file and returns the config.

        Args:
          argument: a path or a name; ``:word`` behind it is passed on to ``get_config``.

        Raises:
          FileNotFoundError: if there is no such config.
          flags.Error: if the file is not a config, or the command line sets a key in a part that
            the config does not have.
        """
        place, colon, word = argument.partition(":")
        path = find_shipped(CONFIGS, place)
        loader = importlib.machinery.SourceFileLoader("kernsym_config", str(path))
        module = types.ModuleType(loader.name)
        module.__file__ = str(path)
        # Classes that the file defines look for their module there.
        sys.modules[loader.name] = module
        try:
            loader.exec_module(module)
            if not callable(getattr(module, "get_config", None)):
                raise flags.Error("not a config, it has no get_config()")
            config = module.get_config(word) if colon else module.get_config()
        # The file is the user's code and may raise anything.
        except Exception as error:
            raise flags.Error(_blame(path, error)) from error
        if config is None:
            raise flags.Error(f"{path}: get_config() returns None")
        _check_overrides(config, sys.argv[1:])
        return config

    def flag_type(self) -> str:
        """Returns the type that absl's own help shows."""
        return "config"


def _blame(path: pathlib.Path, error: Exception) -> str:
    if isinstance(error, flags.Error):
        return f"{path}: {error}"
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f", line {lines[-1]}" if lines else ""
    return f"{path}{where}: {type(error).__name__}: {one_line(str(error))}"


def _check_overrides(config: Any, arguments: list[str]) -> None:
    """Raises an error if a flag ``--config.a.b`` has no part ``a`` to go to.

    `training.config` checks the last key, since networks have keys of their own.
    """
    for argument in arguments:
        found = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        part, known = config, "config"
        for key in found[1].split(".")[:-1] if found else ():
            keys = list(part) if isinstance(part, Mapping) or hasattr(part, "keys") else []
            if key not in keys:
                raise flags.Error(f"unknown config key {known}.{key}{nearest(key, keys)}")
            part, known = part[key], f"{known}.{key}"
