"""E12: is the symmetry of mean kernels a useful inductive bias?

python -m kernsym_jax.study --study=configs/studies/inductive_bias.py --workdir=runs/inductive_bias

The plain network of ``remedies.py`` at its even input size, left alone and with its symmetry
enforced: by a weak and a strong term λ·(1 − mean score) in the loss, by projecting all mean kernels
onto what all of D4 leaves unchanged after every update, and onto what the left-right flip leaves
unchanged. Every run is evaluated for shift and flip consistency, too. ``smoke`` takes about four
minutes on two cores; ``cpu`` takes about forty on them and wants
``--data=folder:<CIFAR-10 as JPEG files>``; ``full`` wants an accelerator and CIFAR-10.
"""

import dataclasses
import pathlib

import ml_collections

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

VARIANTS = {
    "plain": {},
    "loss_weak": {"symmetry.loss_weight": 0.002},
    "loss_strong": {"symmetry.loss_weight": 0.02},
    "project_d4": {"symmetry.project": True},
    "project_fliplr": {"symmetry.project": True, "symmetry.elements": ("fliplr",)},
}
ENFORCED = ("loss_strong", "project_d4", "project_fliplr")

CLAIMS = {
    "E12-enforced": Claim(
        "Symmetry can be enforced: a term of the loss raises the score with its weight, and "
        "projection raises it, too.",
        of="E12",
    ),
    "E12-free": Claim("Enforced symmetry costs no accuracy.", of="E12"),
    "E12-accuracy": Claim("Enforced symmetry of all of D4 raises accuracy.", of="E12"),
    "E12-flips": Claim(
        "Enforced symmetry makes answers more consistent under the flips that it is about.",
        of="E12",
    ),
    "E12-match": Claim(
        "Symmetry under one flip helps consistency under that flip more than under the other.",
        of="E12",
    ),
    "E12-shift": Claim(
        "Enforced symmetry of all of D4 makes answers more consistent under shifts.", of="E12"
    ),
}


def beyond(
    claim: str, variant: str, measure: str, smallest: float, expected: str = "above"
) -> Contrast:
    """Tests what a variant changes of a measure, beside the plain network."""
    terms = ((1.0, variant, measure), (-1.0, "plain", measure))
    return Contrast(claim, f"{measure}, {variant} − plain", terms, expected, smallest)


CONTRASTS = {
    "score_weak": beyond("E12-enforced", "loss_weak", "score", 0.03),
    "score_strong": Contrast(
        "E12-enforced",
        "score, loss_strong − loss_weak",
        ((1.0, "loss_strong", "score"), (-1.0, "loss_weak", "score")),
        "above",
        0.03,
    ),
    "score_d4": beyond("E12-enforced", "project_d4", "score", 0.03),
    **{f"free_{name}": beyond("E12-free", name, "accuracy", 0.01, "zero") for name in ENFORCED},
    "accuracy_strong": beyond("E12-accuracy", "loss_strong", "accuracy", 0.01),
    "accuracy_d4": beyond("E12-accuracy", "project_d4", "accuracy", 0.01),
    "fliplr_d4": beyond("E12-flips", "project_d4", "fliplr_consistency", 0.02),
    "flipud_d4": beyond("E12-flips", "project_d4", "flipud_consistency", 0.02),
    "fliplr_fliplr": beyond("E12-flips", "project_fliplr", "fliplr_consistency", 0.02),
    "match": Contrast(
        "E12-match",
        "gain in fliplr consistency − gain in flipud consistency, project_fliplr − plain",
        (
            (1.0, "project_fliplr", "fliplr_consistency"),
            (-1.0, "plain", "fliplr_consistency"),
            (-1.0, "project_fliplr", "flipud_consistency"),
            (1.0, "plain", "flipud_consistency"),
        ),
        "above",
        0.02,
    ),
    "shift_strong": beyond("E12-shift", "loss_strong", "shift_consistency", 0.01),
    "shift_d4": beyond("E12-shift", "project_d4", "shift_consistency", 0.01),
}

CONFOUNDS = {
    "A network that is right more often is more consistent: its accuracy, and how well it fits "
    "what it was trained on.": ("accuracy", "train_accuracy"),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share", "score_centered"),
}


def measures() -> dict[str, Measure]:
    roles = m.ORDINARY
    return {
        "accuracy": m.accuracy(),
        "train_accuracy": Measure(
            "accuracy on what was trained on, towards the end",
            lambda run: run.summary["train_accuracy"],
        ),
        "score": m.mean_over("score", roles, "mean score of the layers that do not see the image"),
        "d_fliplr": m.mean_over("d_fliplr", roles, "their mean distance to the mirror image"),
        "d_flipud": m.mean_over("d_flipud", roles, "their mean distance to the upside-down image"),
        "score_centered": m.mean_over("score_centered", roles, "mean score without the offset"),
        "dc_share": m.mean_over("dc_share", roles, "share of the offset in them"),
        "shift_consistency": m.shift_consistency(),
        "fliplr_consistency": m.flip_consistency("fliplr"),
        "flipud_consistency": m.flip_consistency("flipud"),
        "r90_consistency": m.flip_consistency("r90"),
    }


def get_study(size: str) -> Study:
    remedies = studies.load_study(pathlib.Path(__file__).with_name("remedies.py"), size)
    base = ml_collections.ConfigDict(remedies.base)
    base.data.image_size = next(iter(remedies.variants.values()))["data.image_size"]
    return dataclasses.replace(
        remedies,
        name="inductive_bias",
        title="Is the symmetry of mean kernels a useful inductive bias?",
        base=base,
        variants=VARIANTS,
        seeds=tuple(range(4 if size == "smoke" else 5)),
        measures=measures(),
        claims=CLAIMS,
        contrasts=CONTRASTS,
        confounds=CONFOUNDS,
        layer_figures=("score", "d_fliplr", "d_flipud", "E"),
        cost=remedies.cost,
    )
