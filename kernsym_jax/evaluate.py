"""Measures accuracy and consistency under shifts and flips, of a run or of any weights.

kernsym-evaluate --workdir=runs/digits --shift=3 --shift_mode=circular
kernsym-evaluate net.onnx --data=folder:images
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from kernsym_jax import cli, run_directory

_WORKDIR = flags.DEFINE_string("workdir", None, "A run directory; consistency.json goes there.")
_FOREIGN: dict[str, Any] = {
    "name": flags.DEFINE_string("model", None, "A network of this package, for --weights."),
    "weights": flags.DEFINE_string("weights", None, "A file of trained weights."),
    "mean": flags.DEFINE_list(
        "mean", None, "Mean of the training images per channel; white is 1. For ONNX optional."
    ),
    "std": flags.DEFINE_list("std", None, "Standard deviation of the same images."),
}
_VARIANT: tuple[Any, ...] = (
    flags.DEFINE_string("padding", None, "With --model: its padding."),
    flags.DEFINE_string("downsample", None, "With --model: its downsampling."),
    flags.DEFINE_integer(
        "num_classes", None, "With --model: its outputs; those of the data by default."
    ),
)
_DATA = flags.DEFINE_string("data", None, "Source of test images; the run's own by default.")
_VOID = flags.DEFINE_multi_integer(
    "void", None, "A value of masks that marks pixels without a label."
)
_EMA = flags.DEFINE_bool("ema", False, "With --workdir: evaluate the moving averages.")
_SHIFT = flags.DEFINE_string(
    "shift", "3", "Largest shift in pixels, or smallest,largest; 0 for none."
)
_MODE = flags.DEFINE_string("shift_mode", "circular", "circular, zero or crop.")
_DRAWS = flags.DEFINE_integer("shift_draws", 0, "Random pairs of shifts; 0 for the full grid.")
_PER = flags.DEFINE_string("shift_per", "image", "Draw for each image, or for each batch.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws.")
_SIZE = flags.DEFINE_string("input_size", None, "Pixels of the network's input; or HxW.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images per pass.", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "The largest number of images.", lower_bound=1)
_TRUSTED = flags.DEFINE_bool("trusted", False, "Read the weights without limits on their reader.")
_OUT = flags.DEFINE_string("out", None, "The JSON file; the map goes beside it as SVG.")


def _choices() -> dict[str, dict[str, str]]:
    from kernsym_jax import models

    shifts = {"shift_mode": ("circular", "zero", "crop"), "shift_per": ("image", "batch")}
    return models.known_names() | {flag: dict.fromkeys(names, "") for flag, names in shifts.items()}


COMMAND = cli.Command(
    name="evaluate",
    summary="Measures accuracy, and how often the answer survives shifts, flips and turns of the "
    "image: of a run, of an ONNX file or of weights in any format.",
    usage=(
        "--workdir=DIR [flags]",
        "FILE.onnx --data=SOURCE [flags]",
        "--model=NAME --weights=FILE --data=SOURCE --mean=… --std=… [flags]",
    ),
    groups={
        "The network": "workdir=DIR ema model=NAME weights=FILE padding=NAME downsample=NAME "
        "num_classes trusted",
        "The images": "data=SOURCE mean=A,B,C std=A,B,C void=VALUE input_size=N|HxW limit "
        "batch_size",
        "The shifts": "shift=N|A,B shift_mode=NAME shift_draws shift_per=NAME seed",
        "The results": "out=FILE",
    },
    examples={
        "--workdir=runs/digits": "A run, on the test images of its data",
        "net.onnx --data=folder:images --shift=8 --shift_mode=crop": (
            "Any ONNX network, on class folders of images (needs onnxruntime)"
        ),
        "--model=cifar_resnet20 --weights=resnet20.th --data=folder:cifar10.tar.gz "
        "--mean=.485,.456,.406 --std=.229,.224,.225": "Weights of a network of this package",
    },
    choices=_choices,
)


def main(argv: Sequence[str]) -> None:
    """Evaluates one network, prints the table and writes the files."""
    from kernsym_jax import evaluation

    file = _onnx_file(argv[1:])
    size = cli.input_size(_SIZE.value)
    if file is None:
        model, weights, photos = _network()
    else:
        network, photos = evaluation.OnnxNetwork(file), {}
        size = network.input_size(size)
        photos |= {name: _FOREIGN[name].value for name in ("mean", "std")}
    photos |= {"source": _DATA.value} if _DATA.value else {}
    photos |= {"void": tuple(_VOID.value)} if _VOID.value else {}
    shifts = evaluation.parse_shifts(
        _SHIFT.value,
        _MODE.value,
        draws=_DRAWS.value,
        per=_PER.value,
        seed=_SEED.value,
        window=0 if isinstance(size, tuple) else size or photos.get("crop_size", 0),
    )
    wishes: dict[str, Any] = {"input_size": size, "limit": _LIMIT.value}
    if file is None:
        wishes |= {"ema": _EMA.value, "trusted": _TRUSTED.value}
        subject = evaluation.open_subject(model, weights, photos, shifts, **wishes)
    else:
        subject = evaluation.open_onnx(network, photos, shifts, **wishes)
    results = evaluation.evaluate(subject, shifts, batch_size=_BATCH.value)
    # Beside an ONNX file, where `analyze` looks for it.
    folder = pathlib.Path(_WORKDIR.value or "") if file is None else file.parent
    out = pathlib.Path(_OUT.value or folder / run_directory.CONSISTENCY)
    evaluation.write_results(results, out)
    evaluation.write_picture(subject, shifts, out.with_suffix(".png"))
    evaluation.print_consistency(results)
    if not results["settings"].get("normalized", True):
        values = "0 to 255" if network.dtype == "uint8" else "0 to 1, not normalised"
        print(f"the network got images of values {values}")
    print(f"written: {out}")


def _onnx_file(paths: Sequence[str]) -> pathlib.Path | None:
    """Returns the ONNX file that the arguments name, or None if they name none."""
    if not paths:
        return None
    if len(paths) > 1 or not paths[0].lower().endswith(".onnx"):
        raise ValueError(
            f"unexpected argument {paths[-1]!r}; a run directory is --workdir={paths[-1]}, and the "
            "name of an ONNX file ends in .onnx"
        )
    others: tuple[Any, ...] = (_WORKDIR, _FOREIGN["name"], _FOREIGN["weights"], *_VARIANT)
    # Of the two switches, False is the default.
    given = [flag.name for flag in others if flag.value is not None]
    given += [flag.name for flag in (_EMA, _TRUSTED) if flag.value]
    if given:
        raise ValueError(f"--{given[0]} does not go with {paths[0]}")
    if not _DATA.value:
        raise ValueError(f"{paths[0]}: give its test images too, as --data")
    return pathlib.Path(paths[0])


def _network() -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Returns arguments of `models.create`, the source of the weights, and settings of the data."""
    from kernsym_jax import evaluation

    given = [flag for flag in (*_FOREIGN.values(), *_VARIANT) if flag.value is not None]
    if _WORKDIR.value:
        if given:
            raise ValueError(f"--{given[0].name} goes with --weights, not with --workdir")
        model, photos = evaluation.read_run(_WORKDIR.value)
        return model, _WORKDIR.value, photos
    missing = [f"--{flag.name}" for flag in (*_FOREIGN.values(), _DATA) if not flag.value]
    if missing:
        raise ValueError(f"give --workdir, or for foreign weights also {', '.join(missing)}")
    name, weights, mean, std = (flag.value for flag in _FOREIGN.values())
    variant = {flag.name: flag.value for flag in _VARIANT if flag.value is not None}
    return {"name": name, **variant}, weights, {"mean": mean, "std": std}


def run() -> None:
    """The console script."""
    cli.run(main, COMMAND)


if __name__ == "__main__":
    run()
