"""E1: are AlexNet's mean kernels symmetric whatever it is trained on?

python -m kernsym_jax.study --study=configs/studies/datasets.py --workdir=runs/datasets

AlexNet on several sets of images. ``smoke`` is a narrow one on scanned digits and generated
textures and takes about four minutes on two cores. ``cpu`` adds Fashion-MNIST (Debian's package
dataset-fashion-mnist) and CIFAR-10 (``data/cifar10_jpeg.tar.gz``), all scaled to 63×63, and takes
about twenty minutes; ``full`` has ImageNet, Places365 and CIFAR-100 at 224×224 and wants
accelerators.
"""

import itertools

import ml_collections

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

INNER, FIRST = ("internal",), ("first",)

CLAIMS = {
    "E1-inner": Claim("AlexNet's inner layers score above chance on every set of images.", of="E1"),
    "E1-first": Claim("They do so by more than its first layer.", of="E1"),
    "E1-alike": Claim("Their mean score is alike, whatever the images.", of="E1"),
}


def measures() -> dict[str, Measure]:
    return {
        "accuracy": m.accuracy(),
        "score_inner": m.mean_over("score", INNER, "mean score of the inner layers"),
        "inner_over_chance": m.over_chance(INNER, -1, "mean score − chance of the inner layers"),
        "first_over_chance": m.over_chance(FIRST, -1, "score − chance of the first layer"),
        "start_over_chance": m.over_chance(INNER, 0, "score − chance at initialisation"),
        "score_centered": m.mean_over("score_centered", INNER, "mean score without the offset"),
        "dc_share": m.mean_over("dc_share", INNER, "share of the offset in the inner layers"),
    }


def contrasts(names: list[str]) -> dict[str, Contrast]:
    """The tests on each set of images, and on each pair of sets."""
    tests = {}
    for name in names:
        tests[f"inner_{name}"] = Contrast(
            "E1-inner",
            f"score of inner layers − chance, {name}",
            ((1.0, name, "inner_over_chance"),),
            "above",
            0.05,
        )
        tests[f"first_{name}"] = Contrast(
            "E1-first",
            f"the same, minus that of the first layer, {name}",
            ((1.0, name, "inner_over_chance"), (-1.0, name, "first_over_chance")),
            "above",
            0.05,
        )
    for one, other in itertools.combinations(names, 2):
        tests[f"{one}_{other}"] = Contrast(
            "E1-alike",
            f"score of inner layers, {one} − {other}",
            ((1.0, one, "score_inner"), (-1.0, other, "score_inner")),
            "zero",
            0.1,
        )
    return tests


def study(
    size: str,
    data: str,
    base: ml_collections.ConfigDict,
    variants: dict[str, dict[str, object]],
    seeds: int,
) -> Study:
    """The study of one AlexNet on the sets of images that the variants name."""
    return Study(
        name="datasets",
        size=size,
        title="Are AlexNet's mean kernels symmetric whatever it is trained on?",
        data=data,
        base=base,
        variants=variants,
        seeds=tuple(range(seeds)),
        measures=measures(),
        claims=CLAIMS,
        contrasts=contrasts(list(variants)),
        confounds={
            "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score without it.": ("dc_share", "score_centered"),
            "Chance depends on the kernel's size, so layers are compared by what they are above "
            "it; initialisation is at chance.": ("start_over_chance",),
        },
        layer_figures=("score", "score_centered", "dc_share"),
        roles=(*FIRST, *INNER),
        trajectories=("score",),
        cost=(70.0, "as on one core of a shared x86 server") if size == "cpu" else None,
    )


def small_base(width: int, hidden: int) -> ml_collections.ConfigDict:
    base = training.default()
    base.model.update({"name": "alexnet", "width": width, "hidden": hidden, "dropout": 0.2})
    base.batch_size, base.eval_batch_size = 64, 500
    base.data.image_size, base.data.shift, base.data.flip = 63, 4, "horizontal"
    # AlexNet has no BatchNorm: larger rates diverge.
    base.optimizer.learning_rate, base.optimizer.clip_norm = 0.03, 1.0
    base.optimizer.warmup_epochs = 0.5
    return base


def smoke() -> Study:
    base = small_base(8, 64)
    base.epochs = base.eval_every_epochs = base.checkpoint_every_epochs = 15.0
    base.log_every = 66
    textures = "textures:group={},size=32,channels=1,classes=6,n=1536,test=384"
    variants: dict[str, dict[str, object]] = {
        "digits": {"data.flip": "none"},
        "textures": {"data.source": textures.format("none")},
        "symmetric_textures": {"data.source": textures.format("d4")},
    }
    return study("smoke", "digits and generated textures, scaled", base, variants, 3)


def cpu() -> Study:
    base = small_base(16, 256)
    base.epochs, base.log_every = 3.0, 400
    base.eval_every_epochs = base.checkpoint_every_epochs = 3.0
    variants: dict[str, dict[str, object]] = {
        "cifar10": {"data.source": "folder:data/cifar10_jpeg.tar.gz"},
        "fashion_mnist": {"data.source": "idx:/usr/share/datasets/fashion-mnist"},
        "textures": {"data.source": "textures:group=none,size=32,channels=3,n=50000,test=5000"},
    }
    names = "CIFAR-10 (JPEG copy), Fashion-MNIST and generated textures, scaled"
    return study("cpu", names, base, variants, 5)


def full() -> Study:
    base = training.default()
    base.model.update({"name": "alexnet"})
    base.epochs, base.batch_size, base.eval_batch_size = 90.0, 256, 500
    base.data.crop_size, base.data.flip = 224, "horizontal"
    base.optimizer.learning_rate, base.optimizer.clip_norm = 0.01, 1.0
    base.optimizer.weight_decay, base.log_every = 1e-4, 1000
    base.eval_every_epochs = base.checkpoint_every_epochs = 10.0
    variants: dict[str, dict[str, object]] = {
        "imagenet": {"data.source": "tfds:imagenet2012"},
        "places365": {"data.source": "tfds:places365_small", "epochs": 30.0},
        "cifar100": {"data.source": "tfds:cifar100", "data.image_size": 256},
    }
    return study("full", "ImageNet, Places365 and CIFAR-100 (scaled)", base, variants, 3)


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "full": full})
