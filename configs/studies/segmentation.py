"""E10: is segmentation steadier under shifts once the mark of uneven padding is gone?

python -m kernsym_jax.study --study=configs/studies/segmentation.py --workdir=runs/segmentation \\
    --data=masks:<path>/camvid_240x180.tar.gz

A U-Net that steps down by strided convolutions with zero padding, at a size at which every step is
uneven; with each remedy; and at the size one pixel larger, at which none is. Each remedy has one
primary test, of mASSC (agreement of the answers under shifts). Equivalence tests of the mean IoU
stand beside it.

The pictures are CamVid's street scenes, reduced. ``smoke`` (36×48, 3 seeds) takes about five
minutes on two cores and ``cpu`` (12 seeds) about half an hour; ``gpu`` (72×96) takes about ten on a
GPU, and ``full`` (184×240, wider) some hours.
"""

from collections.abc import Mapping

from kernsym_jax import studies, training
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Contrast, Measure, Pilot, Study
from kernsym_jax.studies import measures as m

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip

# Seconds per run, and where.
COSTS = {
    "smoke": (15.0, "as on one core of a shared x86 server"),
    "cpu": (22.0, "as on one core of a shared x86 server"),
}

REMEDIES: dict[str, Mapping[str, object]] = {
    "odd": {},
    "partial": {"model.padding": "partial"},
    "reflect": {"model.padding": "reflect"},
    "blur": {"model.downsample": "blur"},
    "sbpool": {"model.downsample": "sbpool"},
    "aps_circular": {"model.downsample": "aps", "model.padding": "circular"},
}

TEXTS = {
    "odd": "A size at which no step is uneven",
    "partial": "Partial convolution",
    "reflect": "Reflection padding",
    "blur": "Anti-aliasing (BlurPool)",
    "sbpool": "SBPool",
    "aps_circular": "Adaptive polyphase sampling with circular padding",
}
CLAIMS = {
    f"E10-{name}": Claim(
        f"{text} keeps more pixels' classes under shifts (mASSC).",
        of="E10",
        primary=f"shifts_{name}",
    )
    for name, text in TEXTS.items()
}
LAYER_COLUMNS = (
    "order", "layer", "kind", "role", "shape", "stride", "padding", "score", "score_centered",
    "null_mean", "dc_share", "E", "sig_x", "sig_y", "sig_p", "uneven_h", "uneven_w",
)  # fmt: skip
PILOT_SEEDS = "seeds 100 to 101 of size cpu"
PILOTS = {
    "shifts_odd": Pilot(0.0338, 0.014, PILOT_SEEDS),
    "shifts_partial": Pilot(-0.0375, 0.0031, PILOT_SEEDS),
    "shifts_reflect": Pilot(0.0713, 0.022, PILOT_SEEDS),
    "shifts_blur": Pilot(0.034, 0.014, PILOT_SEEDS),
    "shifts_sbpool": Pilot(0.051, 0.027, PILOT_SEEDS),
    "shifts_aps_circular": Pilot(0.0813, 0.019, PILOT_SEEDS),
}


def measures(depth: int) -> dict[str, Measure]:
    """Returns the measures, given the levels of the U-Net."""
    steps = tuple(f"down{level}/conv1" for level in range(2, depth + 1))
    return {
        "accuracy": m.accuracy(),
        "mean_iou": Measure("mean IoU", lambda run: run.summary["eval_mean_iou"]),
        "score": m.at_layers("score", steps, "mean score of the layers that step down"),
        "E": m.at_layers("E", steps, "their mean odd part"),
        "odd_z": m.at_layers(m.odd_size, steps, "their odd moment, in sd"),
        "signature": m.at_layers(m.signature_diagonal, steps, "signature, to the bottom right"),
        "score_centered": m.at_layers("score_centered", steps, "their score without the offset"),
        "dc_share": m.at_layers("dc_share", steps, "share of the offset in them"),
        "shifts": m.shift_consistency("pixels as they were under zero-filled shifts (mASSC)"),
        "fliplr": m.flip_consistency("fliplr", meaning="pixels as they were under the mirror"),
        "flipud": m.flip_consistency("flipud", meaning="the same under the upside-down flip"),
    }


def contrasts() -> dict[str, Contrast]:
    """Returns the tests of each remedy beside zero padding."""
    plans = {
        "shifts": ("shifts", "above", 0.01),
        "flips": ("fliplr", "above", 0.01),
        "iou": ("mean_iou", "zero", 0.03),
        "odd_z": ("odd_z", "below", 0.5),
    }
    tests = {}
    for name in REMEDIES:
        for test, (measure, expected, smallest) in plans.items():
            terms = ((1.0, name, measure), (-1.0, "zero", measure))
            meaning = f"{measure}, {name} − zero"
            key = f"{test}_{name}"
            tests[key] = Contrast(f"E10-{name}", meaning, terms, expected, smallest)
    return tests


def study(
    size: str,
    even: tuple[int, int],
    reach: int,
    seeds: int,
    epochs: float,
    width: int,
    depth: int,
) -> Study:
    """Returns the study of one U-Net at one size of pictures (height, width)."""
    base = training.default()
    base.epochs, base.batch_size, base.eval_batch_size = epochs, 8, 32
    base.model.update({"name": "unet", "width": width, "depth": depth})
    base.data.source, base.data.void = "masks:data/camvid_240x180.tar.gz", (11,)
    base.data.classes, base.data.flip = CLASSES, "horizontal"
    base.optimizer.warmup_epochs = 2.0
    base.consistency.images = 0
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = 45, epochs, epochs
    odd = tuple(pixels + 1 for pixels in even)
    return Study(
        name="segmentation",
        size=size,
        title="Is segmentation steadier under shifts once the mark of uneven padding is gone?",
        data=f"CamVid at {even[0]}×{even[1]}",
        base=base,
        variants={
            "zero": {"data.scale_to": even},
            **{
                name: {"data.scale_to": odd if name == "odd" else even, **changes}
                for name, changes in REMEDIES.items()
            },
        },
        seeds=tuple(range(seeds)),
        measures=measures(depth),
        claims=CLAIMS,
        contrasts=contrasts(),
        pilots=PILOTS if size == "cpu" else {},
        consistency=Consistency(Shifts("zero", -reach, reach, draws=5)),
        confounds={
            "A network that is right more often is steadier, too: its accuracy and mean IoU.": (
                "accuracy",
                "mean_iou",
            ),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score without it.": ("dc_share", "score_centered"),
        },
        layer_figures=("score", "E", "sig_x", "sig_y"),
        layer_columns=LAYER_COLUMNS,
        roles=m.ORDINARY,
        trajectories=("score",),
        cost=COSTS.get(size),
    )


def smoke() -> Study:
    return study("smoke", (36, 48), 4, 3, 8.0, 4, 3)


def cpu() -> Study:
    return study("cpu", (36, 48), 4, 12, 12.0, 4, 3)


def gpu() -> Study:
    return study("gpu", (72, 96), 8, 6, 20.0, 8, 4)


def full() -> Study:
    return study("full", (184, 240), 16, 12, 100.0, 32, 4)


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "gpu": gpu, "full": full})
