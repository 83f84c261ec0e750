"""E8: when do kernels become symmetric, and what in the data makes them so?

python -m kernsym_jax.study --study=configs/studies/emergence.py --workdir=runs/emergence

The small network at 17 pixels, where padding is even, on real images that have a direction. Three
variants fit 500 images for 120 epochs, to a training accuracy above .9: real ones, the same with
random labels, and noise. Five see all images: as they are, with horizontal or vertical flips, with
all of D4, and turned by 90°. Scores are centred, because an offset alone looks symmetric; what
flips change is seen in the second moments of the slices.

``smoke`` trains on Fashion-MNIST (the Debian package dataset-fashion-mnist) in 8 minutes on two
cores, ``cpu`` on the JPEG copy of CIFAR-10 (``data/cifar10_jpeg.tar.gz``) in about half an hour;
``gpu`` and ``full`` train CIFAR ResNet-20 at 33 pixels on CIFAR-10.
"""

import pathlib
from collections.abc import Sequence

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Measure, Pilot, Study
from kernsym_jax.studies import measures as m
from kernsym_jax.symmetry import D4

CIFAR = "folder:data/cifar10_jpeg.tar.gz"
LAYERS = ("conv2", "conv3", "conv4")
DATA = {
    "smoke": "Fashion-MNIST at 17 pixels",
    "cpu": "CIFAR-10 (JPEG copy) at 17 pixels",
    "gpu": "CIFAR-10 (JPEG copy) at 33 pixels",
    "full": "CIFAR-10 at 33 pixels",
}
PILOT_SEEDS = "seeds 100 to 101 of size cpu"
PILOTS = {
    "start": Pilot(-0.0417, 0.028, PILOT_SEEDS),
    "rise": Pilot(0.189, 0.033, PILOT_SEEDS),
    "labels": Pilot(-0.0471, 0.025, PILOT_SEEDS),
    "noise": Pilot(0.0303, 0.068, PILOT_SEEDS),
    "horizontal": Pilot(0.00492, 0.0029, PILOT_SEEDS),
    "vertical": Pilot(0.00891, 0.0063, PILOT_SEEDS),
    "d4": Pilot(0.0681, 0.0043, PILOT_SEEDS),
    "turned": Pilot(0.0167, 0.0012, PILOT_SEEDS),
}

CLAIMS = {
    "E8-start": Claim(
        "At initialisation mean kernels are as symmetric as random ones.", of="E8", primary="start"
    ),
    "E8-rise": Claim("Training makes mean kernels more symmetric.", of="E8", primary="rise"),
    "E8-labels": Claim(
        "True labels make mean kernels more symmetric than random labels that are fitted as well.",
        of="E8",
        primary="labels",
    ),
    "E8-noise": Claim(
        "Real images make mean kernels more symmetric than noise that is fitted as well.",
        of="E8",
        primary="noise",
    ),
    "E8-horizontal": Claim(
        "Horizontal flips in the data make the slices' second moments more mirror-symmetric.",
        of="E8",
        primary="horizontal",
    ),
    "E8-vertical": Claim(
        "Vertical flips in the data do so for the upside-down flip.", of="E8", primary="vertical"
    ),
    "E8-d4": Claim(
        "All of D4 in the data makes second moments more symmetric under quarter turns.",
        of="E8",
        primary="d4",
    ),
    "E8-turn": Claim(
        "Turning the data by 90° exchanges the two mirrors in the second moments.",
        of="E8",
        primary="turned",
    ),
}

CONFOUNDS = {
    "Fitting better is another training: the accuracy on test and on training images.": (
        "accuracy",
        "train_accuracy",
    ),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the plain "
    "score.": ("dc_share", "score"),
}


def measures(layers: Sequence[str]) -> dict[str, Measure]:
    roles = m.ORDINARY
    moments = {
        f"moments_{name}": m.moment_distance(name, layers, f"second moments: distance under {name}")
        for name in D4
        if name in ("fliplr", "flipud", "r90")
    }
    return {
        "accuracy": m.accuracy(),
        "train_accuracy": m.train_accuracy(),
        "start": m.over_chance(roles, 0, "centred score − chance at the start", centered=True),
        "end": m.over_chance(roles, -1, "centred score − chance at the end", centered=True),
        **moments,
        "score": m.mean_over("score", roles, "mean score"),
        "dc_share": m.mean_over("dc_share", roles, "share of the offset"),
        "d_fliplr": m.mean_over("d_fliplr", roles, "mean kernel: distance to the mirror image"),
        "d_flipud": m.mean_over("d_flipud", roles, "mean kernel: to the upside-down image"),
    }


def contrasts() -> dict[str, Contrast]:
    def minus(
        claim: str, one: tuple[str, str], other: tuple[str, str], smallest: float
    ) -> Contrast:
        meaning = f"{one[1]}, {one[0]} − {other[1]}, {other[0]}"
        return Contrast(claim, meaning, ((1.0, *one), (-1.0, *other)), "above", smallest)

    mirror, upside, quarter = (f"moments_{name}" for name in ("fliplr", "flipud", "r90"))
    tests = {
        "start": Contrast(
            "E8-start",
            "centred score − chance at the start",
            ((1.0, "none", "start"),),
            "zero",
            0.08,
        ),
        "rise": minus("E8-rise", ("none", "end"), ("none", "start"), 0.05),
        "labels": minus("E8-labels", ("few", "end"), ("few_random", "end"), 0.05),
        "noise": minus("E8-noise", ("few", "end"), ("few_noise", "end"), 0.05),
        "horizontal": minus("E8-horizontal", ("none", mirror), ("horizontal", mirror), 0.02),
        "vertical": minus("E8-vertical", ("none", upside), ("vertical", upside), 0.02),
        "d4": minus("E8-d4", ("none", quarter), ("d4", quarter), 0.02),
        "turned": Contrast(
            "E8-turn",
            "flipud − fliplr distance of second moments, none − turned",
            ((1.0, "none", upside), (-1.0, "none", mirror),
             (-1.0, "turned", upside), (1.0, "turned", mirror)),
            "above",
            0.02,
        ),
        "mean_horizontal": minus("E8-horizontal", ("none", "d_fliplr"), ("horizontal", "d_fliplr"),
                                 0.03),
        "mean_vertical": minus("E8-vertical", ("none", "d_flipud"), ("vertical", "d_flipud"), 0.03),
        "mean_d4": minus("E8-d4", ("d4", "end"), ("none", "end"), 0.05),
        "rise_plain": minus("E8-rise", ("few", "end"), ("few", "start"), 0.05),
    }  # fmt: skip
    return tests


def variants(few: int, epochs: float, noise: str) -> dict[str, dict[str, object]]:
    fitted = {
        "epochs": epochs, "eval_every_epochs": epochs, "checkpoint_every_epochs": epochs,
        "data.limit": few,
    }  # fmt: skip
    return {
        "none": {},
        "horizontal": {"data.flip": "horizontal"},
        "vertical": {"data.flip": "vertical"},
        "d4": {"data.flip": "d4"},
        "turned": {"data.rotate": 90},
        "few": fitted,
        "few_random": {**fitted, "data.random_labels": True},
        "few_noise": {**fitted, "data.source": noise},
    }


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    base, layers, small = plain.base, LAYERS, size in ("smoke", "cpu")
    base.data.image_size = 17 if small else 33
    base.data.flip, base.data.shift = "none", 0
    channels = 1
    if size == "cpu":
        # Pilots on Fashion-MNIST found hardly any rise; CIFAR-10 has more of it.
        base.data.source, channels = CIFAR, 3
    noise = f"noise:size=17,channels={channels},n=500,test=1000"
    few, epochs = 500, 120.0
    if not small:
        blocks = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(3)]
        layers = tuple(f"{block}/conv{number}" for block in blocks for number in (1, 2))
        noise, few, epochs = "noise:size=33,channels=3,n=2000,test=1000", 2000, 100.0
    return Study(
        name="emergence",
        size=size,
        title="When do kernels become symmetric, and why?",
        data=DATA[size],
        base=base,
        variants=variants(few, epochs, noise),
        seeds=tuple(range({"smoke": 3, "cpu": 8, "gpu": 4, "full": 8}[size])),
        measures=measures(layers),
        claims=CLAIMS,
        contrasts=contrasts(),
        pilots=PILOTS if size == "cpu" else {},
        confounds=CONFOUNDS,
        layer_figures=("score_centered", "d_fliplr", "d_flipud", "E"),
        roles=m.ORDINARY,
        trajectories=("score_centered", "d_fliplr", "d_flipud"),
        cost=(30.0, "as on two busy cores of a shared x86 server") if small else None,
    )
