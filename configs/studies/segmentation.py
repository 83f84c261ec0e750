"""E10: is segmentation steadier under shifts and flips once the padding skew is gone?

python -m kernsym_jax.study --study=configs/studies/segmentation.py --workdir=runs/segmentation \\
    --data=masks:<path>/camvid_240x180.tar.gz

A U-Net that steps down by strided convolutions with zero padding, at a size at which every step is
uneven; with each remedy; and at the size one pixel larger, at which none is. The pictures are
CamVid's street scenes, reduced: ``smoke`` (36×48) takes about five minutes on two cores, ``cpu``
(72×96) about an hour and a half; ``full`` (184×240, wider) wants an accelerator.
"""

from collections.abc import Mapping

from kernsym_jax import studies, training
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import Claim, Consistency, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip

# Seconds a run takes, and where.
COSTS = {
    "smoke": (15.0, "as on one core of a shared x86 server"),
    "cpu": (240.0, "as on two busy cores of a shared x86 server"),
}

REMEDIES: dict[str, Mapping[str, object]] = {
    "odd": {},
    "partial": {"model.padding": "partial"},
    "reflect": {"model.padding": "reflect"},
    "blur": {"model.downsample": "blur"},
    "sbpool": {"model.downsample": "sbpool"},
    "aps_circular": {"model.downsample": "aps", "model.padding": "circular"},
}

CLAIMS = {
    "E10-score": Claim(
        "At a size at which no step is uneven, the layers that step down are more symmetric.",
        of="E10",
    ),
    "E10-shifts": Claim("Every remedy leaves more pixels as they are under shifts.", of="E10"),
    "E10-flips": Claim("Every remedy leaves more pixels as they are under the mirror.", of="E10"),
    "E10-iou": Claim("None of them changes the mean IoU by three points.", of="E10"),
}


def measures(depth: int) -> dict[str, Measure]:
    """The measures, given the levels of the U-Net."""
    steps = tuple(f"down{level}/conv1" for level in range(2, depth + 1))
    return {
        "accuracy": m.accuracy(),
        "mean_iou": Measure("mean IoU", lambda run: run.summary["eval_mean_iou"]),
        "score": m.at_layers("score", steps, "mean score of the layers that step down"),
        "E": m.at_layers("E", steps, "their mean odd part"),
        "skew": m.at_layers(m.towards_bottom_right, steps, "their mean skew, to the bottom right"),
        "score_centered": m.at_layers("score_centered", steps, "their score without the offset"),
        "dc_share": m.at_layers("dc_share", steps, "share of the offset in them"),
        "shifts": m.shift_consistency("pixels as they were under zero-filled shifts (mASSC)"),
        "fliplr": m.flip_consistency("fliplr", meaning="pixels as they were under the mirror"),
        "flipud": m.flip_consistency("flipud", meaning="the same under the upside-down flip"),
    }


def contrasts() -> dict[str, Contrast]:
    """Each remedy beside zero padding."""

    def beside_zero(
        claim: str, name: str, measure: str, expected: str, smallest: float
    ) -> Contrast:
        terms = ((1.0, name, measure), (-1.0, "zero", measure))
        return Contrast(claim, f"{measure}, {name} − zero", terms, expected, smallest)

    tests = {"score_odd": beside_zero("E10-score", "odd", "score", "above", 0.03)}
    for name in REMEDIES:
        tests[f"shifts_{name}"] = beside_zero("E10-shifts", name, "shifts", "above", 0.01)
        tests[f"flips_{name}"] = beside_zero("E10-flips", name, "fliplr", "above", 0.01)
        tests[f"iou_{name}"] = beside_zero("E10-iou", name, "mean_iou", "zero", 0.03)
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
    """The study of one U-Net at one size of pictures (height, width)."""
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
        title="Is segmentation steadier under shifts and flips once the padding skew is gone?",
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
        consistency=Consistency(Shifts("zero", -reach, reach, draws=5)),
        confounds={
            "A network that is right more often is steadier, too: its accuracy and mean IoU.": (
                "accuracy",
                "mean_iou",
            ),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score without it.": ("dc_share", "score_centered"),
        },
        layer_figures=("score", "E", "skew_x", "skew_y"),
        roles=m.ORDINARY,
        trajectories=("score",),
        cost=COSTS.get(size),
    )


def smoke() -> Study:
    return study("smoke", (36, 48), 4, 3, 8.0, 4, 3)


def cpu() -> Study:
    return study("cpu", (72, 96), 8, 3, 25.0, 8, 4)


def full() -> Study:
    return study("full", (184, 240), 16, 5, 100.0, 32, 4)


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "full": full})
