"""Finds the layers that apply padding unevenly, and the input size at which none does.

kernsym-audit net.onnx --input_size=224
(or net.keras, net.h5, net.tflite, --model=resnet50, or a run directory)
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kernsym_jax import cli, run_directory

_MODEL = flags.DEFINE_string("model", None, "A network of this package, instead of a file.")
_PADDING = flags.DEFINE_string("padding", None, "With --model: its padding.")
_DOWNSAMPLE = flags.DEFINE_string("downsample", None, "With --model: its downsampling.")
_CLASSES = flags.DEFINE_integer("num_classes", None, "With --model: its number of outputs.")
_SIZE = flags.DEFINE_string("input_size", None, "Pixels of the images: one number, or two as HxW.")
_TRUSTED = flags.DEFINE_bool("trusted", False, "Read the file without limits on its reader.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def _choices() -> dict[str, dict[str, str]]:
    from kernsym_jax import models

    return models.known_names()


COMMAND = cli.Command(
    name="audit",
    summary="Finds the layers that apply padding unevenly, and the nearest input size at which "
    "none does.",
    usage=("FILE|DIR [flags]", "--model=NAME [flags]"),
    groups={
        "The network": "model=NAME padding=NAME downsample=NAME num_classes trusted",
        "The audit": "input_size=N|HxW json",
    },
    examples={
        "net.onnx --input_size=224": "An ONNX, Keras or TensorFlow Lite file",
        "--model=resnet50 --padding=same": "A network of this package; --model=list shows them",
        "runs/digits --json": "A run directory, for another program",
    },
    choices=_choices,
)


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
    """Returns the network's name, the input size given or None, rows, and an audit by size."""
    from kernsym_jax import geometry

    if len(paths) + bool(_MODEL.value) != 1:
        raise ValueError(
            "name one ONNX, Keras or TensorFlow Lite file, one run directory or one --model"
        )
    size: Any = cli.input_size(_SIZE.value)
    flagged: tuple[Any, ...] = (_PADDING, _DOWNSAMPLE, _CLASSES)
    fields = {flag.name: flag.value for flag in flagged if flag.value is not None}
    name = paths[0] if paths else str(_MODEL.value)
    if paths and fields:
        raise ValueError(f"--{next(iter(fields))} goes with --model, not with {name}")
    if paths and not pathlib.Path(name).is_dir():
        rows_of_file = geometry.FileAudits(name, trusted=_TRUSTED.value)
        try:
            return name, size, rows_of_file(size), rows_of_file
        except geometry.NoGraphError as error:
            raise ValueError(f"{error}; {_model_of(name)}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: no such file{_meant_model(name)}") from error
    from kernsym_jax import models

    fields = {"name": name, **fields}
    if paths:
        fields = run_directory.read_config(pathlib.Path(name))["model"]

    def rows_at(size: Any) -> list[Any]:
        network = models.create(**fields)
        with models.naming_failures(network):
            return geometry.audit_module(network, size)

    if paths and not size:
        return name, size, geometry.read_rows(name), rows_at
    size = size or models.default_input_size(name)
    return name, size, rows_at(size), rows_at


def _model_of(path: str) -> str:
    """Returns how to audit the network that a file of weights belongs to."""
    from kernsym_jax import models, weights

    try:
        arrays = weights.read_arrays(path, trusted=_TRUSTED.value)
    except ValueError:
        arrays = {}
    fitting = models.recognise({array: stored.shape for array, stored in arrays.items()})
    if fitting:
        return f"these are weights of {fitting[0].name}: --model={fitting[0].name} audits it"
    return "for weights alone name the network with --model; --model=list shows those known"


def _meant_model(name: str) -> str:
    """Returns a hint if the user may have meant a network of this package."""
    from kernsym_jax import models

    if name in models.NAMES:
        return f"; for the network of this package give --model={name}"
    return "" if "." in name or "/" in name else cli.nearest(name, models.NAMES, before="--model=")


def run() -> None:
    """The console script."""
    cli.run(main, COMMAND)


if __name__ == "__main__":
    run()
