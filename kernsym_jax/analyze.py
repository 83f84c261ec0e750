"""Measures the kernels of trained networks and writes a report.

kernsym-analyze runs/digits --out=report

Several networks are compared layer by layer; checkpoints of one run give a trajectory.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from kernsym_jax import cli
from kernsym_jax.cli import one_line

_LAYOUT = flags.DEFINE_enum(
    "layout", None, ["HWIO", "OIHW", "OHWI"], "Axes of kernels, for files that do not tell them."
)
_WHICH = flags.DEFINE_enum(
    "which", None, ["ema", "raw"], "The moving average of the weights in a file, or the weights."
)
_FOLD = flags.DEFINE_bool("fold_batchnorm", False, "Fold BatchNorm into the kernels before it.")
_MODEL = flags.DEFINE_string(
    "model", None, "The model of ours with these weights; it adds strides and paddings."
)
_PADDING = flags.DEFINE_string("padding", "zero", "With --model: its padding.")
_DOWNSAMPLE = flags.DEFINE_string("downsample", "stride", "With --model: its downsampling.")
_INPUT_SIZE = flags.DEFINE_string(
    "input_size", None, "Pixels of the images for the audit: one number, or two as HxW."
)
_TRUSTED = flags.DEFINE_bool("trusted", False, "Read the sources without limits on the reader.")
_OUT = flags.DEFINE_string("out", "report", "The folder for the report; created if it is missing.")
_PARQUET = flags.DEFINE_bool("parquet", False, "Also write layers.parquet (needs pyarrow).")


def _choices() -> dict[str, dict[str, str]]:
    from kernsym_jax import models

    return models.known_names()


COMMAND = cli.Command(
    name="analyze",
    summary="Measures the symmetry of the kernels of trained networks, from files of any framework "
    "or runs, and writes a report. Several networks are compared layer by layer; checkpoints of "
    "one run give a trajectory.",
    usage=("[flags] SOURCE...",),
    groups={
        "The report": "out=DIR parquet",
        "Reading the sources": "layout which fold_batchnorm trusted",
        "Strides and paddings that a file does not keep": (
            "model=NAME padding=NAME downsample=NAME input_size=N|HxW"
        ),
    },
    examples={
        "net.onnx --input_size=224": "A graph tells its strides and paddings itself",
        "resnet20.th resnet56.th --out=both": "State dicts of known networks are recognised",
        "'checkpoints/epoch_*.pth' --model=resnet18": "The checkpoints of one run as a trajectory",
    },
    choices=_choices,
)


def main(argv: Sequence[str]) -> int:
    """Analyzes every source; the exit status is 1 if some of several sources failed."""
    if len(argv) < 2:
        raise ValueError("name at least one run directory or file of weights")
    if not _TRUSTED.value:
        from kernsym_jax.formats import guard

        # The first source is read while JAX is imported.
        reader = ("kernsym_jax.weights.read", "read_file")
        guard.begin(reader, argv[1], _LAYOUT.value, _FOLD.value, _WHICH.value)
    from kernsym_jax import report

    options = report.Options(
        layout=_LAYOUT.value,
        fold_batchnorm=_FOLD.value,
        which=_WHICH.value,
        model=_MODEL.value,
        padding=_PADDING.value,
        downsample=_DOWNSAMPLE.value,
        input_size=cli.input_size(_INPUT_SIZE.value),
        trusted=_TRUSTED.value,
    )
    tables, failed = report.analyze(argv[1:], _OUT.value, options)
    if _PARQUET.value:
        report.write_parquet(tables, pathlib.Path(_OUT.value) / "layers.parquet")
    print(f"report: {pathlib.Path(_OUT.value) / 'report.html'}")
    for reason in failed.values():
        print(one_line(reason), file=sys.stderr)
    return 1 if failed else 0


def run() -> None:
    """The console script."""
    cli.run(main, COMMAND)


if __name__ == "__main__":
    run()
