import jax
import numpy as np

from kernsym_jax import models


def test_pmap_with_the_axis_name_gives_the_logits_and_statistics_of_the_whole_batch(prepared):
    fields = {"width": 4, "blocks": (1, 1)}
    model, variables, images = prepared("cifar_resnet20", 8, 8, **fields)
    images[4:] += 2.0

    def train(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = jax.jit(lambda x: train(model, x))(images)
    shared = models.create("cifar_resnet20", bn_axis_name="devices", **fields)
    parts, part_updates = jax.pmap(
        lambda x: train(shared, x), axis_name="devices", devices=jax.devices()[:4]
    )(images.reshape(4, 2, 8, 8, 3))
    np.testing.assert_allclose(parts.reshape(8, 10), logits, rtol=1e-3, atol=1e-4)
    jax.tree.map(
        lambda part, whole: np.testing.assert_allclose(part[1], whole, rtol=1e-3, atol=1e-4),
        part_updates,
        updates,
    )
