"""Weights and images that every framework can make again from the names of the parameters."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def uniform(name: str, shape: Sequence[int], low: float, high: float) -> np.ndarray:
    """Float32 values uniform in [low, high), seeded by ``name``."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    draw = np.random.Generator(np.random.Philox(seed)).random(tuple(shape), np.float32)
    return draw * np.float32(high - low) + np.float32(low)


def parameter(path: str, shape: Sequence[int]) -> np.ndarray:
    """The value of one parameter or running statistic.

    Args:
      path: collection and path, as in ``params/layer1_0/conv1/kernel``.
      shape: kernels as (kh, kw, in / groups, out) or (in, out).
    """
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "kernel":
        limit = math.sqrt(6 / math.prod(shape[:-1]))
        return uniform(path, shape, -limit, limit)
    low, high = {"scale": (0.5, 1.0), "var": (0.5, 1.5)}.get(leaf, (-0.2, 0.2))
    return uniform(path, shape, low, high)


def variables(shapes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fills a tree of shapes, ``{"params": …, "batch_stats": …}``, by path."""
    return {
        name: variables(below, f"{prefix}{name}/")
        if isinstance(below, Mapping)
        else parameter(f"{prefix}{name}", below.shape)
        for name, below in shapes.items()
    }


def images(batch: int, size: int) -> np.ndarray:
    """Images (batch, size, size, 3), float32, as if normalised."""
    return uniform(f"images {batch} {size}", (batch, size, size, 3), -2.0, 2.0)
