"""Every config is whole: keys that are known, a network that fits the images, its own command."""

import functools
import importlib.util
import pathlib
import re
import shlex
import types

import jax
import jax.numpy as jnp
import pytest

from kernsym_jax import data, training
from kernsym_jax.training import config as configuration
from kernsym_jax.training import state, step

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

# What each config's network gets: image shape, classes, training images.
SETS = {
    "camvid_unet": ((72, 96, 3), 11, 367),
    "cifar100_resnet18": ((32, 32, 3), 100, 50_000),
    "cifar10_jpeg_cpu": ((32, 32, 3), 10, 50_000),
    "cifar10_resnet18": ((32, 32, 3), 10, 50_000),
    "cifar10_resnet20": ((32, 32, 3), 10, 50_000),
    "digits": ((8, 8, 1), 10, 1437),
    "fake_benchmark": ((224, 224, 3), 1000, 1024),
    "fashion_mnist": ((28, 28, 1), 10, 60_000),
    "imagenet_resnet18_225": ((225, 225, 3), 1000, 1_281_167),
    "imagenet_resnet50": ((224, 224, 3), 1000, 1_281_167),
    "places365_resnet18": ((224, 224, 3), 365, 1_803_460),
    "textures": ((16, 16, 1), 10, 10_000),
}


def module(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def dataset(name, config):
    shape, classes, size = SETS[name]
    ones = (1.0,) * shape[-1]
    return data.Dataset(
        classes=tuple(map(str, range(classes))),
        image_shape=shape,
        mean=tuple(config.data.mean) or ones,
        std=tuple(config.data.std) or ones,
        augment=data.Augment.from_config(config.data),
        train=types.SimpleNamespace(steps_per_epoch=size // config.batch_size),
        evaluation=lambda: iter(()),
        train_size=size,
        test_size=1,
        take_static=lambda size: {},
        take_test=lambda size: {},
        masks=name == "camvid_unet",
    )


def test_every_config_is_known_here():
    assert sorted(SETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_can_be_traced_at_the_size_of_the_images(name):
    config = training.resolve(module(name).get_config())
    source = dataset(name, config)
    config = configuration.complete(config, source)
    recipe = state.make_recipe(config, source)
    shape = source.image_shape
    if config.data.crop_size:
        assert shape[:2] == (config.data.crop_size,) * 2
    key = jax.eval_shape(lambda: jax.random.key(0))
    before = jax.eval_shape(functools.partial(state.initial_state, recipe, shape), key)
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    if source.masks:
        batch["label"] = jax.ShapeDtypeStruct((config.batch_size, *shape[:2]), jnp.uint8)
    after, logs = jax.eval_shape(functools.partial(step.train_step, recipe), before, batch, key)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), before
    )
    assert len(logs["symmetry"]) > 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_commands_of_the_config_and_what_it_costs(name):
    text = module(name).__doc__
    commands = [
        shlex.split(line)
        for line in text.splitlines()
        if line.startswith("python -m kernsym_jax.train")
    ]
    assert commands
    for command in commands:
        flags = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
        assert flags.pop("config") == f"configs/{name}.py"
        assert flags.pop("workdir").startswith("runs/")
        config = module(name).get_config()
        for key, value in flags.items():
            *parents, last = key.split(".")[1:]
            section = functools.reduce(lambda part, parent: part[parent], parents, config)
            section[last] = type(section[last])(value)
        training.resolve(config)
    assert re.search(r"Not run here|two cores", " ".join(text.split()))


@pytest.mark.parametrize("name", ["digits", "fake_benchmark", "textures"])
def test_sources_that_need_no_files_give_the_images_that_are_expected(name):
    config = module(name).get_config()
    shape, classes, _ = SETS[name]
    images = data.load(config.data.source, "test")
    assert images.images.shape[1:] == shape
    assert len(images.classes) == classes
