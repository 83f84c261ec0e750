"""E6 and E7: are architectures with more symmetric kernels more consistent?

python -m kernsym_jax.study --study=configs/studies/population.py --workdir=runs/population

A population of small networks that differ in padding, downsampling, width and depth, drawn at
random before the runs, one seed each: seeds of one architecture are no independent cases. The
primary tests hold accuracy fixed and leave out the architectures that are consistent under circular
shifts by construction (circular padding with APS).

Fashion-MNIST at 16 pixels (Debian's package dataset-fashion-mnist). ``smoke`` trains 8 networks,
too few to decide; ``cpu`` trains 30 in about half an hour on two cores. ``gpu`` and ``full`` train
the same population on CIFAR-10 at 32 pixels, with four times the width.
"""

import itertools
import pathlib

import numpy as np

from kernsym_jax import studies
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Correlation, Study
from kernsym_jax.studies import measures as m

PADDINGS = ("zero", "same", "reflect", "replicate", "circular", "partial")
DOWNSAMPLINGS = ("stride", "blur", "sbpool", "aps")
WIDTHS = (8, 12, 16, 24)
DATA = {
    "smoke": "Fashion-MNIST at 16 pixels",
    "cpu": "Fashion-MNIST at 16 pixels",
    "gpu": "CIFAR-10 (JPEG copy) at 32 pixels",
    "full": "CIFAR-10 at 32 pixels",
}
STRIDES = {4: (2, 3, 4), 5: (2, 3, 5), 6: (2, 4, 6), 7: (3, 5, 7)}

CLAIMS = {
    "E6-population": Claim(
        "Architectures with more symmetric mean kernels are more consistent under shifts, at equal "
        "accuracy.",
        of="E6",
        primary="score_shift",
    ),
    "E7-population": Claim(
        "Architectures whose mean kernels are nearer to their mirror image are more consistent "
        "under the flip, at equal accuracy.",
        of="E7",
        primary="fliplr",
    ),
}


def architectures(count: int, scale: int) -> dict[str, dict[str, object]]:
    """Draws different architectures; the first ones are the same for every count."""
    every = list(itertools.product(PADDINGS, DOWNSAMPLINGS, WIDTHS, STRIDES))
    order = np.random.default_rng(0).permutation(len(every))
    found = {}
    for padding, downsample, width, depth in (every[index] for index in order[:count]):
        found[f"{padding}-{downsample}-w{width}-d{depth}"] = {
            "model.padding": padding,
            "model.downsample": downsample,
            "model.width": scale * width,
            "model.max_width": 4 * scale * width,
            "model.depth": depth,
            "model.strided": STRIDES[depth],
        }
    return found


def correlations(variants: tuple[str, ...]) -> dict[str, Correlation]:
    def both(claim: str, text: str, x: str, y: str, expected: str, given: tuple[str, ...]) -> list:
        fixed = ", accuracy fixed" if given else ""
        return [
            Correlation(
                claim, f"{text}{fixed}{where}", x, y, expected, 0.3, given=given, variants=v
            )
            for where, v in (("", variants), (", with those consistent by construction", ()))
        ]

    shift = ("E6-population", "score and shift consistency", "score", "shift_consistency", "above")
    flip = ("E7-population", "d_fliplr and flip consistency", "d_fliplr", "fliplr_consistency",
            "below")  # fmt: skip
    odd = ("E6-population", "odd moment and shift consistency", "odd_z", "shift_consistency",
           "below")  # fmt: skip
    accuracy = ("accuracy",)
    names = ("", "_all")
    found = {}
    for prefix, plan, given in (
        ("score_shift", shift, accuracy),
        ("score_shift_plain", shift, ()),
        ("odd_shift", odd, accuracy),
        ("fliplr", flip, accuracy),
        ("fliplr_plain", flip, ()),
    ):
        tests = both(*plan, given)
        found |= {f"{prefix}{name}": test for name, test in zip(names, tests, strict=True)}
    return found


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    small = size in ("smoke", "cpu")
    base = plain.base
    if not small:
        base.model.name = "small_cnn"
        base.data.image_size = 32
    found = architectures(8 if size == "smoke" else 30, 1 if small else 4)
    by_construction = [name for name in found if name.startswith("circular-aps")]
    variants = tuple(name for name in found if name not in by_construction)
    reach = 2 if small else 3
    return Study(
        name="population",
        size=size,
        title="Are architectures with more symmetric kernels more consistent?",
        data=DATA[size],
        base=base,
        variants=found,
        seeds=(0,),
        measures={
            "accuracy": m.accuracy(),
            "score": m.mean_over("score", m.ORDINARY, "mean score of all layers but the first"),
            "score_centered": m.mean_over("score_centered", m.ORDINARY, "without the offset"),
            "odd_z": m.mean_over(m.odd_size, m.ORDINARY, "their odd moment, in sd"),
            "d_fliplr": m.mean_over("d_fliplr", m.ORDINARY, "their distance to the mirror image"),
            "shift_consistency": m.shift_consistency(),
            "fliplr_consistency": m.flip_consistency("fliplr"),
        },
        claims=CLAIMS,
        contrasts={},
        correlations=correlations(variants),
        consistency=Consistency(Shifts("circular", -reach, reach), limit=2000),
        confounds={
            "A network that is right more often is more consistent: its accuracy.": ("accuracy",),
            "A shared offset of the cells alone gives a score near 1: the score without it.": (
                "score_centered",
            ),
        },
        layer_figures=(),
        roles=(),
        cost=(60.0, "as on two busy cores of a shared x86 server") if small else None,
    )
