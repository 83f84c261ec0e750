import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from kernsym_jax import layers, models

SMALL_NETS = {
    "small_cnn": {"width": 4, "depth": 2, "strided": (2,)},
    "cifar_resnet20": {"width": 4, "blocks": (1, 1)},
}
# Narrow copies of every model, family by family: the names, field values, the smallest comfortable
# image, whether operations are compiled one by one, and two remedies; where they are, remedies that
# leave most operations as they were.
FAMILIES = {
    "small_cnn": (["small_cnn"], {"width": 4}, 16, False, ("reflect", "lps"), ("circular", "aps")),
    "alexnet": (
        ["alexnet"],
        {"width": 4, "hidden": 8},
        95,
        False,
        ("partial", "blur"),
        ("replicate", "sbpool"),
    ),
    "vgg": (
        [name for name in models.NAMES if name.startswith("vgg")],
        {"width": 4, "hidden": 8},
        64,
        True,
        ("partial", "blur"),
        ("zero", "aps"),
    ),
    "basic": (
        ["resnet18", "resnet34"],
        {"width": 4},
        64,
        False,
        ("partial", "sbpool"),
        ("circular", "aps"),
    ),
    "bottleneck": (
        ["resnet50", "resnet101", "resnet152"],
        {"width": 4},
        64,
        True,
        ("partial", "stride"),
        ("zero", "blur"),
    ),
    "cifar": (
        [name for name in models.NAMES if name.startswith("cifar")],
        {"width": 4},
        16,
        True,
        ("partial", "aps"),
        ("zero", "sbpool"),
    ),
    "inception": (
        ["inception_v3"],
        {"auxiliary": False},
        96,
        False,
        ("partial", "sbpool"),
        ("circular", "aps"),
    ),
    "mobilenet": (
        ["mobilenet_v2"],
        {"width": 0.25},
        64,
        False,
        ("replicate", "blur"),
        ("reflect", "sbpool"),
    ),
}


def gradients(model, variables, images, one_by_one):
    """The gradient of every parameter in one training pass, by path.

    Everything runs once, so the time goes into compilation. ``one_by_one`` compiles operation by
    operation, which networks with many layers of one shape share; otherwise the network is compiled
    whole, without the optimisations that only lengthen it.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})

    def loss(params, batch_stats, images):
        rngs = {"dropout": jax.random.key(1), "downsample": jax.random.key(2)}
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.square(logits).mean()

    gradient = jax.grad(loss)
    if not one_by_one:
        lowered = jax.jit(gradient).lower(params, batch_stats, images)
        gradient = lowered.compile({"xla_backend_optimization_level": 0})
    return flatten_dict(gradient(params, batch_stats, images), sep="/")


def check(prepared, name, size, one_by_one, **fields):
    label = f"{name} {fields}"
    found = gradients(*prepared(name, 2, size, **fields), one_by_one)
    infinite = [path for path, leaf in found.items() if not np.isfinite(leaf).all()]
    assert not infinite, label
    kernels = [path for path in found if path.endswith("kernel")]
    idle = [path for path in kernels if not np.asarray(found[path]).any()]
    assert len(idle) < 0.1 * len(kernels), (label, idle)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_gradients_are_finite_for_every_padding_and_downsampling(name, prepared):
    for padding, downsample in itertools.product(layers.PADDINGS, layers.DOWNSAMPLINGS):
        size = 16 if padding == "valid" else 12
        style = {"padding": padding, "downsample": downsample}
        check(prepared, name, size, one_by_one=True, **style, **SMALL_NETS[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_for_every_model_and_under_two_remedies(family, prepared):
    names, fields, size, one_by_one, *remedies = FAMILIES[family]
    for padding, downsample in (("zero", "stride"), *remedies):
        for name in names:
            style = {"padding": padding, "downsample": downsample}
            check(prepared, name, size, one_by_one, **style, **fields)


def test_every_model_belongs_to_a_family():
    assert set(models.NAMES) - {"unet"} == {n for names, *_ in FAMILIES.values() for n in names}
