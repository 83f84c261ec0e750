"""Studies from their files."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping

import ml_collections

from kernsym_jax.studies.network import runs_below
from kernsym_jax.studies.study import Study

SIZES = ("smoke", "cpu", "full")


class UnknownSize(ValueError):
    """A study has no such size."""


def pick_size(size: str, sizes: Mapping[str, Callable[[], Study]]) -> Study:
    """The study in the wanted size.

    Args:
      size: its name.
      sizes: name -> function that makes it.

    Returns:
      The study.

    Raises:
      UnknownSize: if there is no such size.
    """
    if size not in sizes:
        raise UnknownSize(f"unknown size {size!r}; the study has {', '.join(sizes)}")
    return sizes[size]()


def load_study(
    path: str | pathlib.Path,
    size: str,
    data: str | None = None,
    runs: str | pathlib.Path | None = None,
) -> Study:
    """Loads a study from its file.

    Args:
      path: a Python file with ``get_study(size)``.
      size: of the study.
      data: a source that takes the place of the base config's own, or of networks, the folder of
        their files; ``None`` to keep that.
      runs: the folder of the run directories; ``None`` for ``runs`` in the study's own. To a study
        of networks the finished runs in it are added.

    Returns:
      The study.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no study.
      UnknownSize: if it has no such size.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"kernsym_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a study is a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # The file is the user's code: whatever it raises is theirs to mend.
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_study", None)):
        raise ValueError(f"{path} has no get_study(size)")
    study: Study = module.get_study(size)
    if runs is not None:
        study = dataclasses.replace(study, runs=pathlib.Path(runs))
    if study.networks:
        own = {} if study.runs is None else runs_below(study.runs)
        files = study.files if data is None else pathlib.Path(data)
        return dataclasses.replace(study, networks={**study.networks, **own}, files=files)
    if data is None:
        return study
    base = ml_collections.ConfigDict(study.base)
    base.data.source = data
    return dataclasses.replace(study, base=base, data=data)
