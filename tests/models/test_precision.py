import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import models

NETS = {
    "small_cnn": ({"width": 8}, 16),
    "alexnet": ({"width": 4, "hidden": 16}, 127),
    "cifar_resnet20": ({"width": 8, "blocks": (1, 1, 1)}, 16),
}


@pytest.mark.parametrize("downsample", ["stride", "blur", "sbpool"])
@pytest.mark.parametrize("name", NETS)
def test_bfloat16_computes_nearly_the_float32_logits_from_float32_parameters(
    name, downsample, prepared
):
    fields, size = NETS[name]
    style = {"padding": "partial", "downsample": downsample}
    model, variables, images = prepared(name, 3, size, **style, **fields)
    half = models.vary(model, dtype=jnp.bfloat16)
    wanted, logits = (jax.jit(net.apply)(variables, images) for net in (model, half))
    assert logits.dtype == jnp.float32
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.05


def test_bfloat16_maps_are_what_is_computed(prepared):
    model, variables, images = prepared("small_cnn", 1, 8, width=4, dtype="bfloat16")
    _, maps = models.intermediates(model, variables, images)
    assert {maps[name].dtype for name in ("conv1", "bn1", "conv4")} == {jnp.dtype("bfloat16")}


def test_a_training_step_in_bfloat16_keeps_statistics_and_gradients_in_float32(prepared):
    fields = {"width": 4, "depth": 2, "dtype": jnp.bfloat16}
    model, variables, images = prepared("small_cnn", 3, 8, **fields)

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).mean(), updates

    kept = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
