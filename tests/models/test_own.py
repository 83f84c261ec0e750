"""Networks of the user's own, named package.module:Class."""

import sys

import jax
import jax.numpy as jnp
import pytest

from kernsym_jax import models

SOURCE = """
import flax.linen as nn
import jax.numpy as jnp
from kernsym_jax.models import Variant

class Net(nn.Module):
    num_classes: int
    features: tuple[int, ...] = (4,)
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x, train: bool = True):
        for n, features in enumerate(self.features):
            x = nn.Conv(features, (3, 3), padding=self.padding, use_bias=False, name=f"conv{n}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"bn{n}")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))

class Varied(nn.Module):
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, x, train=False):
        x = self.variant.conv("conv", 4, 3)(x)
        return self.variant.norm("norm")(x, use_running_average=not train).mean((1, 2))

class Parallel(nn.Module):
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return x

class Blind(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x

class Picky(nn.Module):
    width: int

    def __post_init__(self):
        super().__post_init__()
        if self.width > 9:
            raise ValueError("too wide")

    @nn.compact
    def __call__(self, x, train=False):
        return x

class Failing(nn.Module):
    place: str

    def __post_init__(self):
        super().__post_init__()
        if self.place == "init":
            raise RuntimeError("two\\nlines")

    @nn.compact
    def __call__(self, x, train=False):
        if self.place == "call":
            raise KeyError("absent")
        return x + jnp.ones((3, 4, 5))

not_a_class = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a package of networks."""
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "__init__.py").write_text("")
    (tmp_path / "own_pkg" / "nets.py").write_text(SOURCE)
    (tmp_path / "own_pkg" / "broken.py").write_text("1 / 0")
    (tmp_path / "own_pkg" / "unclosed.py").write_text("(")
    (tmp_path / "own_pkg" / "needs.py").write_text("import nowhere_to_be.found")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "own_pkg"]:
        del sys.modules[name]


def test_a_class_in_the_current_directory_is_made_with_its_fields(here):
    before = list(sys.path)
    made = models.create("own_pkg.nets:Net", 3, kwargs={"features": [5, 6], "padding": "VALID"})
    assert sys.path == before
    assert (made.num_classes, made.features, made.padding) == (3, (5, 6), "VALID")
    assert hash(made) == hash(made.clone())
    images = jnp.zeros((2, 9, 9, 3))
    variables = made.init(jax.random.key(0), images, train=False)
    assert made.apply(variables, images, train=False).shape == (2, 3)
    # The choices that a config always holds are the defaults, and mean nothing to this class.
    again = models.create(
        "own_pkg.nets:Net", 3, padding="zero", downsample="stride", dtype="float32",
        bn_axis_name=None, features=(5, 6), kwargs={"padding": "VALID"},
    )  # fmt: skip
    assert again == made


def test_a_field_variant_makes_the_layers_as_the_package_does(here):
    choices = {"padding": "reflect", "dtype": "bfloat16", "bn_axis_name": "batch"}
    made = models.create("own_pkg.nets:Varied", 4, **choices)
    assert made.variant == models.create("small_cnn", 4, **choices).variant
    assert models.create("own_pkg.nets:Parallel", bn_axis_name="batch").bn_axis_name == "batch"


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("own_pkg.nets:Nat", {}, "own_pkg.nets has no class 'Nat'"),
        ("own_pkg.nuts:Net", {}, "no module 'own_pkg.nuts' in the current directory"),
        ("own_pack:Net", {}, "no module 'own_pack' in the current directory"),
        ("own_pkg.needs:Net", {}, "no module 'nowhere_to_be'"),
        ("own_pkg.broken:Net", {}, "importing own_pkg.broken fails: ZeroDivisionError"),
        ("own_pkg.unclosed:Net", {}, "importing own_pkg.unclosed fails: SyntaxError"),
        ("own_pkg.nets:not_a_class", {}, "not_a_class is not a class of flax.linen.Module"),
        ("os:path", {}, "path is not a class of flax.linen.Module"),
        ("own_pkg.nets:Blind", {}, "its call does not take train"),
        ("own_pkg.nets:", {}, "is package.module:Class"),
        (":Net", {}, "is package.module:Class"),
        ("own-pkg:Net", {}, "is package.module:Class"),
        ("own_pkg.nets:Net", {"kwargs": {"wide": 3}}, r"unknown fields \['wide'\]; wanted some of"),
        ("own_pkg.nets:Net", {"wide": 3}, r"unknown fields \['wide'\]"),
        ("own_pkg.nets:Net", {"padding": "reflect"}, "padding='reflect' needs a field `variant"),
        ("own_pkg.nets:Net", {"padding": "wrong"}, "padding"),
        ("own_pkg.nets:Net", {"bn_axis_name": "batch"}, "bn_axis_name='batch' needs a field"),
        ("own_pkg.nets:Net", {"features": 1, "kwargs": {"features": 2}}, "features is given in"),
        ("own_pkg.nets:Picky", {}, "width"),
        ("own_pkg.nets:Picky", {"width": 10}, "too wide"),
        ("own_pkg.nets:Net", {"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(here, name, fields, says):
    with pytest.raises(ValueError, match=says) as caught:
        models.create(name, **({"num_classes": 2} | fields))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("init", r"RuntimeError: two \(nets.py, line \d+\)"),
        ("call", r"KeyError: 'absent' \(nets.py, line \d+\)"),
        ("shape", r"\w+Error: .*\(nets.py, line \d+\)"),
    ],
)
def test_what_the_code_of_a_class_raises_is_one_line_with_its_place(here, place, says):
    def evaluate():
        made = models.create("own_pkg.nets:Failing", 2, kwargs={"place": place})
        with models.naming_failures(made):
            made.init(jax.random.key(0), jnp.zeros((1, 9, 9, 3)))

    with pytest.raises(ValueError, match=rf"\Aown_pkg.nets:Failing: {says}\Z"):
        evaluate()


def test_what_the_package_itself_raises_stays_as_it_is():
    with pytest.raises(ZeroDivisionError), models.naming_failures(models.create("small_cnn")):
        raise ZeroDivisionError


def test_a_network_of_the_registry_takes_kwargs_too():
    assert models.create("small_cnn", 4, kwargs={"width": 6}) == models.create(
        "small_cnn", 4, width=6
    )
    with pytest.raises(ValueError, match="padding is given in kwargs and beside them"):
        models.create("small_cnn", padding="zero", kwargs={"padding": "zero"})
    with pytest.raises(ValueError, match=r"unknown fields \['wide'\]"):
        models.create("small_cnn", kwargs={"wide": 6})
