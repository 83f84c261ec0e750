import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import literal_blocks

from kernsym_jax import layers, models

COUNTS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "inception_v3": 27_161_264,
    "mobilenet_v2": 3_504_872,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}
CIFAR_COUNTS = {
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
}

# One network of each family, with as few blocks a stage as show everything.
FAMILIES = {
    "alexnet": {},
    "vgg11_bn": {},
    "resnet18": {"blocks": (1, 2, 1, 1)},
    "resnet50": {"blocks": (1, 2, 1, 1)},
    "inception_v3": {},
    "mobilenet_v2": {},
    "densenet121": {"blocks": (1, 2, 2, 1)},
    "efficientnet_b0": {"depth": 0.5},
    "convnext_tiny": {"blocks": (1, 2, 1, 1)},
}


def shapes_of(model, images):
    return jax.eval_shape(model.init, jax.random.key(0), images)


def test_the_names_are_those_of_the_contract():
    published = {"small_cnn", "alexnet", "inception_v3", "mobilenet_v2", "unet"}
    published |= {f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")}
    published |= {f"resnet{n}" for n in (18, 34, 50, 101, 152)}
    published |= {f"cifar_resnet{n}" for n in (20, 32, 44, 56, 110)}
    published |= {"resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"}
    published |= {f"densenet{n}" for n in (121, 161, 169, 201)}
    published |= {f"efficientnet_b{n}" for n in range(8)}
    published |= {f"convnext_{size}" for size in ("tiny", "small", "base", "large")}
    assert published <= set(models.NAMES)
    assert all(models.describe(name) for name in models.NAMES)


@pytest.mark.parametrize(("name", "count"), {**COUNTS, **CIFAR_COUNTS}.items())
def test_parameter_counts_are_the_published_ones(name, count, traced):
    params = traced(name).variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", models.NAMES)
def test_every_model_maps_images_of_its_size_to_float32_logits(name, traced):
    network = traced(name)
    shapes = network.variables
    assert set(shapes) <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(
        models.vary(network.model, dtype=jnp.bfloat16).apply, shapes, network.images
    )
    classes = 10 if name.startswith(("small", "cifar")) else 11 if name == "unet" else 1000
    pixels = network.images.shape[1:3] if name == "unet" else ()
    assert (logits.shape, logits.dtype) == ((2, *pixels, classes), jnp.float32)


@pytest.mark.parametrize(
    ("padding", "downsample"),
    list(zip(layers.PADDINGS, itertools.cycle(layers.DOWNSAMPLINGS), strict=False)),
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_every_padding_and_downsampling(name, padding, downsample, traced):
    # Only LPS has parameters of its own; all other styles share theirs.
    own = {"downsample": "lps"} if downsample == "lps" else {}
    network = traced(name, num_classes=5, **FAMILIES[name], **own)
    model, shapes = network.model, network.variables
    model = models.vary(model, padding=padding, downsample=downsample)
    # Unpadded networks shrink their maps; nothing is computed, so images may be large.
    size = 2500 if padding == "valid" else models.default_input_size(name)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def train(variables, images):
        rngs = {"dropout": jax.random.key(0), "downsample": jax.random.key(1)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    logits, updates = jax.eval_shape(train, shapes, images)
    main = logits[0] if isinstance(logits, tuple) else logits
    assert main.shape == (1, 5)
    assert jax.tree.structure(updates.get("batch_stats", {})) == jax.tree.structure(
        shapes.get("batch_stats", {})
    )


def test_only_inception_in_training_returns_two_logits(traced):
    network = traced("inception_v3", num_classes=5)
    model, images, shapes = network.model, network.images, network.variables
    rngs = {"dropout": jax.random.key(0)}

    def apply(model):
        return jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs)[0],
            shapes,
            images,
        )

    assert [logits.shape for logits in apply(model)] == [(2, 5), (2, 5)]
    assert apply(model.clone(auxiliary=False)).shape == (2, 5)


def test_parameters_do_not_depend_on_padding_or_on_unlearned_downsampling():
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    fields = FAMILIES["resnet18"]
    wanted = shapes_of(models.create("resnet18", **fields), images)
    for padding in layers.PADDINGS[:-1]:
        for downsample in ("stride", "blur", "sbpool", "aps"):
            model = models.create("resnet18", padding=padding, downsample=downsample, **fields)
            assert shapes_of(model, images) == wanted


def test_bad_names_and_fields_are_told_in_one_line_with_what_was_wanted():
    with pytest.raises(ValueError, match=r"^unknown model 'resnet19'; did you mean 'resnet18'\?"):
        models.create("resnet19")
    with pytest.raises(ValueError, match=r"^unknown model 'x'"):
        models.default_input_size("x")
    with pytest.raises(ValueError, match=r"^small_cnn: unknown padding 'none'; wanted.*reflect"):
        models.create("small_cnn", padding="none")
    with pytest.raises(ValueError, match=r"^small_cnn: unknown downsample 'max'; wanted.*aps"):
        models.create("small_cnn", downsample="max")
    with pytest.raises(ValueError, match=r"^vgg11: unknown fields \['widht'\]; wanted.*width"):
        models.create("vgg11", widht=3)


def test_impossible_types_and_class_numbers_are_refused():
    for dtype in ("float23", "int32", jnp.uint8):
        with pytest.raises(ValueError, match=r"^small_cnn: dtype must be a float type"):
            models.create("small_cnn", dtype=dtype)
    with pytest.raises(ValueError, match=r"^small_cnn: num_classes must be at least 1, got 0"):
        models.create("small_cnn", num_classes=0)


def test_lists_are_taken_for_tuples_as_configs_hold_them():
    model = models.create("cifar_resnet20", blocks=[1, 2])
    assert model == models.create("cifar_resnet20", blocks=(1, 2))
    assert hash(model)


@pytest.mark.parametrize(
    ("name", "padding", "size", "layer"),
    [
        ("resnet18", "valid", 64, r"layer\d_\d/conv\d: kernel 3x3"),
        ("resnet18", "reflect", 32, r"layer4_0/conv2: reflect padding by 1 needs"),
        ("vgg11", "zero", 16, r"features_20: kernel 2x2"),
        ("alexnet", "zero", 40, r"features_12: kernel 3x3"),
        ("inception_v3", "zero", 60, r"Mixed_7a/branch3x3_2/conv: kernel 3x3"),
        ("mobilenet_v2", "circular", 0, r"features_0_0: the input map is empty"),
    ],
)
def test_images_too_small_name_the_layer_that_cannot_take_them(name, padding, size, layer):
    model = models.create(name, padding=padding)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with pytest.raises(ValueError, match=f"^{layer}"):
        shapes_of(model, images)


def test_dropout_acts_in_training_only(prepared):
    fields = {"width": 1, "hidden": 8, "num_classes": 3}
    model, variables, images = prepared("vgg11", 1, 32, **fields)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        return model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)})

    assert not np.array_equal(logits(0, True), logits(1, True))
    np.testing.assert_array_equal(logits(0, False), logits(1, False))


def test_the_example_of_the_room_makes_a_network_and_calls_it():
    (example,) = literal_blocks(models)

    def run(images):
        names = {"images": images, "models": models, "jax": jax}
        names |= {f"{name}_key": jax.random.key(1) for name in ("dropout", "downsample")}
        exec(example, names)
        return names["logits"], names["updates"]["batch_stats"]

    logits, statistics = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert logits.shape == (2, 1000)
    assert statistics["bn1"]["mean"].shape == (64,)
