"""E5: which paddings and downsamplings give strided layers their symmetry back?

python -m kernsym_jax.study --study=configs/studies/remedies.py --workdir=runs/remedies

One network with plain strides and zero padding at an even input size, where every strided layer
leaves a row and a column unseen; with every other padding and downsampling at that size; and at the
odd size one pixel larger, where nothing is left unseen. ``valid`` is left out, since small images
would vanish under it, and ``symmetric``, which around 3×3 kernels is ``replicate``. Every run is
evaluated for shift and flip consistency, too. ``smoke`` takes about six minutes on two cores;
``cpu`` takes about an hour on them and wants ``--data=folder:<CIFAR-10 as JPEG files>``; ``full``
wants an accelerator and CIFAR-10, and has ``lps``, too, which takes ten times as long on a CPU.
"""

from collections.abc import Mapping, Sequence

import ml_collections

from kernsym_jax import studies, training
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

REMEDIES = {
    "odd": "An odd input size, at which no row or column is left unseen,",
    "same": "Padding as TensorFlow's SAME",
    "reflect": "Reflection padding",
    "replicate": "Replication padding",
    "circular": "Circular padding",
    "partial": "Partial convolution",
    "blur": "Anti-aliasing (BlurPool)",
    "sbpool": "SBPool",
    "aps": "Adaptive polyphase sampling",
    "lps": "Learnable polyphase sampling",
}
# Seconds a run takes, and where.
COSTS = {
    "smoke": (17.0, "as on one core of a shared x86 server"),
    "cpu": (75.0, "as on one core of a shared x86 server"),
}
DOWNSAMPLINGS = ("blur", "sbpool", "aps", "lps")

CLAIMS = {
    f"E5-{name}": Claim(f"{text} raises the score of the layers that step down.", of="E5")
    for name, text in REMEDIES.items()
}

CONFOUNDS = {
    "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share", "score_centered"),
    "A remedy may change all layers alike: the layers that keep the size.": ("score_internal",),
}


def measures(steps: Sequence[str], others: Sequence[str]) -> dict[str, Measure]:
    """The measures, given the layers that step down and the others that do not see the image."""
    # By name, since a convolution before a blur or a choice of phases has no stride of its own.
    figures = {
        "score": "mean score of the layers that step down",
        "E": "their mean odd part",
        "score_centered": "their mean score without the offset",
        "dc_share": "share of the offset in them",
    }
    both = (*steps, *others)
    return {
        "accuracy": m.accuracy(),
        **{name: m.at_layers(name, steps, meaning) for name, meaning in figures.items()},
        "skew": m.at_layers(m.towards_bottom_right, steps, "their mean skew, to the bottom right"),
        "score_internal": m.at_layers("score", others, "mean score of the internal layers"),
        "score_all": m.at_layers("score", both, "mean score of all of these layers"),
        "d_fliplr": m.at_layers("d_fliplr", both, "their mean distance to the mirror image"),
        "d_flipud": m.at_layers("d_flipud", both, "their mean distance to the upside-down image"),
        "shift_consistency": m.shift_consistency(),
        "fliplr_consistency": m.flip_consistency("fliplr"),
        "flipud_consistency": m.flip_consistency("flipud"),
    }


def contrasts(even: str, odd: str, names: Sequence[str]) -> dict[str, Contrast]:
    """Each remedy beside plain strides with zero padding."""
    tests = {}
    for name in names:
        variant = odd if name == "odd" else name
        terms = ((1.0, variant, "score"), (-1.0, even, "score"))
        meaning = f"score of the layers that step down, {variant} − {even}"
        tests[name] = Contrast(f"E5-{name}", meaning, terms, "above", 0.03)
    return tests


def variants(even: int, names: Sequence[str]) -> dict[str, Mapping[str, object]]:
    """Plain strides at both sizes, and every other padding and downsampling of those names."""
    found: dict[str, Mapping[str, object]] = {
        f"even{even}": {"data.image_size": even},
        f"odd{even + 1}": {"data.image_size": even + 1},
    }
    for name in names:
        if name != "odd":
            key = "model.downsample" if name in DOWNSAMPLINGS else "model.padding"
            found[name] = {"data.image_size": even, key: name}
    return found


def study(
    size: str,
    data: str,
    base: ml_collections.ConfigDict,
    even: int,
    seeds: int,
    consistency: Consistency,
    steps: Sequence[str],
    others: Sequence[str],
) -> Study:
    """The study of one network, given its layers that step down and its other inner ones."""
    names = [name for name in REMEDIES if size == "full" or name != "lps"]
    return Study(
        name="remedies",
        size=size,
        title="Which remedies give strided layers their symmetry back?",
        data=data,
        base=base,
        variants=variants(even, names),
        seeds=tuple(range(seeds)),
        measures=measures(steps, others),
        claims={key: claim for key, claim in CLAIMS.items() if key.removeprefix("E5-") in names},
        contrasts=contrasts(f"even{even}", f"odd{even + 1}", names),
        consistency=consistency,
        confounds=CONFOUNDS,
        layer_figures=("score", "E", "skew_x", "skew_y"),
        roles=m.ORDINARY,
        trajectories=("score",),
        cost=COSTS.get(size),
    )


def small_base() -> ml_collections.ConfigDict:
    base = training.default()
    base.model.update({"name": "small_cnn", "width": 12, "depth": 7, "strided": (3, 5)})
    return base


SMALL_STEPS = ("conv3", "conv5")
SMALL_OTHERS = ("conv2", "conv4", "conv6", "conv7")


def smoke() -> Study:
    base = small_base()
    base.epochs, base.batch_size = 20.0, 64
    base.data.source, base.data.shift = "digits", 1
    base.optimizer.weight_decay = 5e-3
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 110, 5.0, 20.0
    all_test_images = Consistency(Shifts("circular", -1, 1))
    data = "scikit-learn's digits, scaled"
    return study("smoke", data, base, 12, 3, all_test_images, SMALL_STEPS, SMALL_OTHERS)


def cpu() -> Study:
    base = small_base()
    base.epochs, base.batch_size = 4.0, 128
    base.data.source = "folder:data/cifar10_jpeg.tar.gz"
    base.data.shift, base.data.flip = 2, "horizontal"
    base.optimizer.weight_decay = 2e-3
    # Twice in an epoch, so that symmetry and consistency can be compared along the way.
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 195, 0.5, 4.0
    base.consistency.images, base.eval_batch_size = 500, 500
    some = Consistency(Shifts("circular", -2, 2), limit=4000)
    data = "CIFAR-10 (JPEG copy), scaled"
    return study("cpu", data, base, 16, 5, some, SMALL_STEPS, SMALL_OTHERS)


def full() -> Study:
    base = training.default()
    base.epochs, base.batch_size = 160.0, 128
    base.model.update({"name": "cifar_resnet20"})
    base.data.source = "tfds:cifar10"
    base.data.shift, base.data.flip = 4, "horizontal"
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 390, 10.0, 10.0
    base.consistency.images = 1000
    steps = ("layer2_0/conv1", "layer3_0/conv1")
    blocks = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(3)]
    inner = [f"{block}/conv{number}" for block in blocks for number in (1, 2)]
    others = [name for name in inner if name not in steps]
    some = Consistency(Shifts("circular", -3, 3))
    return study("full", "CIFAR-10, scaled", base, 32, 5, some, steps, others)


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "full": full})
