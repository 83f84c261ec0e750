import jax
import numpy as np
import pytest

from kernsym_jax import models
from kernsym_jax.layers import crop
from kernsym_jax.models.resnet import BasicBlock
from kernsym_jax.models.variant import Variant

LAST = ("bn2", "downsample_1")
IDENTITY = np.zeros((3, 3, 4, 4), np.float32)
IDENTITY[1, 1] = np.eye(4)


def forward(model, traces):
    """Logits of a training pass for given variables, images and seed; a tracing is noted."""

    @jax.jit
    def logits(variables, images, seed):
        traces.append(seed)
        return model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"downsample": jax.random.key(seed)},
        )[0]

    return logits


def test_training_draws_anew_at_every_call_and_evaluation_is_fixed(prepared):
    fields = {"width": 4, "blocks": (1, 1), "downsample": "sbpool"}
    model, variables, images = prepared("cifar_resnet20", 2, 8, **fields)
    traces = []
    logits = forward(model, traces)
    drawn = {float(logits(variables, images, seed)[0, 0]) for seed in range(24)}
    assert len(drawn) == 4
    assert logits(variables, images, 0)[0, 0] == logits(variables, images, 0)[0, 0]
    assert len(traces) == 1
    evaluated = jax.jit(model.apply)
    np.testing.assert_array_equal(evaluated(variables, images), evaluated(variables, images))


def test_on_odd_maps_where_nothing_is_uneven_it_is_plain_striding(prepared):
    fields = {"width": 4, "blocks": (1, 1), "downsample": "sbpool"}
    model, variables, images = prepared("resnet18", 2, 33, **fields)
    logits = forward(model, [])(variables, images, 0)
    plain = forward(models.vary(model, downsample="stride"), [])(variables, images, 0)
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("downsample", ["sbpool", "aps", "blur"])
@pytest.mark.parametrize("padding", ["zero", "valid", "circular"])
@pytest.mark.parametrize("train", [True, False])
def test_the_shortcut_of_a_block_takes_the_pixels_of_its_branch(padding, downsample, train):
    # Both convolutions pass the map on, so both branches hold the same pixels of an image of noise.
    block = BasicBlock(4, 2, 3, Variant(padding, downsample, blur_size=1))
    x = np.random.default_rng(0).random((2, 10, 10, 4)).astype(np.float32)
    variables = block.init(jax.random.key(0), x)
    params = variables["params"]
    params["conv1"]["kernel"] = params["conv2"]["kernel"] = IDENTITY
    params["downsample_0"]["kernel"] = IDENTITY[1:2, 1:2]
    for seed in range(4 if train else 1):
        _, updates = block.apply(
            {**variables, "params": params},
            x,
            train,
            rngs={"downsample": jax.random.key(seed)},
            capture_intermediates=True,
            mutable=["intermediates", "batch_stats"],
        )
        kept = updates["intermediates"]
        branch, shortcut = (np.asarray(kept[name]["__call__"][0]) for name in LAST)
        shortcut = crop(shortcut, (shortcut.shape[1] - branch.shape[1]) // 2)
        assert branch.shape == shortcut.shape
        assert np.corrcoef(branch.ravel(), shortcut.ravel())[0, 1] > 0.8
