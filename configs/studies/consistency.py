"""E6 and E7: does consistency follow when symmetry is changed on purpose?

python -m kernsym_jax.study --study=configs/studies/consistency.py --workdir=runs/consistency

Correlations over networks do not tell what causes what, so this study intervenes: a loss term and a
projection raise the symmetry of mean kernels, and flips in the training data raise flip
consistency. Does the other side follow? `population.py` has the correlation over architectures.

The small network at 17 pixels, where padding is even, on the JPEG copy of CIFAR-10
(``data/cifar10_jpeg.tar.gz``). ``smoke`` uses scikit-learn's digits and takes 4 minutes on two
cores, ``cpu`` about a quarter of an hour; ``gpu`` and ``full`` train CIFAR ResNet-20 at 33 pixels.
"""

import pathlib

from kernsym_jax import studies
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Contrast, Measure, Pilot, Study
from kernsym_jax.studies import measures as m

CIFAR = "folder:data/cifar10_jpeg.tar.gz"
LAYERS = ("conv2", "conv3", "conv4")
PILOT_SEEDS = "seeds 100 to 101 of size cpu"
PILOTS = {
    "shift_loss": Pilot(0.00049, 0.0042, PILOT_SEEDS),
    "shift_project": Pilot(-0.00418, 0.012, PILOT_SEEDS),
    "fliplr_project": Pilot(0.00075, 0.0039, PILOT_SEEDS),
    "mean_horizontal": Pilot(0.00915, 0.047, PILOT_SEEDS),
    "moments_horizontal": Pilot(-0.00844, 0.0053, PILOT_SEEDS),
}
DATA = {
    "smoke": "digits, scaled to 17 pixels",
    "cpu": "CIFAR-10 (JPEG copy) at 17 pixels",
    "gpu": "CIFAR-10 (JPEG copy) at 33 pixels",
    "full": "CIFAR-10 at 33 pixels",
}
VARIANTS = {
    "plain": {},
    "loss_weak": {"symmetry.loss_weight": 0.002},
    "loss_strong": {"symmetry.loss_weight": 0.02},
    "project": {"symmetry.project": True},
    "flip_horizontal": {"data.flip": "horizontal"},
    "flip_vertical": {"data.flip": "vertical"},
}

CLAIMS = {
    "E6-loss": Claim(
        "A loss term that raises the symmetry of mean kernels raises shift consistency.",
        of="E6",
        primary="shift_loss",
    ),
    "E6-project": Claim(
        "Projecting mean kernels to be symmetric raises shift consistency.",
        of="E6",
        primary="shift_project",
    ),
    "E7-project": Claim(
        "Projecting mean kernels to be symmetric raises flip consistency.",
        of="E7",
        primary="fliplr_project",
    ),
    "E7-mean": Claim(
        "Horizontal flips in the data, which raise flip consistency, bring mean kernels nearer to "
        "their mirror image.",
        of="E7",
        primary="mean_horizontal",
    ),
    "E7-moments": Claim(
        "They bring the second moments of the slices nearer to their mirror image.",
        of="E7",
        primary="moments_horizontal",
    ),
}


def against_plain(
    claim: str, variant: str, measure: str, expected: str, smallest: float
) -> Contrast:
    terms = ((1.0, variant, measure), (-1.0, "plain", measure))
    meaning = f"{measure}, {variant} − plain"
    return Contrast(claim, meaning, terms, expected, smallest)


PLANS = {
    "shift_loss": ("E6-loss", "loss_strong", "shift_consistency", "above", 0.01),
    "shift_weak": ("E6-loss", "loss_weak", "shift_consistency", "above", 0.01),
    "score_loss": ("E6-loss", "loss_strong", "score", "above", 0.05),
    "accuracy_loss": ("E6-loss", "loss_strong", "accuracy", "zero", 0.01),
    "shift_project": ("E6-project", "project", "shift_consistency", "above", 0.01),
    "score_project": ("E6-project", "project", "score", "above", 0.05),
    "accuracy_project": ("E6-project", "project", "accuracy", "zero", 0.01),
    "fliplr_project": ("E7-project", "project", "fliplr_consistency", "above", 0.01),
    "flipud_project": ("E7-project", "project", "flipud_consistency", "above", 0.01),
    "mean_horizontal": ("E7-mean", "flip_horizontal", "d_fliplr", "below", 0.03),
    "mean_vertical": ("E7-mean", "flip_vertical", "d_flipud", "below", 0.03),
    "fliplr_horizontal": ("E7-mean", "flip_horizontal", "fliplr_consistency", "above", 0.01),
    "moments_horizontal": ("E7-moments", "flip_horizontal", "moments_fliplr", "below", 0.02),
    "moments_vertical": ("E7-moments", "flip_vertical", "moments_flipud", "below", 0.02),
    "flipud_vertical": ("E7-moments", "flip_vertical", "flipud_consistency", "above", 0.01),
}


def measures(layers: tuple[str, ...]) -> dict[str, Measure]:
    return {
        "accuracy": m.accuracy(),
        "score": m.at_layers("score", layers, "mean score of the layers that do not see the image"),
        "d_fliplr": m.at_layers("d_fliplr", layers, "their mean distance to the mirror image"),
        "d_flipud": m.at_layers("d_flipud", layers, "that to the upside-down image"),
        "moments_fliplr": m.moment_distance("fliplr", layers, "second moments: to the mirror"),
        "moments_flipud": m.moment_distance("flipud", layers, "second moments: upside down"),
        "score_centered": m.at_layers("score_centered", layers, "mean score without the offset"),
        "dc_share": m.at_layers("dc_share", layers, "share of the offset"),
        "shift_consistency": m.shift_consistency(),
        "fliplr_consistency": m.flip_consistency("fliplr"),
        "flipud_consistency": m.flip_consistency("flipud"),
    }


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    base, layers = plain.base, LAYERS
    if size == "smoke":
        base.data.source, base.epochs = "digits", 60.0
        base.eval_every_epochs = base.checkpoint_every_epochs = 60.0
    elif size == "cpu":
        base.data.source, base.data.shift = CIFAR, 1
    else:
        base.data.flip = "none"
        blocks = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(3)]
        layers = tuple(f"{block}/conv{number}" for block in blocks for number in (1, 2))
    base.data.image_size = 17 if size in ("smoke", "cpu") else 33
    reach = 2 if size in ("smoke", "cpu") else 3
    return Study(
        name="consistency",
        size=size,
        title="Does consistency follow when symmetry is changed on purpose?",
        data=DATA[size],
        base=base,
        variants=VARIANTS,
        seeds=tuple(range({"smoke": 3, "cpu": 8, "gpu": 4, "full": 8}[size])),
        measures=measures(layers),
        claims=CLAIMS,
        contrasts={
            name: against_plain(*plan)  # type: ignore[arg-type]
            for name, plan in PLANS.items()
        },
        pilots=PILOTS if size == "cpu" else {},
        consistency=Consistency(
            Shifts("circular", -reach, reach), limit=None if size == "full" else 2000
        ),
        confounds={
            "A network that is right more often is more consistent: its accuracy.": ("accuracy",),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score without it.": ("dc_share", "score_centered"),
        },
        layer_figures=("score", "d_fliplr", "d_flipud", "E"),
        roles=m.ORDINARY,
        cost=(20.0, "as on two busy cores of a shared x86 server") if size == "cpu" else None,
    )
