import itertools

import jax
import numpy as np
import pytest

from kernsym_jax import models


def logits_of_every_shift(prepared, name, size, **fields):
    """(shifts, images, classes): logits of each image rolled by every offset."""
    model, variables, x = prepared(name, 2, size, **fields)
    shifts = list(itertools.product(range(size), range(size)))
    rolled = np.concatenate([np.roll(x, shift, (1, 2)) for shift in shifts])
    logits = jax.jit(model.apply)(variables, rolled)
    return np.asarray(logits).reshape(len(shifts), len(x), -1)


# The last map of VGG-11 is a single pixel at this size, so its dense head sees no position.
NETS = {
    "vgg11": {"size": 32, "width": 2, "hidden": 8},
    "small_cnn": {"size": 8, "width": 8},
    "cifar_resnet20": {"size": 8, "width": 4, "blocks": (1, 1, 1)},
    "resnet18": {"size": 16, "width": 4, "blocks": (1, 1, 1)},
    "densenet121": {"size": 8, "width": 4, "growth": 4, "blocks": (1, 1)},
    "convnext_tiny": {"size": 24, "width": 8, "blocks": (1, 1)},
}


@pytest.mark.parametrize("downsample", ["aps", "lps"])
@pytest.mark.parametrize("name", NETS)
def test_untrained_circular_polyphase_nets_answer_every_circular_shift_alike(
    name, downsample, prepared
):
    logits = logits_of_every_shift(
        prepared, name, padding="circular", downsample=downsample, **NETS[name]
    )
    classes = logits.argmax(-1)
    assert (classes == classes[0]).all()
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], logits.shape), atol=1e-4)


@pytest.mark.parametrize(("padding", "downsample"), [("circular", "stride"), ("zero", "aps")])
def test_striding_or_zero_padding_alone_break_it(padding, downsample, prepared):
    logits = logits_of_every_shift(
        prepared, "small_cnn", padding=padding, downsample=downsample, **NETS["small_cnn"]
    )
    assert np.abs(logits - logits[0]).max() > 1e-2


def test_one_tap_of_blur_is_plain_striding_in_a_whole_network(prepared):
    strided, variables, x = prepared("cifar_resnet20", 2, 17, width=4, blocks=(1, 1, 1))
    x = x[:, :, 1:]
    blurred = models.vary(strided, downsample="blur", blur_size=1)
    plain, single, wide = (
        np.asarray(jax.jit(model.apply)(variables, x))
        for model in (strided, blurred, models.vary(blurred, blur_size=4))
    )
    np.testing.assert_allclose(single, plain, atol=1e-4)
    assert np.abs(wide - plain).max() > 1e-2
