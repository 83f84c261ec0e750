"""The files of an evaluation: the run that it reads, and what it writes."""

import pathlib
from collections.abc import Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.evaluation.figure import write_map


def read_run(workdir: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run directory tells about its network and its images.

    Args:
      workdir: the run directory.

    Returns:
      The keys under ``config.model``, which are arguments of `models.create`, and those under
      ``config.data``.

    Raises:
      FileNotFoundError: if it is no run directory.
      ValueError: if its config is damaged.
    """
    needed = ("data.source", "data.mean", "data.std")
    config = run_directory.read_config(pathlib.Path(workdir), *needed)
    photos = {**config["data"]}
    for name in ("mean", "std"):
        photos[name] = tuple(map(float, photos[name]))
    return config["model"], photos


def write_results(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes an evaluation as JSON, and the map of its shifts beside it as SVG.

    Args:
      results: from `evaluate`.
      path: of the JSON file; its folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(path, results)
    if "shift_consistency" in results:
        title = f"{pathlib.Path(results['settings']['weights']).name}, {results['images']} images"
        write_map(results["shift_consistency"], title, path.with_suffix(".svg"))
