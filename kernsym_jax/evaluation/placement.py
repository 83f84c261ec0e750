"""On which devices a network and its batches lie, and how far the host runs ahead of them."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

Predict = Callable[[jax.Array], jax.Array]

_AHEAD = 2


class Placement:
    """A network whole on every device, and batches split over them.

    Args:
      predict: maps images to logits.
      devices: to use; a batch that they cannot share evenly is split over fewer of them.
    """

    def __init__(self, predict: Predict, devices: Sequence[jax.Device]) -> None:
        self._predict = predict if isinstance(predict, Partial) else Partial(predict)
        self._devices = list(devices)
        self._running: collections.deque[Any] = collections.deque(maxlen=_AHEAD)
        self._use(len(self._devices))

    def share(self, size: int) -> Partial:
        """The network on the devices that can share a batch of that size evenly."""
        count = math.gcd(size, len(self._devices))
        if count != self._mesh.size:
            self._use(count)
        return self._network

    def split(self, array: Any) -> jax.Array:
        """An array split along its first axis."""
        return jax.device_put(array, NamedSharding(self._mesh, PartitionSpec("data")))

    def whole(self, tree: Any) -> Any:
        """Arrays whole on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def keep_pace(self, result: Any) -> None:
        """Waits for the pass before last: each one under way holds a batch in device memory."""
        if len(self._running) == _AHEAD:
            jax.block_until_ready(self._running[0])
        self._running.append(result)

    def _use(self, count: int) -> None:
        self._mesh = Mesh(np.array(self._devices[:count]), ("data",))
        self._network = self.whole(self._predict)
