"""The files of an evaluation: the run that it reads, and what it writes."""

import pathlib
from collections.abc import Mapping
from typing import Any

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
    # Only here, since training evaluates too.
    from kernsym_jax import run_directory

    path = pathlib.Path(workdir, run_directory.CONFIG)
    config = run_directory.read_json(path)
    try:
        model, photos = {"name": "", **config["model"]}, {**config["data"]}
        for name in ("mean", "std"):
            photos[name] = tuple(map(float, photos[name]))
        photos["source"] = str(photos["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the config of a run ({error!r})") from error
    return model, photos


def write_results(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes an evaluation as JSON, and the map of its shifts beside it as SVG.

    Args:
      results: from `evaluate`.
      path: of the JSON file; its folder is made if it is not there.
    """
    from kernsym_jax import run_directory

    path.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(path, results)
    if "shift_consistency" in results:
        title = f"{pathlib.Path(results['settings']['weights']).name}, {results['images']} images"
        write_map(results["shift_consistency"], title, path.with_suffix(".svg"))
