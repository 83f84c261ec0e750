"""E1: are AlexNet's mean kernels symmetric whatever it is trained on?

python -m kernsym_jax.study --study=configs/studies/datasets.py --workdir=runs/datasets

AlexNet on several sets of images. Scores are centred, because a shared offset alone looks
symmetric, and stand beside random kernels of the same size. ``smoke`` is a narrow network on
scanned digits and generated textures and takes about four minutes on two cores. ``cpu`` and ``gpu``
have Fashion-MNIST (Debian's package dataset-fashion-mnist), CIFAR-10
(``data/cifar10_jpeg.tar.gz``) and textures, all scaled to 63×63, and take about twenty minutes on
two cores; ``full`` has ImageNet, Places365 and CIFAR-100 at 224×224 and wants accelerators.
"""

import itertools

import ml_collections

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, Measure, Pilot, Study
from kernsym_jax.studies import measures as m

INNER, FIRST = ("internal",), ("first",)

PILOT_SEEDS = "seeds 100 to 101 of size cpu"
PILOTS = {
    "inner_cifar10": Pilot(0.0507, 0.0075, PILOT_SEEDS),
    "inner_fashion_mnist": Pilot(0.123, 0.072, PILOT_SEEDS),
    "inner_textures": Pilot(0.116, 0.038, PILOT_SEEDS),
    "alike": Pilot(-0.0719, 0.079, PILOT_SEEDS),
}


def claims(names: list[str]) -> dict[str, Claim]:
    """Returns one claim per set of images, and one about the first two."""
    found = {
        f"E1-{name}": Claim(
            f"AlexNet's inner layers, trained on {name}, are more symmetric than random kernels.",
            of="E1",
            primary=f"inner_{name}",
        )
        for name in names
    }
    found["E1-alike"] = Claim(
        f"They are as symmetric on {names[0]} as on {names[1]}.", of="E1", primary="alike"
    )
    return found


def measures() -> dict[str, Measure]:
    return {
        "accuracy": m.accuracy(),
        "inner": m.over_chance(INNER, -1, "centred score − chance, inner layers", centered=True),
        "first": m.over_chance(FIRST, -1, "centred score − chance, first layer", centered=True),
        "start": m.over_chance(INNER, 0, "the same of inner layers at the start", centered=True),
        "inner_plain": m.over_chance(INNER, -1, "score − chance, inner layers, not centred"),
        "dc_share": m.mean_over("dc_share", INNER, "share of the offset in the inner layers"),
    }


def contrasts(names: list[str]) -> dict[str, Contrast]:
    """Returns the tests on each set of images, and on pairs of sets."""
    tests = {}
    for name in names:
        own = f"E1-{name}"
        inner = (1.0, name, "inner")
        for key, meaning, terms in (
            ("inner", "centred score − chance, inner layers", (inner,)),
            ("first", "the same, minus that of the first layer", (inner, (-1.0, name, "first"))),
            ("plain", "score − chance, not centred", ((1.0, name, "inner_plain"),)),
        ):
            test = f"{key}_{name}"
            tests[test] = Contrast(own, f"{meaning}, {name}", terms, "above", 0.05)
    for one, other in itertools.combinations(names, 2):
        key = "alike" if [one, other] == names[:2] else f"{one}_{other}"
        tests[key] = Contrast(
            "E1-alike",
            f"centred score − chance, {one} − {other}",
            ((1.0, one, "inner"), (-1.0, other, "inner")),
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
    """Returns the study of one AlexNet on the sets of images that the variants name."""
    return Study(
        name="datasets",
        size=size,
        title="Are AlexNet's mean kernels symmetric whatever it is trained on?",
        data=data,
        base=base,
        variants=variants,
        seeds=tuple(range(seeds)),
        measures=measures(),
        claims=claims(list(variants)),
        contrasts=contrasts(list(variants)),
        pilots=PILOTS if size == "cpu" else {},
        confounds={
            "A network that has learnt less may be less symmetric: its accuracy.": ("accuracy",),
            "A shared offset of the cells alone gives a score near 1: the offset's share, and the "
            "score with it.": ("dc_share", "inner_plain"),
            "Chance depends on the kernel's size, so layers are compared by what they are above "
            "it; initialisation is at chance.": ("start",),
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


def cpu(size: str = "cpu") -> Study:
    base = small_base(16, 256) if size == "cpu" else small_base(64, 1024)
    base.epochs, base.log_every = 3.0, 400
    base.eval_every_epochs = base.checkpoint_every_epochs = 3.0
    variants: dict[str, dict[str, object]] = {
        "cifar10": {"data.source": "folder:data/cifar10_jpeg.tar.gz"},
        "fashion_mnist": {"data.source": "idx:/usr/share/datasets/fashion-mnist"},
        "textures": {"data.source": "textures:group=none,size=32,channels=3,n=50000,test=5000"},
    }
    names = "CIFAR-10 (JPEG copy), Fashion-MNIST and generated textures, scaled"
    return study(size, names, base, variants, 6)


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
    return studies.pick_size(
        size, {"smoke": smoke, "cpu": cpu, "gpu": lambda: cpu("gpu"), "full": full}
    )
