import jax
import numpy as np

from kernsym_jax import models


def test_every_layers_map_is_kept_under_its_path_in_forward_order(prepared):
    fields = {"width": 4, "blocks": (1, 1), "downsample": "aps"}
    model, variables, images = prepared("cifar_resnet20", 2, 8, **fields)
    logits, maps = models.intermediates(model, variables, images)
    np.testing.assert_allclose(logits, model.apply(variables, images), rtol=1e-6)
    np.testing.assert_array_equal(maps["linear"], logits)
    block = [f"layer2_0/{name}" for name in ("conv1", "bn1", "conv1_down", "conv2", "bn2")]
    names = list(maps)
    assert names[:2] == ["conv1", "bn1"]
    assert names[names.index(block[0]) :] == [*block, "layer2_0", "linear"]
    assert maps["layer2_0/conv1"].shape == (2, 8, 8, 8)
    assert maps["layer2_0/conv1_down"].shape == (2, 4, 4, 8)
    kernel = variables["params"]["conv1"]["kernel"]
    wanted = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(maps["conv1"], wanted, rtol=1e-5, atol=1e-5)
