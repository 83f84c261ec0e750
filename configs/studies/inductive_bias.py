"""E12: is symmetry of kernels a useful inductive bias?

python -m kernsym_jax.study --study=configs/studies/inductive_bias.py --workdir=runs/inductive_bias

Three ways to make kernels symmetric, beside the plain network: slices that are tied to be invariant
under the left-right flip or under all of D4 (``config.symmetry.tie``), and mean kernels that are
projected (which changes 6 of 9·in·out degrees of freedom). The small network at 17 pixels on 5,000
images of CIFAR-10: few, so that a bias can help.

``smoke`` has scikit-learn's digits, which have no such symmetry, and takes 4 minutes on two cores.
``cpu`` wants the JPEG copy of CIFAR-10 as ``data/cifar10_jpeg.tar.gz`` and takes about 20 minutes;
``gpu`` and ``full`` train CIFAR ResNet-20 at 33 pixels.
"""

import pathlib

from kernsym_jax import studies
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Contrast, Pilot, Study
from kernsym_jax.studies import measures as m

CIFAR = "folder:data/cifar10_jpeg.tar.gz"
DATA = {
    "smoke": "digits, scaled to 17 pixels",
    "cpu": "5,000 images of CIFAR-10 (JPEG copy) at 17 pixels",
    "gpu": "5,000 images of CIFAR-10 (JPEG copy) at 33 pixels",
    "full": "5,000 images of CIFAR-10 at 33 pixels",
}
PILOTS = {
    "accuracy_fliplr": Pilot(-0.005, 0.0044, "seeds 100 to 101 of size cpu"),
    "consistency_fliplr": Pilot(0.264, 0.0057, "seeds 100 to 101 of size cpu"),
    "accuracy_d4": Pilot(-0.125, 0.0039, "seeds 100 to 101 of size cpu"),
    "accuracy_project": Pilot(-0.0034, 0.0014, "seeds 100 to 101 of size cpu"),
}
VARIANTS = {
    "plain": {},
    "tie_fliplr": {"symmetry.tie": "fliplr"},
    "tie_d4": {"symmetry.tie": "d4"},
    "project_d4": {"symmetry.project": True},
}

CLAIMS = {
    "E12-fliplr": Claim(
        "Slices tied to be mirror-symmetric raise accuracy.", of="E12", primary="accuracy_fliplr"
    ),
    "E12-consistency": Claim(
        "They raise flip consistency.", of="E12", primary="consistency_fliplr"
    ),
    "E12-d4": Claim(
        "Slices tied to be symmetric under all of D4 raise accuracy.",
        of="E12",
        primary="accuracy_d4",
    ),
    "E12-project": Claim(
        "Symmetric mean kernels alone make no difference to accuracy.",
        of="E12",
        primary="accuracy_project",
    ),
}
PLANS = {
    "accuracy_fliplr": ("E12-fliplr", "tie_fliplr", "accuracy", "above", 0.01),
    "consistency_fliplr": ("E12-consistency", "tie_fliplr", "fliplr_consistency", "above", 0.02),
    "accuracy_d4": ("E12-d4", "tie_d4", "accuracy", "above", 0.01),
    "accuracy_project": ("E12-project", "project_d4", "accuracy", "zero", 0.015),
    "shift_fliplr": ("E12-consistency", "tie_fliplr", "shift_consistency", "above", 0.01),
    "shift_d4": ("E12-d4", "tie_d4", "shift_consistency", "above", 0.01),
    "r90_d4": ("E12-d4", "tie_d4", "r90_consistency", "above", 0.02),
    "fliplr_project": ("E12-project", "project_d4", "fliplr_consistency", "above", 0.02),
    "shift_project": ("E12-project", "project_d4", "shift_consistency", "above", 0.01),
}


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    base, small = plain.base, size in ("smoke", "cpu")
    base.data.image_size, base.data.flip = (17 if small else 33), "none"
    if size == "smoke":
        base.data.source, base.epochs = "digits", 40.0
    else:
        base.data.source = CIFAR if size != "full" else base.data.source
        base.data.limit, base.epochs, base.data.shift = 5000, 20.0, (1 if small else 4)
    base.eval_every_epochs = base.checkpoint_every_epochs = base.epochs
    base.log_every = 200
    reach = 2 if small else 3
    return Study(
        name="inductive_bias",
        size=size,
        title="Is symmetry of kernels a useful inductive bias?",
        data=DATA[size],
        base=base,
        variants=VARIANTS,
        seeds=tuple(range({"smoke": 3, "cpu": 8, "gpu": 4, "full": 8}[size])),
        measures={
            "accuracy": m.accuracy(),
            "train_accuracy": m.train_accuracy(),
            "score": m.mean_over("score", m.ORDINARY, "mean score of all layers but the first"),
            "shift_consistency": m.shift_consistency(),
            "fliplr_consistency": m.flip_consistency("fliplr"),
            "flipud_consistency": m.flip_consistency("flipud"),
            "r90_consistency": m.flip_consistency("r90"),
        },
        claims=CLAIMS,
        contrasts={
            name: Contrast(
                claim,
                f"{measure}, {variant} − plain",
                ((1.0, variant, measure), (-1.0, "plain", measure)),
                expected,
                smallest,
            )
            for name, (claim, variant, measure, expected, smallest) in PLANS.items()
        },
        pilots=PILOTS if size == "cpu" else {},
        consistency=Consistency(Shifts("circular", -reach, reach), limit=2000),
        confounds={
            "A network that is right more often is more consistent: its accuracy, and how well it "
            "fits its training images.": ("accuracy", "train_accuracy"),
        },
        layer_figures=("score", "d_fliplr", "d_flipud", "E"),
        roles=m.ORDINARY,
        cost=(40.0, "as on two busy cores of a shared x86 server") if small else None,
    )
