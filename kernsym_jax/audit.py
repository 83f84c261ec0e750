"""Tells where a network applies its padding unevenly, and at which input size it would not.

python -m kernsym_jax.audit net.onnx --input_size=224     (or --model=resnet50, or a run directory)
"""

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kernsym_jax import command_line

_MODEL = flags.DEFINE_string("model", None, "A network of this package, instead of a file.")
_PADDING = flags.DEFINE_string("padding", None, "With --model: its padding.")
_DOWNSAMPLE = flags.DEFINE_string("downsample", None, "With --model: how it takes its steps.")
_CLASSES = flags.DEFINE_integer("num_classes", None, "With --model: its number of outputs.")
_SIZE = flags.DEFINE_string("input_size", None, "Pixels of the images: one number, or two as HxW.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(argv: Sequence[str]) -> None:
    """Audits one network and prints its layers and the verdict."""
    from kernsym_jax import geometry

    name, size, rows, rows_at = _network(argv[1:])
    advice = geometry.advise(rows, rows_at, size)
    if _JSON.value:
        print(geometry.audit_json(name, rows, advice))
    else:
        geometry.print_audit(name, rows, advice)


def _network(paths: Sequence[str]) -> tuple[str, Any, list[Any], Callable[[Any], list[Any]]]:
    """The network's name, input size if it was given, rows, and its audit at another size."""
    from kernsym_jax import geometry

    if len(paths) + bool(_MODEL.value) != 1:
        raise ValueError("name one ONNX file, one run directory or one --model")
    fields = {f.name: f.value for f in (_PADDING, _DOWNSAMPLE, _CLASSES) if f.value is not None}
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)?)?", _SIZE.value or ""):
        raise ValueError(f"--input_size is one number, or two as HxW; got {_SIZE.value!r}")
    sizes = tuple(map(int, re.findall(r"\d+", _SIZE.value or "")))
    size = sizes[0] if len(sizes) == 1 else sizes or None
    if _MODEL.value:
        from kernsym_jax import models

        rows_at = functools.partial(_of_model, {"name": _MODEL.value, **fields})
        size = size or models.default_input_size(_MODEL.value)
        return _MODEL.value, size, rows_at(size), rows_at
    if fields:
        raise ValueError(f"--{next(iter(fields))} goes with --model, not with {paths[0]}")
    path = pathlib.Path(paths[0])
    if not path.is_dir():
        rows_at = functools.partial(geometry.audit_onnx, path)
        return paths[0], size, rows_at(size), rows_at
    from kernsym_jax.training import run_directory

    model = run_directory.read_json(path / run_directory.CONFIG).get("model", {})
    rows_at = functools.partial(_of_model, {"name": f"of {path}", **model})
    rows = rows_at(size) if size else geometry.read_rows(path / run_directory.LAYERS)
    return paths[0], size, rows, rows_at


def _of_model(fields: dict[str, Any], size: int | tuple[int, ...]) -> list[Any]:
    from kernsym_jax import geometry, models

    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return geometry.audit_module(models.create(**fields), size)


def run() -> None:
    """The console script."""
    command_line.run(main)


if __name__ == "__main__":
    run()
