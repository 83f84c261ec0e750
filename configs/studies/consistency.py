"""E6 and E7: do answers survive shifts and flips better where kernels are more symmetric?

python -m kernsym_jax.study --study=configs/studies/consistency.py --workdir=runs/consistency \\
    --runs=runs/remedies/runs

The population of networks of ``remedies.py``: every padding and downsampling, several seeds, each
evaluated along its training and at its end. With that study's ``--runs`` nothing is trained again.
Sizes and costs are those of ``remedies.py``.
"""

import dataclasses
import pathlib

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Correlation, Measure, Study
from kernsym_jax.studies import measures as m

CLAIMS = {
    "E6-population": Claim(
        "Networks with more symmetric kernels are more consistent under shifts.", of="E6"
    ),
    "E6-accuracy": Claim("They are so at equal accuracy, too.", of="E6"),
    "E6-seeds": Claim("They are so among the seeds of one architecture, too.", of="E6"),
    "E6-epochs": Claim("Along the training of a network both rise and fall together.", of="E6"),
    "E7-fliplr": Claim(
        "Networks whose kernels are nearer to their mirror image are more consistent under that "
        "flip, at equal accuracy, too.",
        of="E7",
    ),
    "E7-flipud": Claim("The same holds of the upside-down image.", of="E7"),
    "E7-epochs": Claim(
        "Along the training of a network, mirror symmetry and consistency under the mirror rise "
        "and fall together.",
        of="E7",
    ),
}

CORRELATIONS = {
    "score_shift": Correlation(
        "E6-population",
        "mean score and shift consistency",
        "score_all",
        "shift_consistency",
        "above",
        0.2,
    ),
    "score_shift_accuracy": Correlation(
        "E6-accuracy",
        "mean score and shift consistency, accuracy held fixed",
        "score_all",
        "shift_consistency",
        "above",
        0.2,
        given=("accuracy",),
    ),
    "score_shift_seeds": Correlation(
        "E6-seeds",
        "mean score and shift consistency, accuracy and variant held fixed",
        "score_all",
        "shift_consistency",
        "above",
        0.2,
        given=("accuracy",),
        within=True,
    ),
    **{
        f"{name}_{kind}": Correlation(
            f"E7-{name}",
            f"d_{name} and {name} consistency{', accuracy held fixed' if given else ''}",
            f"d_{name}",
            f"{name}_consistency",
            "below",
            0.2,
            given=given,
        )
        for name in ("fliplr", "flipud")
        for kind, given in (("population", ()), ("accuracy", ("accuracy",)))
    },
}

ALONG: dict[str, Measure] = {
    "shift_along": m.along_training(
        "score", m.ORDINARY, "shifts", "rank correlation of score and shift consistency over epochs"
    ),
    "fliplr_along": m.along_training(
        "d_fliplr", m.ORDINARY, "fliplr", "the same of d_fliplr and fliplr consistency"
    ),
}


def get_study(size: str) -> Study:
    remedies = studies.load_study(pathlib.Path(__file__).with_name("remedies.py"), size)
    plain = next(iter(remedies.variants))
    contrasts = {
        "shift_epochs": Contrast(
            "E6-epochs",
            f"rank correlation of score and shift consistency over epochs, {plain}",
            ((1.0, plain, "shift_along"),),
            "above",
            0.2,
        ),
        "fliplr_epochs": Contrast(
            "E7-epochs",
            f"rank correlation of d_fliplr and fliplr consistency over epochs, {plain}",
            ((1.0, plain, "fliplr_along"),),
            "below",
            0.2,
        ),
    }
    return dataclasses.replace(
        remedies,
        name="consistency",
        title="Do answers survive shifts and flips better where kernels are more symmetric?",
        measures={**remedies.measures, **ALONG},
        claims=CLAIMS,
        contrasts=contrasts,
        correlations=CORRELATIONS,
    )
