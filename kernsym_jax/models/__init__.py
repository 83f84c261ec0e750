"""The networks of the experiments, by name.

Every model is a Linen module with the same call::

    model = models.create("resnet18", num_classes=1000, padding="zero", downsample="stride")
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images)
    logits, updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"],
        rngs={"dropout": key1, "downsample": key2},
    )

Images are (batch, height, width, channels) float32, already normalised; logits are
(batch, num_classes) float32. Parameters are in the collection ``params`` and BatchNorm's running
statistics in ``batch_stats``, all float32 whatever ``dtype`` the computation runs in. Kernels are
stored at ``…/kernel`` as (kh, kw, in / groups, out).

Every layer has an explicit name, so a parameter path is a public identifier. Intermediates are
kept by the same names on request, see ``intermediates``.
"""

from kernsym_jax.models.registry import NAMES, create, default_input_size, describe

__all__ = ["NAMES", "create", "default_input_size", "describe"]
