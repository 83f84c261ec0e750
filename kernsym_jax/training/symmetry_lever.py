"""Symmetry as a lever: a term of the loss, or a projection of the weights after every update."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from kernsym_jax import symmetry

_EPS = float(jnp.finfo(jnp.float32).eps)


@dataclasses.dataclass(frozen=True)
class SymmetryLever:
    """What makes mean kernels more symmetric than the task alone; nothing by default.

    Attributes:
      loss_weight: λ of the term λ·(1 − mean score over the chosen layers); 0 for none.
      project: the mean kernels of the chosen layers are made invariant after every update.
      elements: of D4, which generate the group that is meant; empty for all of D4.
      layers: patterns of the chosen layers' paths; empty for all spatial convolutions.
    """

    loss_weight: float = 0.0
    project: bool = False
    elements: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "SymmetryLever":
        """The lever of the keys under ``config.symmetry``."""
        return cls(**config.to_dict())

    def __bool__(self) -> bool:
        return self.project or self.loss_weight > 0

    def chosen(self, params: Any) -> dict[str, jax.Array]:
        """The kernels that are meant: spatial, matched, and changed by some element of the group.

        Args:
          params: of the model.

        Returns:
          ``{"block/conv": weight}``, never empty.

        Raises:
          ValueError: if a pattern matches no spatial convolution, or the group leaves every
            kernel as it is.
        """
        spatial = {
            path.removesuffix("/kernel"): weight
            for path, weight in symmetry.conv_kernels(params).items()
            if weight.shape[0] * weight.shape[1] > 1
        }
        matched = set() if self.layers else set(spatial)
        for pattern in self.layers:
            found = {name for name in spatial if _matches(name, pattern)}
            if not found:
                raise ValueError(
                    f"config.symmetry.layers: {pattern!r} matches no spatial convolution; there "
                    f"are {', '.join(spatial) or 'none'}"
                )
            matched |= found
        group = set(symmetry.generated(self.elements)) - {"e"}
        chosen = {
            name: weight
            for name, weight in spatial.items()
            if name in matched and group & set(symmetry.elements(*weight.shape[:2]))
        }
        if not chosen:
            names = [name for name in spatial if name in matched]
            raise ValueError(
                f"config.symmetry.elements: {', '.join(self.elements) or 'D4'} applies to none of "
                f"the chosen spatial convolutions: {', '.join(names) or 'there are none'}"
            )
        return chosen

    def projected(self, params: Any) -> Any:
        """The parameters with the mean kernels of the chosen layers made invariant."""
        kernels = {f"{name}/kernel" for name in self.chosen(params)}

        def move(path: tuple, leaf: jax.Array) -> jax.Array:
            name = "/".join(str(key.key) for key in path)
            return symmetry.project_mean_kernel(leaf, self.elements) if name in kernels else leaf

        return jax.tree_util.tree_map_with_path(move, params)

    def loss(self, params: Any) -> jax.Array:
        """λ·(1 − mean score over the chosen layers), the score over the group with the identity.

        Args:
          params: of the model.

        Returns:
          () float32, with a gradient that is finite everywhere. Layers without a score, because
          their mean kernel is zero or no more than the rounding of their weights, do not count.
        """
        by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
        for weight in self.chosen(params).values():
            by_shape.setdefault(weight.shape[:2], []).append(weight)
        losses, counts = [], []
        for weights in by_shape.values():
            kernels = jnp.stack([symmetry.mean_kernel(weight) for weight in weights])
            largest = jnp.stack([jnp.max(jnp.abs(weight)) for weight in weights])
            negligible = jax.lax.stop_gradient(_EPS * largest)
            losses.append(jnp.sum(symmetry.asymmetry(kernels, self.elements, negligible)))
            counts.append(jnp.sum(jnp.max(jnp.abs(kernels), axis=(1, 2)) > negligible))
        count = functools.reduce(jnp.add, counts).astype(jnp.float32)
        total = functools.reduce(jnp.add, losses)
        return self.loss_weight * total / jnp.where(count > 0, count, 1.0)


def _matches(name: str, pattern: str) -> bool:
    """Whether a path ends in what the pattern means, or, after a leading slash, is all of it."""
    return bool(pattern) and pathlib.PurePosixPath("/" + name).match(pattern)
