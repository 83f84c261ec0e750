from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_blocks import compile_for_one_run, run_by_blocks
from flax.traverse_util import flatten_dict

from kernsym_jax import layers, models

SMALL_NETS = {
    "small_cnn": {"width": 4, "depth": 2, "strided": (2,)},
    "cifar_resnet20": {"width": 4, "blocks": (1, 1)},
}


class Family(NamedTuple):
    """Narrow copies of networks: names, fields, the smallest comfortable image and two remedies."""

    names: list[str]
    fields: dict
    size: int
    remedies: tuple[tuple[str, str], tuple[str, str]]


def starting(prefix):
    return [name for name in models.NAMES if name.startswith(prefix)]


# Families of one network are compiled whole, the others block by block.
FAMILIES = {
    "small_cnn": Family(["small_cnn"], {"width": 4}, 16, (("reflect", "lps"), ("circular", "aps"))),
    "alexnet": Family(
        ["alexnet"], {"width": 4, "hidden": 8}, 95, (("partial", "blur"), ("replicate", "sbpool"))
    ),
    "vgg": Family(
        starting("vgg"), {"width": 4, "hidden": 8}, 64, (("partial", "blur"), ("zero", "aps"))
    ),
    "basic": Family(
        ["resnet18", "resnet34"], {"width": 4}, 64, (("partial", "sbpool"), ("circular", "aps"))
    ),
    "bottleneck": Family(
        ["resnet50", "resnet101", "resnet152"],
        {"width": 4},
        64,
        (("partial", "stride"), ("zero", "blur")),
    ),
    "cifar": Family(starting("cifar"), {"width": 4}, 16, (("partial", "aps"), ("zero", "sbpool"))),
    "inception": Family(
        ["inception_v3"], {"auxiliary": False}, 96, (("partial", "sbpool"), ("circular", "aps"))
    ),
    "mobilenet": Family(
        ["mobilenet_v2"], {"width": 0.25}, 64, (("replicate", "blur"), ("reflect", "sbpool"))
    ),
}
# Short copies, one for all the networks of a class that differ in their number of blocks.
SHORT = {
    "resnext50_32x4d": Family(
        starting("resnext") + starting("wide_resnet"),
        {"blocks": (1, 1), "width": 8, "groups": 4, "width_per_group": 32},
        32,
        (("reflect", "aps"), ("circular", "blur")),
    ),
    "densenet121": Family(
        starting("densenet"),
        {"blocks": (1, 2), "growth": 4, "width": 8},
        32,
        (("symmetric", "lps"), ("circular", "aps")),
    ),
    "efficientnet_b0": Family(
        starting("efficientnet"),
        {"width": 0.25, "depth": 0.3},
        64,
        (("partial", "blur"), ("circular", "lps")),
    ),
    "convnext_tiny": Family(
        starting("convnext"),
        {"blocks": (1, 2), "width": 4},
        32,
        (("replicate", "sbpool"), ("circular", "aps")),
    ),
}


def gradients(model, variables, images, block_by_block):
    """The gradient of every parameter in one training pass, by path.

    Everything runs once, so the time goes into compilation, and optimisations only lengthen it.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})

    def loss(params, batch_stats, images):
        rngs = {"dropout": jax.random.key(1), "downsample": jax.random.key(2)}
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.square(logits).mean()

    arguments = params, batch_stats, images
    if block_by_block:
        found = run_by_blocks(jax.grad(loss), *arguments)
    else:
        found = compile_for_one_run(jax.jit(jax.grad(loss)).lower(*arguments))(*arguments)
    return flatten_dict(found, sep="/")


def check(prepared, name, size, styles, *, block_by_block, **fields):
    """Asserts that the gradients are finite, and most of them not zero, in each of the styles."""
    made = {}
    for padding, downsample in styles:
        # Only LPS has parameters of its own; all other styles share theirs.
        own = "lps" if downsample == "lps" else "stride"
        if own not in made:
            made[own] = prepared(name, 2, size, downsample=own, **fields)
        model, variables, images = made[own]
        model = models.vary(model, padding=padding, downsample=downsample)
        found = gradients(model, variables, images, block_by_block)
        label = f"{name} {padding} {downsample} {fields}"
        infinite = [path for path, leaf in found.items() if not np.isfinite(leaf).all()]
        assert not infinite, label
        kernels = [path for path in found if path.endswith("kernel")]
        idle = [path for path in kernels if not np.asarray(found[path]).any()]
        assert len(idle) < 0.1 * len(kernels), (label, idle)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_gradients_are_finite_for_every_padding_and_downsampling(name, prepared):
    for padding in layers.PADDINGS:
        size = 16 if padding == "valid" else 12
        styles = [(padding, downsample) for downsample in layers.DOWNSAMPLINGS]
        check(prepared, name, size, styles, block_by_block=True, **SMALL_NETS[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_for_every_model_and_under_two_remedies(family, prepared):
    names, fields, size, remedies = FAMILIES[family]
    styles = [("zero", "stride"), *remedies]
    for name in names:
        check(prepared, name, size, styles, block_by_block=len(names) > 1, **fields)
        # The remedies act within a block, and the others of a family have the same blocks.
        styles = styles[:1]


@pytest.mark.parametrize("name", SHORT)
def test_gradients_of_short_copies_are_finite_also_under_two_remedies(name, prepared):
    _, fields, size, remedies = SHORT[name]
    styles = [("zero", "stride"), *remedies]
    check(prepared, name, size, styles, block_by_block=False, **fields)


def test_every_model_belongs_to_a_family():
    names = [name for family in (FAMILIES | SHORT).values() for name in family.names]
    assert sorted(names) == sorted(set(models.NAMES) - {"unet"})


def test_the_gradient_block_by_block_is_that_of_the_whole_network(prepared):
    for padding, downsample in (("partial", "sbpool"), ("reflect", "lps")):
        style = {"padding": padding, "downsample": downsample}
        network = prepared("cifar_resnet20", 2, 12, **style, **SMALL_NETS["cifar_resnet20"])
        whole, parts = (gradients(*network, block_by_block) for block_by_block in (False, True))
        assert whole.keys() == parts.keys()
        for path, leaf in whole.items():
            np.testing.assert_allclose(parts[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)
