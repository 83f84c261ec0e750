"""The audit of the networks of the experiments: SCIENCE's tables, read off the real models."""

import functools

import jax
import jax.numpy as jnp
import pytest

from kernsym_jax import geometry, models, symmetry

CHANGES = [
    {"padding": padding} for padding in ("same", "reflect", "replicate", "circular", "partial")
] + [{"downsample": method} for method in ("blur", "sbpool", "aps", "lps")]


@pytest.fixture(scope="module")
def rows_of(traced):
    """``rows_of(name, size, **fields)`` audits a network, once."""

    @functools.cache
    def audit(name, size, **fields):
        module = models.create(name, **fields)
        # Neither the size nor a padding changes the parameters, nor a downsampling but LPS.
        own = {"downsample": "lps"} if fields.get("downsample") == "lps" else {}
        variables = traced(name, **own).variables
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return geometry.audit(lambda v, x: module.apply(v, x, train=False), variables, images)

    return audit


def by_hand(size, kernel, stride, padding, dilation):
    room = size + sum(padding) - dilation * (kernel - 1) - 1
    return room // stride + 1, room % stride


@pytest.mark.parametrize("name", models.NAMES)
def test_every_row_agrees_with_the_formula_and_with_the_weights(name, rows_of, traced):
    size = models.default_input_size(name)
    rows = rows_of(name, size)
    for row in rows:
        axes = zip(row.input_size, row.kernel, row.stride, row.padding, row.dilation, strict=True)
        if row.kind != "transposed":
            assert [by_hand(*axis) for axis in axes] == list(
                zip(row.output_size, row.uneven, strict=True)
            )
        assert row.reads is None or all(
            (size, size) if i < 0 else rows[i].output_size == row.input_size for i in row.reads
        )
    kernels = symmetry.conv_kernels(traced(name).variables)
    found = {row.layer: row for row in rows if row.kind in geometry.CONVOLUTIONS}
    # Inception's auxiliary head takes part in training only.
    expected = {
        path.removesuffix("/kernel"): kernel.shape[:2]
        for path, kernel in kernels.items()
        if not path.startswith("AuxLogits")
    }
    assert {layer: row.kernel for layer, row in found.items()} == expected


@pytest.mark.parametrize(
    ("name", "size", "sizes", "uneven"),
    [
        *[(f"resnet{n}", 224, [112, 56, 28, 14, 7], [1, 1, 1, 1, 1]) for n in (18, 34, 50)],
        ("resnet18", 225, [113, 57, 29, 15, 8], [0, 0, 0, 0, 0]),
        ("resnet18", 193, [97, 49, 25, 13, 7], [0, 0, 0, 0, 0]),
        ("resnet18", 257, [129, 65, 33, 17, 9], [0, 0, 0, 0, 0]),
        ("resnet18", 227, [114, 57, 29, 15, 8], [0, 1, 0, 0, 0]),
        ("cifar_resnet20", 32, [16, 8], [1, 1]),
        ("cifar_resnet56", 32, [16, 8], [1, 1]),
        ("cifar_resnet20", 33, [17, 9], [0, 0]),
        ("vgg16", 224, [112, 56, 28, 14, 7], [0, 0, 0, 0, 0]),
        ("alexnet", 224, [55, 27, 13, 6], [1, 0, 0, 0]),
        ("alexnet", 227, [56, 27, 13, 6], [0, 1, 0, 0]),
        ("inception_v3", 299, [149, 73, 35, 17, 8], [0, 0, 0, 0, 0]),
        ("inception_v3", 224, [111, 54, 25, 12, 5], [1, 0, 1, 0, 1]),
    ],
)
def test_uneven_padding_at_the_strided_stages(name, size, sizes, uneven, rows_of):
    stages = {}
    for row in rows_of(name, size):
        if row.strided:
            stages.setdefault(row.output_size[0], set()).add(row.uneven)
    assert list(stages) == sizes
    assert list(stages.values()) == [{(u, u)} for u in uneven]


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("resnet50", 224, [225, 193, 257]),
        ("resnet152", 224, [225, 193, 257]),
        ("mobilenet_v2", 224, [225, 193, 257]),
        ("cifar_resnet20", 32, [33, 29, 37]),
        ("vgg16", 224, [224, 256, 192]),
        ("alexnet", 224, [223, 255, 191]),
        ("inception_v3", 299, [299, 331, 267]),
    ],
)
def test_the_nearest_even_sizes(name, size, sizes, rows_of):
    rows = rows_of(name, size)
    assert geometry.even_input_sizes(rows, size) == sizes
    for better in sizes[:1]:
        assert all(row.even for row in rows_of(name, better) if row.strided)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change.values())))
def test_every_remedy_can_be_read(change, size, rows_of):
    rows = rows_of("cifar_resnet20", size, **change)
    plain = [row for row in rows_of("cifar_resnet20", size) if row.kind == "conv"]
    convs = [row for row in rows if row.kind == "conv" and "logits" not in row.layer]
    assert [row.layer for row in convs] == [row.layer for row in plain]
    assert all(row.reads is not None for row in rows)
    stages = dict.fromkeys(row.output_size[0] for row in rows if row.strided)
    assert list(stages) == ([16, 8] if size == 32 else [17, 9])
    padding = change.get("padding", "zero")
    modes = {row.padding_mode for row in convs if max(row.kernel) > 1}
    assert modes == {padding if padding in ("reflect", "replicate", "circular") else "zero"}


def test_remedies_change_what_is_uneven_as_they_should(rows_of):
    def evenness(size, **change):
        return {r.even for r in rows_of("cifar_resnet20", size, **change) if r.strided}

    assert evenness(32) == evenness(32, padding="reflect") == {False}
    assert evenness(33) == evenness(33, padding="same") == {True}
    # Four taps of blur, and polyphase sampling, fit even maps.
    assert evenness(32, downsample="blur") == evenness(32, downsample="aps") == {True}
    drifts = {
        padding: next(r for r in rows_of("resnet18", 224, padding=padding)).centre_drift
        for padding in ("zero", "same")
    }
    assert drifts == {"zero": (-0.5, -0.5), "same": (0.5, 0.5)}
    assert rows_of("resnet18", 224, padding="same")[0].skew == "top left"
    assert rows_of("resnet18", 224)[0].skew == "bottom right"


def test_same_padding_is_best_judged_by_auditing_every_size(rows_of):
    sizes = geometry.even_input_sizes(
        lambda size: rows_of("cifar_resnet20", size, padding="same"), 32, count=1
    )
    assert sizes == [33]


def test_an_input_too_small_for_the_network_names_the_layer(traced):
    network = traced("vgg16")
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"^(features\w*|max_pool_\d|pool\w*): "):
        geometry.audit(lambda v, x: network.model.apply(v, x), network.variables, images)


def test_the_foveation_of_a_residual_network_is_centred_at_an_odd_size(rows_of):
    for size, centred in ((224, False), (225, True)):
        ways = geometry.network_foveation(rows_of("resnet18", size))
        assert ways.shape == (size, size)
        near, far = ways[: size // 2].sum(), ways[-(size // 2) :].sum()
        assert (abs(near / far - 1) < 1e-6) == centred
