"""E9: which choices of an architecture make kernels more or less symmetric?

python -m kernsym_jax.study --study=configs/studies/architecture.py --workdir=runs/architecture

The plain network of ``remedies.py`` at an even input size, and each of its choices changed alone:
max-pooling instead of strides, reflection padding, 5×5 kernels, depthwise convolutions, no
BatchNorm, and a head that sees the whole map. Sizes and data are those of ``remedies.py``;
``smoke`` takes six minutes on a core of a server, ``cpu`` about three quarters of an hour.
"""

import pathlib
from collections.abc import Mapping, Sequence

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

CLAIMS = {
    "E9-stride": Claim(
        "Strides with zero padding make the layers before a step less symmetric than max-pooling.",
        of="E9",
    ),
    "E9-padding": Claim("Zero padding makes kernels less symmetric than reflection.", of="E9"),
    "E9-banding": Claim(
        "A head behind global average pooling bands the last layer: more axis contrast (B1) than "
        "with a head that sees the whole map.",
        of="E9",
    ),
    "E9-depthwise": Claim(
        "Single depthwise kernels are more symmetric than single ordinary ones.", of="E9"
    ),
    "E9-size": Claim("5×5 kernels are as far above their chance as 3×3 ones.", of="E9"),
    "E9-norm": Claim("BatchNorm makes no difference to the score.", of="E9"),
}


def over_chance(row: Mapping[str, float | None]) -> float | None:
    """What a layer scores above random kernels of its size."""
    if row["score"] is None or row["null_mean"] is None:
        return None
    return row["score"] - row["null_mean"]


def measures(steps: Sequence[str], others: Sequence[str]) -> dict[str, Measure]:
    """The measures, given the layers that step down and the other inner ones."""
    both = (*steps, *others)
    return {
        "accuracy": m.accuracy(),
        "over_chance": m.at_layers(over_chance, both, "mean score − chance of the inner layers"),
        "score": m.at_layers("score", both, "mean score of the inner layers"),
        "score_steps": m.at_layers("score", steps, "mean score of the layers that step down"),
        "B1_last": m.at_layers("B1", others[-1:], "axis contrast of the last layer"),
        "single": m.at_layers("single_score", both, "mean score of single kernels"),
        "score_centered": m.at_layers("score_centered", both, "mean score without the offset"),
        "dc_share": m.at_layers("dc_share", both, "share of the offset"),
    }


def contrast(
    claim: str, left: str, right: str, measure: str, expected: str, smallest: float
) -> Contrast:
    terms = ((1.0, left, measure), (-1.0, right, measure))
    return Contrast(f"E9-{claim}", f"{measure}, {left} − {right}", terms, expected, smallest)


def get_study(size: str) -> Study:
    remedies = studies.load_study(pathlib.Path(__file__).with_name("remedies.py"), size)
    plain, image = next(iter(remedies.variants.items()))
    base = remedies.base.copy_and_resolve_references()
    # The small network has all of these choices; full trains it wider, on more.
    base.model.update({"name": "small_cnn", "depth": 7, "strided": (3, 5)})
    base.model.width = {"smoke": 12, "cpu": 12, "full": 64}[size]
    slowly = {"optimizer.learning_rate": 0.02, "optimizer.clip_norm": 1.0}
    return Study(
        name="architecture",
        size=size,
        title="Which choices of an architecture make kernels more or less symmetric?",
        data=remedies.data,
        base=base,
        variants={
            plain: image,
            "pool": {**image, "model.pool": True},
            "reflect": {**image, "model.padding": "reflect"},
            "kernel5": {**image, "model.kernel_size": 5},
            "depthwise": {**image, "model.separable": True},
            "no_norm": {**image, "model.norm": False, **slowly},
            "flat_head": {**image, "model.flatten": True},
        },
        seeds=remedies.seeds,
        measures=measures(("conv3", "conv5"), ("conv2", "conv4", "conv6", "conv7")),
        claims=CLAIMS,
        contrasts={
            "stride": contrast("stride", "pool", plain, "score_steps", "above", 0.03),
            "padding": contrast("padding", "reflect", plain, "score", "above", 0.03),
            "banding": contrast("banding", plain, "flat_head", "B1_last", "above", 0.05),
            "depthwise": contrast("depthwise", "depthwise", plain, "single", "above", 0.03),
            "size": contrast("size", "kernel5", plain, "over_chance", "zero", 0.1),
            "norm": contrast("norm", "no_norm", plain, "score", "zero", 0.1),
        },
        confounds={
            "A network that has learnt less may be less symmetric: its accuracy. Without BatchNorm "
            "it is trained with a smaller rate.": ("accuracy",),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score without it.": ("dc_share", "score_centered"),
            "Chance depends on the kernel's size, so sizes are compared by what they are above "
            "it.": ("over_chance",),
        },
        layer_figures=("score", "E", "B1"),
        roles=(*m.ORDINARY, "depthwise"),
        trajectories=("score",),
        cost=remedies.cost,
    )
