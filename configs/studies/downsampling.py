"""E4: does uneven padding leave its mark on strided layers?

python -m kernsym_jax.study --study=configs/studies/downsampling.py --workdir=runs/downsampling

A plain network with three strides, on maps of 16, 8, 4 and 2 pixels. Zero padding leaves the last
row and column of each map unseen. ``same`` is the mirror image, with the same data and size: it
pads at the far side alone. At 17 pixels nothing is unseen. The padding signature should point to
the bottom right with ``zero``, to the top left with ``same``, and nowhere at 17 pixels.

``smoke`` takes 3 minutes on two cores; ``cpu`` about half an hour. Both want Fashion-MNIST (the
Debian package dataset-fashion-mnist). ``cpu`` also wants the JPEG copy of CIFAR-10 as
``data/cifar10_jpeg.tar.gz``, and so does ``gpu``, which trains ResNet-20 and ResNet-18 at 32 and 33
pixels. ``full`` wants CIFAR-10 as a TensorFlow data set and an accelerator.
"""

from collections.abc import Sequence

import ml_collections

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, FinishedRun, Measure, Pilot, Study
from kernsym_jax.studies import measures as m

FASHION = "idx:/usr/share/datasets/fashion-mnist"
CIFAR = "folder:data/cifar10_jpeg.tar.gz"
STEPS = ("conv2", "conv3", "conv4")
"""The strided layers of the small network; the first convolution keeps the size."""

CLAIMS = {
    "E4-signature": Claim(
        "Uneven padding makes the weights of strided layers larger away from the over-exposed "
        "side: the signature turns round when the padding does.",
        of="E4",
        primary="signature",
    ),
    "E4-odd": Claim(
        "Uneven padding raises the odd part of the mean kernels of the last strided layers.",
        of="E4",
        primary="odd_part",
    ),
    "E4-even": Claim(
        "Where padding is even, strided layers have no signature.", of="E4", primary="no_signature"
    ),
    "E4-depth": Claim(
        "The loss of symmetry by uneven padding is larger in the last strided layer than in the "
        "first.",
        of="E4",
        primary="deeper",
    ),
}
CONFOUNDS = {
    "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share", "score_centered"),
    "Another input size is another task. `zero` and `same` differ in nothing but the side.": (
        "accuracy",
    ),
}


def measures(steps: Sequence[str]) -> dict[str, Measure]:
    """Returns the measures, given the strided layers in order.

    Args:
      steps: names of the strided layers; a network may lack some of them.
    """

    def strided(figure: m.Figure, meaning: str, chosen: slice = slice(None)) -> Measure:
        def of(run: FinishedRun) -> float | None:
            rows = [row for row in run.table.rows if row["layer"] in steps]
            return m.mean_figure(rows[chosen], figure)

        return Measure(meaning, of)

    first, last, two = slice(1), slice(-1, None), slice(-2, None)
    return {
        "accuracy": m.accuracy(),
        "signature": strided(
            m.signature_diagonal, "signature of the strided layers, to the bottom right"
        ),
        "signature_last": strided(m.signature_diagonal, "that of the last one", last),
        "E": strided("E", "odd part of the last two strided layers", two),
        "odd_z": strided(m.odd_size, "odd moment of the strided layers, in sd"),
        "score": strided("score", "score of the strided layers"),
        "score_first": strided("score", "score of the first strided layer", first),
        "score_last": strided("score", "score of the last strided layer", last),
        "score_centered": strided("score_centered", "score without the offset"),
        "dc_share": strided("dc_share", "share of the offset"),
    }


def contrasts(sets: Sequence[tuple[str, int]]) -> dict[str, Contrast]:
    """Returns the tests over some sets of images: means over the sets, and each set by itself.

    Args:
      sets: (prefix of the variants, even size) of each set.
    """

    def mean(terms: Sequence[tuple[float, str, str]], only: str | None = None) -> tuple:
        chosen = [(p, size) for p, size in sets if only is None or p == only]
        return tuple(
            (weight / len(chosen), f"{prefix}{variant.format(even=size, odd=size + 1)}", measure)
            for prefix, size in chosen
            for weight, variant, measure in terms
        )

    even, same, odd = "zero{even}", "same{even}", "zero{odd}"
    plans = {
        "signature": ("E4-signature", ((1.0, even, "signature"), (-1.0, same, "signature")),
                      "above", 0.02, "signature of the strided layers, zero − same padding"),
        "odd_part": ("E4-odd", ((1.0, even, "E"), (-1.0, odd, "E")),
                     "above", 0.05, "odd part of the last two strided layers, even − odd size"),
        "no_signature": ("E4-even", ((1.0, odd, "signature"),),
                         "zero", 0.01, "signature of the strided layers, odd size"),
        "deeper": ("E4-depth",
                   ((1.0, odd, "score_last"), (-1.0, even, "score_last"),
                    (-1.0, odd, "score_first"), (1.0, even, "score_first")),
                   "above", 0.05, "score, odd − even size: last strided layer − first"),
    }  # fmt: skip
    secondary = {
        "odd_moment": ("E4-odd", ((1.0, even, "odd_z"), (-1.0, odd, "odd_z")),
                       "above", 0.5, "odd moment of the strided layers, even − odd size"),
        "last": ("E4-signature", ((1.0, even, "signature_last"), (-1.0, same, "signature_last")),
                 "above", 0.02, "signature of the last strided layer, zero − same padding"),
    }  # fmt: skip
    tests = {}
    for name, (claim, terms, expected, smallest, meaning) in {**plans, **secondary}.items():
        tests[name] = Contrast(claim, meaning, mean(terms), expected, smallest)
        if len(sets) > 1:
            for prefix, _ in sets:
                own = mean(terms, prefix)
                text = f"{meaning}, {prefix.rstrip('_')} alone"
                tests[f"{prefix}{name}"] = Contrast(claim, text, own, expected, smallest)
    return tests


def small_base() -> ml_collections.ConfigDict:
    """Returns the config of the small network of the studies, on Fashion-MNIST at 16 pixels."""
    base = training.default()
    base.model.update(
        {"name": "small_cnn", "width": 16, "max_width": 64, "depth": 4, "strided": (2, 3, 4)}
    )
    base.epochs, base.batch_size, base.eval_batch_size = 2.0, 128, 500
    base.data.source, base.data.image_size = FASHION, 16
    base.optimizer.weight_decay = 2e-3
    base.consistency.images = 0
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 468, 2.0, 2.0
    return base


def variants(prefix: str, even: int, settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """Returns zero padding at both sizes and the mirror image of its unevenness."""
    return {
        f"{prefix}zero{even}": {"data.image_size": even, **settings},
        f"{prefix}same{even}": {"data.image_size": even, "model.padding": "same", **settings},
        f"{prefix}zero{even + 1}": {"data.image_size": even + 1, **settings},
    }


def study(
    size: str, data: str, base: ml_collections.ConfigDict, seeds: int, **more: object
) -> Study:
    return Study(
        name="downsampling",
        size=size,
        title="Does uneven padding leave its mark on strided layers?",
        data=data,
        base=base,
        seeds=tuple(range(seeds)),
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "sig_x", "sig_y"),
        trajectories=("score", "sig_x"),
        **more,  # type: ignore[arg-type]
    )


PILOTS = {
    "signature": Pilot(0.0382, 0.003, "seeds 100 to 102 of size cpu"),
    "odd_part": Pilot(0.402, 0.037, "seeds 100 to 102 of size cpu"),
    "no_signature": Pilot(-0.00015, 0.0021, "seeds 100 to 102 of size cpu"),
    "deeper": Pilot(0.136, 0.029, "seeds 100 to 102 of size cpu"),
}


def smoke() -> Study:
    tests = contrasts([("", 16)])
    # Three seeds decide about the signature alone; the other claims want more.
    wanted = {name: test for name, test in tests.items() if test.claim == "E4-signature"}
    return study(
        "smoke",
        "Fashion-MNIST at 16 and 17 pixels",
        small_base(),
        3,
        variants=variants("", 16, {}),
        measures=measures(STEPS),
        claims={"E4-signature": CLAIMS["E4-signature"]},
        contrasts=wanted,
        cost=(25.0, "as on two busy cores of a shared x86 server"),
    )


def cpu() -> Study:
    cifar = {"data.source": CIFAR, "data.shift": 1}
    once = {"epochs": 1.0, "eval_every_epochs": 1.0, "checkpoint_every_epochs": 1.0}
    sets = [("fashion_", 16), ("cifar_", 16)]
    larger = variants("fashion_", 28, once)
    return study(
        "cpu",
        "Fashion-MNIST and CIFAR-10 (JPEG copy) at 16 and 17 pixels",
        small_base(),
        8,
        variants={
            **variants("fashion_", 16, {}),
            **variants("cifar_", 16, cifar),
            # At 29 pixels the third stage is uneven again (29, 15, 8, 4), at 33 none is.
            **{name: larger[name] for name in ("fashion_zero28", "fashion_zero29")},
            "fashion_zero33": {"data.image_size": 33, **once},
        },
        measures=measures(STEPS),
        claims=CLAIMS,
        contrasts=contrasts(sets)
        | {
            f"size{size}": Contrast(
                "E4-signature",
                f"signature of the strided layers at {size} pixels",
                ((1.0, f"fashion_zero{size}", "signature"),),
                expected,
                0.01,
            )
            for size, expected in ((28, "above"), (29, "above"), (33, "zero"))
        },
        pilots=PILOTS,
        cost=(30.0, "as on two busy cores of a shared x86 server"),
    )


def gpu() -> Study:
    base = training.default()
    base.epochs, base.batch_size = 10.0, 128
    base.model.update({"name": "cifar_resnet20"})
    base.data.source = CIFAR
    base.data.shift, base.data.flip = 4, "horizontal"
    base.optimizer.weight_decay = 5e-4
    base.consistency.images = 0
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 390, 10.0, 10.0
    return resnets("gpu", base, 5)


def full() -> Study:
    base = gpu().base.copy_and_resolve_references()
    base.data.source = "tfds:cifar10"
    base.epochs, base.eval_every_epochs, base.checkpoint_every_epochs = 160.0, 10.0, 10.0
    return resnets("full", base, 8)


def resnets(size: str, base: ml_collections.ConfigDict, seeds: int) -> Study:
    """Returns the study of CIFAR ResNet-20 and of ResNet-18's blocks on small images.

    They have two and three strided stages.
    """
    sets = [("resnet20_", 32), ("resnet18_", 32)]
    resnet18 = {"model.blocks": (2, 2, 2, 2), "model.width": 64, "model.dtype": "bfloat16"}
    return study(
        size,
        f"CIFAR-10{' (JPEG copy)' if size == 'gpu' else ''} at 32 and 33 pixels",
        base,
        seeds,
        variants={**variants("resnet20_", 32, {}), **variants("resnet18_", 32, resnet18)},
        measures=measures([f"layer{stage}_0/conv1" for stage in (2, 3, 4)]),
        claims=CLAIMS,
        contrasts=contrasts(sets),
    )


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "gpu": gpu, "full": full})
