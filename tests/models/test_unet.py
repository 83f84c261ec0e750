"""The U-Net: a class for every pixel, whatever the size, and equivariance where it is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_blocks import compile_for_one_run
from flax.traverse_util import flatten_dict, unflatten_dict

from kernsym_jax import geometry, layers, models, symmetry

SIZES = [padding for padding in layers.PADDINGS if padding != "valid"]


def shapes_of(size=(16, 16), **fields):
    model = models.create("unet", num_classes=3, width=4, **fields)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), images), images


@functools.cache
def shared_shapes(depth, encoder, learned):
    """The variables of all networks of a depth and an encoder, which only learned steps change."""
    return shapes_of(depth=depth, encoder=encoder, downsample="lps" if learned else "stride")[1]


def varied(size, depth, encoder, downsample, padding="zero"):
    """A network like that of ``shapes_of``, with shapes that others share."""
    style = {"encoder": encoder, "downsample": downsample, "padding": padding}
    model = models.create("unet", num_classes=3, width=4, depth=depth, **style)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return model, shared_shapes(depth, encoder, downsample == "lps"), images


def kernels(shapes):
    found = flatten_dict(shapes["params"], sep="/")
    return {path: leaf.shape for path, leaf in found.items() if path.endswith("/kernel")}


def test_layers_are_named_by_level_and_widths_double():
    _, shapes, _ = shapes_of(depth=3)
    assert set(shapes["params"]) == {"down1", "down2", "down3", "up2", "up1", "head"}
    assert kernels(shapes) == {
        "down1/conv1/kernel": (3, 3, 3, 4),
        "down1/conv2/kernel": (3, 3, 4, 4),
        "down2/conv1/kernel": (3, 3, 4, 8),
        "down2/conv2/kernel": (3, 3, 8, 8),
        "down3/conv1/kernel": (3, 3, 8, 16),
        "down3/conv2/kernel": (3, 3, 16, 16),
        "up2/conv1/kernel": (3, 3, 24, 8),
        "up2/conv2/kernel": (3, 3, 8, 8),
        "up1/conv1/kernel": (3, 3, 12, 4),
        "up1/conv2/kernel": (3, 3, 4, 4),
        "head/kernel": (1, 1, 4, 3),
    }
    assert set(shapes["params"]["up1"]) == {"conv1", "bn1", "conv2", "bn2"}
    assert set(shapes["batch_stats"]["down2"]) == {"bn1", "bn2"}


def test_the_encoder_padding_and_unlearned_downsampling_leave_the_parameters_alone():
    wanted = shapes_of(depth=3)[1]
    for encoder, padding in (("strided", "reflect"), ("max_pool", "partial")):
        for downsample in ("stride", "blur", "sbpool", "aps"):
            fields = {"encoder": encoder, "padding": padding, "downsample": downsample}
            assert shapes_of(depth=3, **fields)[1] == wanted


def test_what_lps_learns_lies_beside_the_layer_that_steps():
    for encoder, layer in (("strided", "conv1_down"), ("max_pool", "pool_down")):
        _, shapes, _ = shapes_of(depth=2, encoder=encoder, downsample="lps")
        logits = [path for path in kernels(shapes) if "logits" in path]
        assert logits == [f"down2/{layer}/logits/conv{i}/kernel" for i in (1, 2)]


@pytest.mark.parametrize("encoder", ["strided", "max_pool"])
@pytest.mark.parametrize("downsample", layers.DOWNSAMPLINGS)
@pytest.mark.parametrize("size", [(16, 24), (17, 13), (9, 30)])
def test_every_size_gives_a_class_for_every_pixel(encoder, downsample, size):
    model, shapes, images = varied(size, 3, encoder, downsample)
    logits = jax.eval_shape(models.vary(model, dtype=jnp.bfloat16).apply, shapes, images)
    assert (logits.shape, logits.dtype) == ((2, *size, 3), jnp.float32)


def gradient(model, variables, images):
    """The gradient of every parameter in one training pass."""

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"downsample": jax.random.key(2)},
        )
        return jnp.square(logits).mean()

    return jax.grad(loss)(variables["params"])


def test_every_padding_takes_every_downsampling_in_training():
    encoders = itertools.cycle(["strided", "max_pool"])
    for padding, downsample in itertools.product(SIZES, layers.DOWNSAMPLINGS):
        style = {"padding": padding, "downsample": downsample, "encoder": next(encoders)}
        model, shapes, images = varied((6, 5), 2, **style)
        found = jax.eval_shape(functools.partial(gradient, model), shapes, images)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shapes["params"])


@pytest.mark.parametrize(
    ("padding", "downsample", "encoder"),
    [
        ("zero", "stride", "strided"),
        ("same", "sbpool", "strided"),
        ("reflect", "blur", "max_pool"),
        ("replicate", "aps", "max_pool"),
        ("symmetric", "lps", "strided"),
        ("circular", "aps", "strided"),
        ("partial", "lps", "max_pool"),
    ],
)
def test_gradients_are_finite_and_reach_every_kernel(padding, downsample, encoder, prepared):
    style = {"padding": padding, "downsample": downsample, "encoder": encoder}
    model, variables, images = prepared("unet", 1, 6, width=2, depth=2, num_classes=2, **style)
    # A map of 6×5 pixels is halved to 3×3 and has to come back to an odd width.
    arguments = variables, images[:, :, :5]
    lowered = jax.jit(functools.partial(gradient, model)).lower(*arguments)
    compiled = compile_for_one_run(lowered)
    found = flatten_dict(compiled(*arguments), sep="/")
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    assert not [path for path in found if path.endswith("kernel") and not found[path].any()]


def answers_to_shifts(prepared, size, **fields):
    """Logits of every circular shift of an image, rolled back."""
    fields = {"width": 4, "depth": 3, "num_classes": 3, **fields}
    model, variables, x = prepared("unet", 1, size, **fields)
    shifts = list(itertools.product(range(size), range(size)))
    rolled = np.concatenate([np.roll(x, shift, (1, 2)) for shift in shifts])
    logits = np.asarray(jax.jit(model.apply)(variables, rolled))
    back = [np.roll(one, (-dy, -dx), (0, 1)) for one, (dy, dx) in zip(logits, shifts, strict=True)]
    return shifts, np.stack(back)


@pytest.mark.parametrize("encoder", ["strided", "max_pool"])
@pytest.mark.parametrize("downsample", ["aps", "lps"])
def test_circular_polyphase_networks_shift_their_masks_with_every_circular_shift(
    encoder, downsample, prepared
):
    style = {"padding": "circular", "downsample": downsample, "encoder": encoder}
    _, back = answers_to_shifts(prepared, 8, **style)
    # As if the head's bias gave every class its share of the pixels.
    masks = (back - back[0].mean((0, 1))).argmax(-1)
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[0], masks.shape))
    np.testing.assert_allclose(back, np.broadcast_to(back[0], back.shape), atol=1e-5)
    assert len(np.unique(masks[0])) == 3


@pytest.mark.parametrize("encoder", ["strided", "max_pool"])
@pytest.mark.parametrize("downsample", ["stride", "sbpool"])
def test_other_circular_networks_do_so_for_multiples_of_their_whole_step_only(
    encoder, downsample, prepared
):
    style = {"padding": "circular", "downsample": downsample, "encoder": encoder}
    shifts, back = answers_to_shifts(prepared, 8, **style)
    changes = np.abs(back - back[0]).max((1, 2, 3))
    whole = np.array([dy % 4 == 0 and dx % 4 == 0 for dy, dx in shifts])
    assert changes[whole].max() < 1e-5
    assert changes[~whole].min() > 1e-3


def test_zero_padding_breaks_equivariance_also_with_aps(prepared):
    _, back = answers_to_shifts(prepared, 8, padding="zero", downsample="aps")
    assert np.abs(back - back[0]).max() > 1e-2


@pytest.mark.parametrize(("encoder", "size"), [("strided", 9), ("max_pool", 8)])
def test_with_symmetric_kernels_flips_commute_where_nothing_is_uneven(encoder, size, prepared):
    model, variables, x = prepared("unet", 1, size, width=4, depth=3, encoder=encoder)
    flat = flatten_dict(variables["params"])
    flipped = {path: leaf[:, ::-1] if path[-1] == "kernel" else leaf for path, leaf in flat.items()}
    even = {path: (flat[path] + flipped[path]) / 2 for path in flat}
    apply = jax.jit(model.apply)
    symmetric = {**variables, "params": unflatten_dict(even)}
    answer, mirrored = apply(symmetric, x), apply(symmetric, x[:, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :, ::-1], answer, atol=1e-5)
    crooked = apply(variables, x), apply(variables, x[:, :, ::-1])
    assert np.abs(crooked[1][:, :, ::-1] - crooked[0]).max() > 1e-3


@pytest.mark.parametrize("downsample", layers.DOWNSAMPLINGS)
@pytest.mark.parametrize("encoder", ["strided", "max_pool"])
def test_the_audit_has_a_row_for_every_convolution_with_its_step(encoder, downsample):
    model, shapes, images = varied((32, 32), 3, encoder, downsample)
    rows = geometry.audit(lambda v, x: model.apply(v, x), shapes, images)
    convs = {row.layer: row for row in rows if row.kind == "conv"}
    assert {f"{layer}/kernel" for layer in convs} == set(kernels(shapes))
    assert convs["up1/conv1"].input_size == convs["head"].output_size == (32, 32)
    assert convs["down3/conv2"].input_size == convs["down3/conv2"].output_size == (8, 8)
    steps = [row for row in rows if row.strided]
    assert [row.output_size for row in steps] == [(16, 16), (8, 8)]
    # A pooling fits even maps as it is, a convolution where a blur or the components step after it.
    fits = (encoder == "max_pool") == (downsample in ("stride", "sbpool"))
    assert [row.even for row in steps] == [fits] * 2


def test_every_kernel_of_several_taps_is_measured(prepared):
    _, variables, _ = prepared("unet", 1, 8, width=2, depth=2)
    measured = jax.jit(symmetry.measure)(variables["params"])
    assert list(measured) == [
        f"{block}/conv{i}/kernel" for block in ("down1", "down2", "up1") for i in (1, 2)
    ]
    assert all(0.3 < float(kernel.score) < 1 for kernel in measured.values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"padding": "valid"}, "unet: padding 'valid' takes the border off"),
        ({"encoder": "pool"}, r"unet: unknown encoder 'pool'; wanted one of \('strided', 'max_po"),
        ({"depth": 0}, "unet needs a width and depth of 1 or more, got 4 and 0"),
        ({"padding": "reflect", "depth": 5}, "down5/conv2: reflect padding by 1 needs a map"),
    ],
)
def test_what_it_cannot_do_is_told_in_one_line(fields, says):
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        shapes_of(**fields)
    assert "\n" not in str(caught.value)
