"""E9: which choices of an architecture make kernels more or less symmetric?

python -m kernsym_jax.study --study=configs/studies/architecture.py --workdir=runs/architecture

The small network of ``downsampling.py`` at 16 pixels with one more layer, and each of its choices
changed alone: max-pooling instead of strides, circular padding, 5×5 kernels, depthwise
convolutions, no BatchNorm, and a head that sees the whole map. ``smoke`` trains on Fashion-MNIST
(the Debian package dataset-fashion-mnist) in about 20 minutes on two cores, ``cpu`` on the JPEG
copy of CIFAR-10 (``data/cifar10_jpeg.tar.gz``) in about 40. ``gpu`` and ``full`` train it wider, at
32 pixels.
"""

import pathlib

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Pilot, Study
from kernsym_jax.studies import measures as m

CIFAR = "folder:data/cifar10_jpeg.tar.gz"
STEPS, LAST = ("conv2", "conv3", "conv4"), ("conv5",)
DATA = {
    "smoke": "Fashion-MNIST at 16 pixels",
    "cpu": "CIFAR-10 (JPEG copy) at 16 pixels",
    "gpu": "CIFAR-10 (JPEG copy) at 32 pixels",
    "full": "CIFAR-10 at 32 pixels",
}
PILOTS = {
    "stride": Pilot(3.35, 0.44, "seeds 100 to 101 of size cpu"),
    "padding": Pilot(3.31, 0.98, "seeds 100 to 101 of size cpu"),
    "banding": Pilot(0.00776, 0.0036, "seeds 100 to 101 of size cpu"),
    "depthwise": Pilot(0.00365, 0.0011, "seeds 100 to 101 of size cpu"),
    "size": Pilot(0.0746, 0.0033, "seeds 100 to 101 of size cpu"),
    "norm": Pilot(-3.91, 0.58, "seeds 100 to 101 of size cpu"),
}

CLAIMS = {
    "E9-stride": Claim(
        "Strides give the layers that step down a larger odd moment than max-pooling.",
        of="E9",
        primary="stride",
    ),
    "E9-padding": Claim(
        "Zero padding gives them a larger odd moment than circular padding.",
        of="E9",
        primary="padding",
    ),
    "E9-banding": Claim(
        "Global average pooling bands the last layer: more axis contrast (B1) than with a head "
        "that sees the whole map.",
        of="E9",
        primary="banding",
    ),
    "E9-depthwise": Claim(
        "Single depthwise kernels are more symmetric than single ordinary ones.",
        of="E9",
        primary="depthwise",
    ),
    "E9-size": Claim(
        "5×5 kernels are as far above their chance as 3×3 ones.", of="E9", primary="size"
    ),
    "E9-norm": Claim(
        "Without BatchNorm the odd moment of the layers that step down is the same.",
        of="E9",
        primary="norm",
    ),
}


def over_chance(row: m.Row) -> float | None:
    """Returns the centred score minus that of random kernels of the layer's size."""
    if row["score_centered"] is None:
        return None
    return row["score_centered"] - m.chance(row, centered=True)


def contrast(
    name: str, left: str, right: str, measure: str, expected: str, smallest: float
) -> Contrast:
    terms = ((1.0, left, measure), (-1.0, right, measure))
    meaning = f"{measure}, {left} − {right}"
    return Contrast(f"E9-{name}", meaning, terms, expected, smallest)


CONTRASTS = {
    "stride": contrast("stride", "zero", "pool", "odd_z", "above", 0.5),
    "padding": contrast("padding", "zero", "circular", "odd_z", "above", 0.5),
    "banding": contrast("banding", "zero", "flat_head", "B1_last", "above", 0.05),
    "depthwise": contrast("depthwise", "depthwise", "zero", "single", "above", 0.03),
    "size": contrast("size", "kernel5", "zero", "over_chance", "zero", 0.1),
    "norm": contrast("norm", "no_norm", "zero", "odd_z", "zero", 1.0),
    "score_stride": contrast("stride", "pool", "zero", "score", "above", 0.03),
    "score_padding": contrast("padding", "circular", "zero", "score", "above", 0.03),
    "score_norm": contrast("norm", "no_norm", "zero", "score", "zero", 0.1),
}


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    base, small = plain.base, size in ("smoke", "cpu")
    base.model.update({"name": "small_cnn", "depth": 5, "strided": (2, 3, 4)})
    if not small:
        base.model.update({"width": 64, "max_width": 256})
    base.data.image_size = 16 if small else 32
    if size == "cpu":
        # Pilots found an odd moment five times as large as on Fashion-MNIST.
        base.data.source, base.data.shift = CIFAR, 1
    slowly = {"optimizer.learning_rate": 0.02, "optimizer.clip_norm": 1.0}
    both = (*STEPS, *LAST)
    return Study(
        name="architecture",
        size=size,
        title="Which choices of an architecture make kernels more or less symmetric?",
        data=DATA[size],
        base=base,
        variants={
            "zero": {},
            "pool": {"model.pool": True},
            "circular": {"model.padding": "circular"},
            "kernel5": {"model.kernel_size": 5},
            "depthwise": {"model.separable": True},
            "no_norm": {"model.norm": False, **slowly},
            "flat_head": {"model.flatten": True},
        },
        seeds=tuple(range({"smoke": 3, "cpu": 6, "gpu": 4, "full": 8}[size])),
        measures={
            "accuracy": m.accuracy(),
            "odd_z": m.at_layers(m.odd_size, STEPS, "odd moment of the layers that step down"),
            "score": m.at_layers("score", STEPS, "their mean score"),
            "over_chance": m.at_layers(over_chance, both, "centred score − chance"),
            "B1_last": m.at_layers("B1", LAST, "axis contrast of the last layer"),
            "single": m.at_layers("single_score", both, "mean score of single kernels"),
            "score_centered": m.at_layers("score_centered", both, "mean score without the offset"),
            "dc_share": m.at_layers("dc_share", both, "share of the offset"),
        },
        claims=CLAIMS,
        contrasts=CONTRASTS,
        pilots=PILOTS if size == "cpu" else {},
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
        cost=(60.0, "as on two busy cores of a shared x86 server") if small else None,
    )
