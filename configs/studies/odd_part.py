"""E12 after training: do trained networks need the odd part of their mean kernels?

python -m kernsym_jax.study --study=configs/studies/odd_part.py --workdir=runs/odd_part \\
    --data=data/weights

Nothing is trained. In CIFAR ResNets that others trained, every k×k layer loses the odd part of its
mean kernel: all its slices change by the same kernel, which makes the mean kernel symmetric under
the half turn. As a control every layer takes a random change of the same norm. Both are compared
with the network as it was, in accuracy, shift and flip consistency on test images of the JPEG copy
of CIFAR-10 (``data/cifar10_jpeg.tar.gz``).

The four networks differ in depth alone, so the intervals are over these depths and no others.
``smoke`` takes 200 images and a minute on two cores, ``cpu`` 1,000 and five minutes, ``full`` all.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax import data, evaluation, models, studies, symmetry, weights
from kernsym_jax.studies import Claim, Contrast, FinishedRun, Measure, Network, Study

CIFAR = "folder:data/cifar10_jpeg.tar.gz"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
PAGE = "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/master/pretrained_models"
CHECKSUMS = {
    20: "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    32: "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    44: "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4",
    56: "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
}
IMAGES = {"smoke": 200, "cpu": 1000, "full": 10_000}

CLAIMS = {
    "E12-odd": Claim(
        "Without the odd part of their mean kernels trained networks are as accurate as with it.",
        of="E12",
        primary="odd_accuracy",
    ),
    "E12-odd-shift": Claim(
        "Without it they are more consistent under shifts.", of="E12", primary="odd_shift"
    ),
}


def changed(variables: dict, change: str, seed: int) -> dict:
    """Returns variables whose spatial kernels lost their odd mean, or moved as far at random."""
    spatial = {
        path: np.asarray(weight)
        for path, weight in symmetry.conv_kernels(variables).items()
        if weight.shape[0] * weight.shape[1] > 1
    }
    rng = np.random.default_rng(seed)

    def move(path: tuple, leaf: jax.Array) -> jax.Array:
        name = "/".join(str(key.key) for key in path)
        if change == "none" or name not in spatial:
            return leaf
        mean = spatial[name].mean(axis=(2, 3))
        odd = np.broadcast_to(((mean - mean[::-1, ::-1]) / 2)[..., None, None], leaf.shape)
        if change == "random":
            noise = rng.normal(size=leaf.shape)
            odd = noise * np.linalg.norm(odd) / np.linalg.norm(noise)
        return jnp.asarray(leaf - odd, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(move, variables["params"])
    return {**variables, "params": params}


@functools.lru_cache(maxsize=64)
def answers(path: str, model: str, change: str, count: int) -> dict[str, float]:
    """Returns accuracy and consistency of one network after one change."""
    module = models.create(model, num_classes=10)
    variables = weights.load_into(module, path, (1, 32, 32, 3))
    test = _test_images()
    chosen = np.linspace(0, len(test) - 1, count).round().astype(int)
    images = (test.images[chosen].astype(np.float32) / 255 - MEAN) / STD
    batches = [
        {"image": images[at : at + 200], "label": test.labels[chosen[at : at + 200]]}
        for at in range(0, count, 200)
    ]
    seed = zlib.crc32(f"{model} {change}".encode())
    predict = jax.tree_util.Partial(module.apply, changed(variables, change, seed))
    found = evaluation.measure(predict, batches, evaluation.Shifts("zero", -1, 1), rolled=False)
    flips = evaluation.flip_consistency(found)
    return {
        "accuracy": evaluation.accuracy(found).value,
        "shift": evaluation.shift_consistency(found).value,
        "fliplr": flips["fliplr"]["hard"].value,
        "r180": flips["r180"]["hard"].value,
    }


@functools.lru_cache(maxsize=1)
def _test_images() -> data.ImageSet:
    return data.load(CIFAR, "test")


def measures(count: int) -> dict[str, Measure]:
    meanings = {
        "accuracy": "test accuracy",
        "shift": "shift consistency",
        "fliplr": "mirror consistency",
        "r180": "half-turn consistency",
    }
    states = {"none": "as trained", "odd": "without the odd part", "random": "moved at random"}

    def of(change: str, figure: str) -> Measure:
        def value(run: FinishedRun) -> float | None:
            return answers(str(run.path), run.options.model or "", change, count)[figure]

        return Measure(f"{meanings[figure]}, {states[change]}", value)

    return {f"{figure}_{change}": of(change, figure) for figure in meanings for change in states}


def contrast(claim: str, figure: str, change: str, expected: str, smallest: float) -> Contrast:
    terms = ((1.0, "networks", f"{figure}_{change}"), (-1.0, "networks", f"{figure}_none"))
    return Contrast(claim, f"{figure}, {change} − as trained", terms, expected, smallest)


def study(size: str) -> Study:
    return Study(
        name="odd_part",
        size=size,
        title="Do trained networks need the odd part of their mean kernels?",
        data=f"CIFAR-10 (JPEG copy), {IMAGES[size]:,} test images",
        variants={"networks": {}},
        networks={
            f"cifar_resnet{depth}": Network(
                f"cifar_resnet{depth}.th",
                f"depth-{depth}",
                f"{PAGE}/resnet{depth}-{digits[:8]}.th (BSD-2)",
                digits,
                f"cifar_resnet{depth}",
            )
            for depth, digits in CHECKSUMS.items()
        },
        measures=measures(IMAGES[size]),
        claims=CLAIMS,
        contrasts={
            "odd_accuracy": contrast("E12-odd", "accuracy", "odd", "zero", 0.01),
            "random_accuracy": contrast("E12-odd", "accuracy", "random", "zero", 0.01),
            "odd_shift": contrast("E12-odd-shift", "shift", "odd", "above", 0.005),
            "random_shift": contrast("E12-odd-shift", "shift", "random", "above", 0.005),
            "odd_fliplr": contrast("E12-odd-shift", "fliplr", "odd", "above", 0.005),
            "odd_r180": contrast("E12-odd-shift", "r180", "odd", "above", 0.005),
        },
        confounds={
            "A network that is right more often is more consistent: its accuracy.": (
                "accuracy_none",
                "accuracy_odd",
            ),
        },
        layer_figures=(),
        roles=(),
    )


def get_study(size: str) -> Study:
    return studies.pick_size(size, {name: functools.partial(study, name) for name in IMAGES})
