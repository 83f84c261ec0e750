"""E5: which paddings and downsamplings free strided layers of the mark of uneven padding?

python -m kernsym_jax.study --study=configs/studies/remedies.py --workdir=runs/remedies

The network of ``downsampling.py`` with zero padding at 16 pixels, where every strided layer is
uneven, and with each remedy. Grid remedies (odd size, circular padding, blur, max-pooling, SBPool,
APS) change where windows lie; value remedies (reflection, replication, partial convolution) change
what they see at the border. TensorFlow's SAME is not among them: it is uneven at the other side.

Every claim is about the odd moment of the mean kernels of the layers that step down, in standard
deviations of its null. Each remedy should lower it. ``smoke`` takes 5 minutes on two cores, ``cpu``
about 40. ``smoke`` trains on Fashion-MNIST (the Debian package dataset-fashion-mnist), ``cpu``
on the JPEG copy of CIFAR-10 (``data/cifar10_jpeg.tar.gz``); ``gpu`` and ``full`` add LPS.
"""

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from kernsym_jax import studies
from kernsym_jax.studies import Claim, Contrast, Measure, Pilot, Study
from kernsym_jax.studies import measures as m

REMEDIES = {
    "odd": "An odd input size, at which no row or column is unseen,",
    "circular": "Circular padding",
    "blur": "Anti-aliasing (BlurPool)",
    "pool": "Max-pooling in place of strides",
    "sbpool": "SBPool",
    "aps": "Adaptive polyphase sampling",
    "lps": "Learnable polyphase sampling",
    "reflect": "Reflection padding",
    "replicate": "Replication padding",
    "partial": "Partial convolution",
}
CIFAR = "folder:data/cifar10_jpeg.tar.gz"
DOWNSAMPLINGS = ("blur", "sbpool", "aps", "lps")
STEPS = ("conv2", "conv3", "conv4")
SMALLEST = 0.5
"""The smallest change of the odd moment that matters, in standard deviations of its null."""

CONFOUNDS = {
    "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share", "score_centered"),
}
PILOT_SEEDS = "seeds 100 to 101 of size cpu"
PILOTS = {
    "odd": Pilot(-5.81, 0.089, PILOT_SEEDS),
    "circular": Pilot(-4.84, 0.63, PILOT_SEEDS),
    "blur": Pilot(-5.91, 0.011, PILOT_SEEDS),
    "pool": Pilot(-5.69, 1.1, PILOT_SEEDS),
    "sbpool": Pilot(-5.52, 0.22, PILOT_SEEDS),
    "aps": Pilot(-6.05, 0.097, PILOT_SEEDS),
    "reflect": Pilot(-5.02, 0.71, PILOT_SEEDS),
    "replicate": Pilot(-4.85, 1.2, PILOT_SEEDS),
    "partial": Pilot(0.445, 0.18, PILOT_SEEDS),
}


def measures(steps: Sequence[str]) -> dict[str, Measure]:
    """Returns the measures of the layers that step down, by name.

    A convolution before a blur or a choice of phases has no stride of its own.
    """
    return {
        "accuracy": m.accuracy(),
        "odd_z": m.at_layers(m.odd_size, steps, "odd moment of the layers that step down, in sd"),
        "signature": m.at_layers(
            m.signature_diagonal, steps, "their signature, to the bottom right"
        ),
        "E": m.at_layers("E", steps, "their mean odd part"),
        "score": m.at_layers("score", steps, "their mean score"),
        "score_centered": m.at_layers("score_centered", steps, "their score without the offset"),
        "dc_share": m.at_layers("dc_share", steps, "share of the offset in them"),
    }


def contrasts(names: Sequence[str]) -> dict[str, Contrast]:
    """Returns the tests of each remedy beside zero padding."""
    secondary = {"signature": ("below", 0.01), "E": ("below", 0.05), "score": ("above", 0.03)}
    tests = {}
    for name in names:
        for measure, (expected, smallest) in {"odd_z": ("below", SMALLEST), **secondary}.items():
            key = name if measure == "odd_z" else f"{name}_{measure}"
            terms = ((1.0, name, measure), (-1.0, "zero", measure))
            meaning = f"{measure} of the layers that step down, {name} − zero"
            tests[key] = Contrast(f"E5-{name}", meaning, terms, expected, smallest)
    return tests


def variants(names: Sequence[str], even: int) -> dict[str, Mapping[str, object]]:
    """Returns zero padding and every remedy at an even size, and the next odd size."""
    found: dict[str, Mapping[str, object]] = {"zero": {"data.image_size": even}}
    for name in names:
        if name == "odd":
            found[name] = {"data.image_size": even + 1}
        elif name == "pool":
            found[name] = {"data.image_size": even, "model.pool": True}
        else:
            key = "model.downsample" if name in DOWNSAMPLINGS else "model.padding"
            found[name] = {"data.image_size": even, key: name}
    return found


def study(
    size: str, base: ml_collections.ConfigDict, data: str, even: int, seeds: int,
    names: Sequence[str], steps: Sequence[str],
) -> Study:  # fmt: skip
    return Study(
        name="remedies",
        size=size,
        title="Which remedies free strided layers of the mark of uneven padding?",
        data=data,
        base=base,
        variants=variants(names, even),
        seeds=tuple(range(seeds)),
        measures=measures(steps),
        claims={
            f"E5-{name}": Claim(
                f"{REMEDIES[name]} lowers the odd moment of the layers that step down.",
                of="E5",
                primary=name,
            )
            for name in names
        },
        contrasts=contrasts(names),
        pilots=PILOTS if size == "cpu" else {},
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "sig_x", "sig_y"),
        roles=m.ORDINARY,
        trajectories=("score",),
        cost=(30.0, "as on two busy cores of a shared x86 server") if even == 16 else None,
    )


def get_study(size: str) -> Study:
    plain = studies.load_study(pathlib.Path(__file__).with_name("downsampling.py"), size)
    small = [name for name in REMEDIES if name != "lps"]
    if size in ("smoke", "cpu"):
        names = ["odd", "circular", "reflect"] if size == "smoke" else small
        seeds, data = 3, "Fashion-MNIST at 16 and 17 pixels"
        if size == "cpu":
            # Pilots found an odd moment five times as large as on Fashion-MNIST.
            seeds, data = 8, "CIFAR-10 (JPEG copy) at 16 and 17 pixels"
            plain.base.data.source, plain.base.data.shift = CIFAR, 1
        return study(size, plain.base, data, 16, seeds, names, STEPS)
    # ResNets have strided shortcuts that no pooling replaces.
    names = [name for name in REMEDIES if name != "pool"]
    steps = ("layer2_0/conv1", "layer3_0/conv1")
    return study(size, plain.base, plain.data, 32, len(plain.seeds), names, steps)
