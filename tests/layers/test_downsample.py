import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import literal_blocks

from kernsym_jax.layers import DOWNSAMPLINGS, Conv, Downsample


def test_the_methods_are_the_five_of_the_contract():
    assert set(DOWNSAMPLINGS) == {"stride", "blur", "sbpool", "aps", "lps"}


@pytest.mark.parametrize("method", DOWNSAMPLINGS)
@pytest.mark.parametrize("train", [True, False])
def test_without_a_step_nothing_is_done_learned_or_drawn(method, train):
    x = jnp.ones((1, 5, 5, 1))
    down = Downsample(method, stride=1)
    (y, phases), variables = down.init_with_output({}, x, train)
    np.testing.assert_array_equal(y, x)
    assert phases is None
    assert not jax.tree.leaves(variables)
    assert down.inside == 1
    assert down.apply({}, train, method="position") is None


@pytest.mark.parametrize("method", DOWNSAMPLINGS)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("stride", [2, 4])
def test_every_method_gives_the_size_of_plain_striding(method, size, stride):
    down = Downsample(method, stride, blur_size=3)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    (y, _), _ = jax.eval_shape(lambda x: down.init_with_output(jax.random.key(0), x), x)
    after = stride // down.inside
    assert y.shape == (2, -(-size[0] // after), -(-size[1] // after), 3)


def test_an_unknown_method_names_the_layer_and_the_choice():
    for use in (
        lambda: Downsample("max").inside,
        lambda: Downsample("max").apply({}, jnp.zeros((1, 4, 4, 1))),
    ):
        with pytest.raises(ValueError, match=r"^Downsample: unknown downsample 'max'.*sbpool"):
            use()


@pytest.mark.parametrize("method", ["sbpool", "lps"])
def test_drawing_without_a_key_is_refused(method):
    down = Downsample(method)
    x = jnp.zeros((1, 4, 4, 1))
    variables = down.init(jax.random.key(0), x)
    arguments = {"method": "position"} if method == "sbpool" else {"x": x}
    with pytest.raises(flax.errors.InvalidRngError, match="downsample"):
        down.apply(variables, train=True, **arguments)


def test_the_branches_of_the_example_in_the_docstring_meet_with_one_size():
    (example,) = literal_blocks(Downsample)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            names = {"x": x, "train": train, "nn": nn, "Conv": Conv, "Downsample": Downsample}
            exec(example, names)
            return names["y"], names["shortcut"]

    block, images = Block(), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    (y, shortcut), _ = jax.eval_shape(
        lambda x: block.init_with_output(jax.random.key(0), x, False), images
    )
    assert y.shape == shortcut.shape == (2, 4, 4, 64)
