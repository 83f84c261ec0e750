"""Measures accuracy and consistency under shifts and flips, of a run or of any weights.

python -m kernsym_jax.evaluate --workdir=runs/digits --shift=3 --shift_mode=circular
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
    "mean": flags.DEFINE_list("mean", None, "Mean of the training images per channel; white is 1."),
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


def main(argv: Sequence[str]) -> None:
    """Evaluates one network, prints the table and writes the files."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; a run directory is --workdir={argv[1]}")
    from kernsym_jax import evaluation

    model, weights, photos = _network()
    photos |= {"source": _DATA.value} if _DATA.value else {}
    photos |= {"void": tuple(_VOID.value)} if _VOID.value else {}
    size = cli.input_size(_SIZE.value)
    shifts = evaluation.parse_shifts(
        _SHIFT.value,
        _MODE.value,
        draws=_DRAWS.value,
        per=_PER.value,
        seed=_SEED.value,
        window=0 if isinstance(size, tuple) else size or photos.get("crop_size", 0),
    )
    subject = evaluation.open_subject(
        model,
        weights,
        photos,
        shifts,
        input_size=size,
        limit=_LIMIT.value,
        ema=_EMA.value,
        trusted=_TRUSTED.value,
    )
    results = evaluation.evaluate(subject, shifts, batch_size=_BATCH.value)
    out = pathlib.Path(_OUT.value or pathlib.Path(_WORKDIR.value or "", run_directory.CONSISTENCY))
    evaluation.write_results(results, out)
    evaluation.write_picture(subject, shifts, out.with_suffix(".png"))
    evaluation.print_consistency(results)
    print(f"written: {out}")


def _network() -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The arguments of `models.create`, the place of the weights, and the settings of the data."""
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
    cli.run(main)


if __name__ == "__main__":
    run()
