import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernsym_jax.layers import PADDINGS, Conv, Downsample, MaxPool, corner, subsample

DELTA = np.zeros((3, 3, 1, 1), np.float32)
DELTA[1, 1] = 1.0


def drawn(seed):
    return Downsample("sbpool", 2).apply(
        {}, True, method="position", rngs={"downsample": jax.random.key(seed)}
    )


@given(
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    pad=st.integers(0, 3),
    padding=st.sampled_from(PADDINGS),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    traced=st.booleans(),
    pooling=st.booleans(),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_output_size_never_depends_on_the_position(
    size, kernel, stride, pad, padding, place, traced, pooling
):
    x = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    if pooling:
        layer, variables = MaxPool(kernel, stride, padding, pad), {}
    else:
        layer = Conv(1, kernel, stride, padding, pad)
        weight = jax.ShapeDtypeStruct((kernel, kernel, 1, 1), jnp.float32)
        variables = {"params": {"kernel": weight, "bias": jax.ShapeDtypeStruct((1,), jnp.float32)}}
    try:
        plain = jax.eval_shape(layer.apply, variables, x).shape
    except ValueError:  # no window fits, or the padding is too wide for its mode
        assume(False)
    if traced:
        place = jnp.asarray(place, jnp.float32)
        moved = jax.eval_shape(
            lambda v, x, place: layer.apply(v, x, (place[0], place[1])), variables, x, place
        )
    else:
        moved = jax.eval_shape(lambda v, x: layer.apply(v, x, place), variables, x)
    assert moved.shape == plain


@pytest.mark.parametrize("padding", [p for p in PADDINGS if p != "same"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (3, 3, 0), (5, 4, 1), (1, 3, 0)])
def test_windows_start_at_each_offset_up_to_the_uneven_padding(padding, kernel, stride, pad):
    x = np.random.default_rng(0).normal(size=(1, 10, 11, 1)).astype(np.float32)
    layer = Conv(1, kernel, stride, padding, pad)
    variables = layer.init(jax.random.key(0), x)
    plain = layer.apply(variables, x)
    every = np.asarray(layer.clone(stride=1).apply(variables, x))
    amount = 0 if padding == "valid" else pad
    uneven = [(length + 2 * amount - kernel) % stride for length in (10, 11)]
    for r_h, r_w in itertools.product(range(uneven[0] + 1), range(uneven[1] + 1)):
        place = ((r_h + 0.5) / (uneven[0] + 1), (r_w + 0.5) / (uneven[1] + 1))
        wanted = every[:, r_h::stride, r_w::stride]
        assert wanted.shape == plain.shape
        for position in (place, tuple(map(jnp.float32, place))):
            moved = layer.apply(variables, x, position)
            np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-5)


def test_the_corners_of_evaluation_cycle():
    x = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    firsts = []
    for index in range(8):
        position = Downsample("sbpool", 2, index).apply({}, method="position")
        assert position == corner(index)
        firsts.append(int(subsample(x, 2, position)[0, 0, 0, 0]))
    assert firsts == [0, 8, 1, 9] * 2


def test_training_draws_every_offset_equally_often():
    positions = jax.vmap(lambda key: jnp.stack(drawn_from(key)))(
        jax.random.split(jax.random.key(0), 3000)
    )
    x = jnp.arange(5.0 * 5).reshape(1, 5, 5, 1)
    take = jax.vmap(lambda p: subsample(x, 3, (p[0], p[1]))[0, 0, 0, 0])
    firsts, counts = np.unique(take(positions), return_counts=True)
    np.testing.assert_array_equal(firsts, [0, 1, 5, 6])
    np.testing.assert_allclose(counts, 750, rtol=0.12)


def drawn_from(key):
    return Downsample("sbpool", 2).apply({}, True, method="position", rngs={"downsample": key})


def test_a_branch_and_its_shortcut_stay_aligned():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    conv = Conv(1, 3, 2, use_bias=False)
    seen = set()
    for position in [*map(corner, range(4)), *map(drawn, range(12))]:
        branch = conv.apply({"params": {"kernel": DELTA}}, x, position)
        shortcut = subsample(x, 2, position)
        np.testing.assert_array_equal(branch, shortcut)
        seen.add(float(shortcut[0, 0, 0, 0]))
    assert len(seen) == 4


def test_drawing_again_does_not_compile_again():
    traces = []
    conv = Conv(1, 3, 2, padding="partial", use_bias=False)

    @jax.jit
    def forward(x, key):
        traces.append(1)
        return conv.apply({"params": {"kernel": DELTA}}, x, drawn_from(key))

    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    firsts = {float(forward(x, jax.random.key(seed))[0, 1, 1, 0]) for seed in range(12)}
    assert len(firsts) == 4
    assert len(traces) == 1


def test_same_padding_shares_its_odd_row_out_between_both_ends():
    x = np.ones((1, 8, 8, 1), np.float32)
    conv = Conv(1, 3, 2, padding="same", use_bias=False)
    variables = {"params": {"kernel": np.ones((3, 3, 1, 1), np.float32)}}
    at_the_far_end = conv.apply(variables, x)[0, :, 0, 0]
    np.testing.assert_array_equal(at_the_far_end, [9, 9, 9, 6])
    for place, wanted in ((0.0, [4, 6, 6, 6]), (1.0, [9, 9, 9, 6])):
        np.testing.assert_array_equal(conv.apply(variables, x, (place, place))[0, :, 0, 0], wanted)
