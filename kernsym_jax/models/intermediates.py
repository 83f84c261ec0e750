"""The maps inside a network, by the names of its layers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict


def intermediates(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Applies a model in evaluation and keeps what every layer and block returns.

    Args:
      model: a model made by ``create``.
      variables: its variables.
      images: (batch, height, width, channels), float32, already normalised.

    Returns:
      The logits, and a map per layer by its path (in forward order, but sorted by ``jit``), for
      example ``{"conv1": …, "bn1": …, "layer1_0/conv1": …}``. A layer's map is what leaves the
      layer itself, before the activation that follows; ``…_down`` holds what follows the
      activation and the step of a strided layer.
    """
    logits, kept = model.apply(
        variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    maps = {}
    for path, calls in flatten_dict(kept["intermediates"]).items():
        if len(path) > 1:
            value = calls[0]
            maps["/".join(path[:-1])] = value[0] if isinstance(value, tuple) else value
    return logits, maps
