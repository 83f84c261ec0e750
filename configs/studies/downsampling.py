"""E4: do strided layers lose their symmetry where padding is applied unevenly?

python -m kernsym_jax.study --study=configs/studies/downsampling.py --workdir=runs/downsampling

One network at an even input size, where every strided layer leaves a row and a column unseen
(u = 1), and at the odd size one pixel larger, where none does (u = 0). ``smoke`` takes three
minutes on two cores, ``cpu`` about a quarter of an hour on them and wants
``--data=folder:<CIFAR-10 as JPEG files>``; ``full`` wants an accelerator and CIFAR-10. The runs of
``cpu`` are two of the variants of ``remedies.py``: ``--runs`` names that study's.
"""

import pathlib

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

CLAIMS = {
    "E4-skew": Claim(
        "Uneven padding makes the kernels of strided layers lean to the bottom right.", of="E4"
    ),
    "E4-score": Claim(
        "Uneven padding lowers the score of strided layers, also beside their own stage.", of="E4"
    ),
    "E4-even": Claim("Where padding is even, strided layers lean to no side.", of="E4"),
    "E4-depth": Claim("The deficit of strided layers is larger in deeper stages.", of="E4"),
}


def measures(first: str, last: str) -> dict[str, Measure]:
    """The measures, given the first and the last strided layer."""
    strided, internal = ("strided",), ("internal",)
    return {
        "accuracy": m.accuracy(),
        "score_strided": m.mean_over("score", strided, "mean score of the strided layers"),
        "E_strided": m.mean_over("E", strided, "mean odd part of the strided layers"),
        "skew_strided": m.mean_over(
            m.towards_bottom_right, strided, "mean skew of the strided layers, to the bottom right"
        ),
        "deficit": m.deficit("score of the same stage's layers minus that of the strided layer"),
        "deficit_first": m.deficit(f"the same, of {first} alone", first),
        "deficit_last": m.deficit(f"the same, of {last} alone", last),
        "score_internal": m.mean_over("score", internal, "mean score of the internal layers"),
        "skew_internal": m.mean_over(
            m.towards_bottom_right,
            internal,
            "mean skew of the internal layers, likewise",
        ),
        "score_centered_strided": m.mean_over(
            "score_centered", strided, "mean score of the strided layers without the offset"
        ),
        "dc_share_strided": m.mean_over(
            "dc_share", strided, "share of the offset in the strided layers"
        ),
    }


def contrasts(even: str, odd: str, mark: str = "") -> dict[str, Contrast]:
    """The tests of one network at an even and an odd size."""

    def differ(claim: str, measure: str, expected: str, smallest: float, meaning: str) -> Contrast:
        terms = ((1.0, even, measure), (-1.0, odd, measure))
        return Contrast(claim, f"{meaning}, {even} − {odd}", terms, expected, smallest)

    tests = {
        "skew": differ("E4-skew", "skew_strided", "above", 0.05, "skew of strided layers"),
        "odd_part": differ("E4-skew", "E_strided", "above", 0.03, "odd part of strided layers"),
        "score": differ("E4-score", "score_strided", "below", 0.03, "score of strided layers"),
        "deficit": differ("E4-score", "deficit", "above", 0.03, "deficit of strided layers"),
        "no_skew_where_even": Contrast(
            "E4-even", f"skew of strided layers, {odd}", ((1.0, odd, "skew_strided"),), "zero", 0.1
        ),
        "deeper": Contrast(
            "E4-depth",
            f"deficit of the last strided layer − that of the first, {even}",
            ((1.0, even, "deficit_last"), (-1.0, even, "deficit_first")),
            "above",
            0.03,
        ),
    }
    return {f"{name}{mark}": test for name, test in tests.items()}


CONFOUNDS = {
    "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share_strided", "score_centered_strided"),
    "Another input size is another task, and scaling blurs: the layers of stride 1, which padding "
    "treats alike at both sizes, would show it.": ("score_internal", "skew_internal"),
}


def smoke() -> Study:
    base = training.default()
    base.epochs, base.batch_size = 60.0, 64
    base.model.update({"name": "small_cnn", "width": 16, "depth": 7, "strided": (3, 5)})
    base.data.source, base.data.shift = "digits", 1
    base.optimizer.weight_decay = 5e-3
    base.log_every = 200
    base.eval_every_epochs = base.checkpoint_every_epochs = 60.0
    return Study(
        name="downsampling",
        size="smoke",
        title="Does uneven padding skew strided layers?",
        data="scikit-learn's digits, scaled",
        base=base,
        variants={"even12": {"data.image_size": 12}, "odd13": {"data.image_size": 13}},
        seeds=(0, 1, 2, 3, 4, 5),
        measures=measures("conv3", "conv5"),
        claims=CLAIMS,
        contrasts=contrasts("even12", "odd13"),
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "skew_x", "skew_y"),
        trajectories=("score",),
        cost=(15.0, "as on two cores of a shared x86 server"),
    )


def cpu() -> Study:
    remedies = studies.load_study(pathlib.Path(__file__).with_name("remedies.py"), "cpu")
    # Both are scaled down, so that neither is sharper than the other.
    sizes = ("even16", "odd17")
    return Study(
        name="downsampling",
        size="cpu",
        title="Does uneven padding skew strided layers?",
        data=remedies.data,
        base=remedies.base,
        variants={name: remedies.variants[name] for name in sizes},
        seeds=remedies.seeds,
        measures=measures("conv3", "conv5"),
        claims=CLAIMS,
        contrasts=contrasts(*sizes),
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "skew_x", "skew_y"),
        trajectories=("score",),
        cost=remedies.cost,
    )


def full() -> Study:
    base = training.default()
    base.epochs, base.batch_size = 160.0, 128
    base.model.update({"name": "cifar_resnet20"})
    base.data.source = "tfds:cifar10"
    base.data.shift, base.data.flip = 4, "horizontal"
    base.optimizer.weight_decay = 5e-4
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 200, 10.0, 10.0
    return Study(
        name="downsampling",
        size="full",
        title="Does uneven padding skew strided layers?",
        data="CIFAR-10, scaled",
        base=base,
        variants={
            f"{'odd' if size % 2 else 'even'}{size}": {"data.image_size": size}
            for size in (28, 29, 32, 33)
        },
        seeds=(0, 1, 2, 3, 4, 5),
        measures=measures("layer2_0/conv1", "layer3_0/conv1"),
        claims=CLAIMS,
        contrasts=contrasts("even28", "odd29", "_28") | contrasts("even32", "odd33", "_32"),
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "skew_x", "skew_y"),
        trajectories=("score",),
    )


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "full": full})
