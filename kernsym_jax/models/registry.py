"""Every model by name, one line each."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from kernsym_jax.layers import check_downsample, check_padding
from kernsym_jax.models.small_cnn import SmallCNN


class Model(NamedTuple):
    """A line of the registry."""

    module: type[nn.Module]
    fields: dict[str, Any]
    input_size: int
    description: str


_MODELS: dict[str, Model] = {
    "small_cnn": Model(SmallCNN, {}, 32, "3x3 convolutions, BatchNorm, global average pooling"),
}

NAMES = tuple(_MODELS)


def create(
    name: str,
    num_classes: int = 10,
    padding: str = "zero",
    downsample: str = "stride",
    dtype: Any = jnp.float32,
    **fields: Any,
) -> nn.Module:
    """Makes a model.

    Args:
      name: one of ``NAMES``.
      num_classes: number of outputs.
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      dtype: type of the computation, ``jnp.float32`` or ``jnp.bfloat16``, or its name.
      **fields: further fields of the model's module, for example ``width``, ``blur_size`` or
        ``bn_axis_name``.

    Returns:
      The Linen module.

    Raises:
      ValueError: for an unknown name, padding, downsampling or field.
    """
    model = _model(name)
    check_padding(padding, name)
    check_downsample(downsample, name)
    known = {f.name for f in dataclasses.fields(model.module)} - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{name}: unknown fields {unknown}; wanted some of {sorted(known)}")
    return model.module(
        **{
            **model.fields,
            **fields,
            "num_classes": num_classes,
            "padding": padding,
            "downsample": downsample,
            "dtype": jnp.dtype(dtype),
        }
    )


def default_input_size(name: str) -> int:
    """Height and width of the images that the model was designed for."""
    return _model(name).input_size


def describe(name: str) -> str:
    """The model in one line."""
    return _model(name).description


def _model(name: str) -> Model:
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; wanted one of {NAMES}")
    return _MODELS[name]
