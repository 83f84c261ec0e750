"""Networks of the user's own: Linen modules named ``package.module:Class``."""

import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from kernsym_jax.models.variant import make_variant


def is_own(name: str) -> bool:
    """Returns whether a name is that of a user's class, not of a network of the registry."""
    return ":" in name


def create_own(
    name: str, num_classes: int | None, choices: Mapping[str, Any], fields: Mapping[str, Any]
) -> nn.Module:
    """Makes a network of the user's own.

    Args:
      name: ``package.module:Class``.
      num_classes: number of outputs, for a class with such a field.
      choices: arguments of `make_variant`, for a class with a field ``variant: models.Variant``;
        other classes accept only the defaults, and ``bn_axis_name`` if they have that field.
      fields: fields of the class.

    Returns:
      The Linen module.

    Raises:
      ValueError: if there is no such class, it is no Linen module that takes ``train``, or it does
        not have one of the fields.
    """
    module = _find_class(name)
    types = {f.name: str(f.type) for f in dataclasses.fields(module) if f.init}
    known = set(types) - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{name}: unknown fields {unknown}; wanted some of {sorted(known)}")
    given = dict(fields)
    if num_classes is not None and "num_classes" in known:
        given.setdefault("num_classes", num_classes)
    variant, plain = make_variant(name, **choices), make_variant(name)
    takes_variant = "Variant" in types.get("variant", "")
    if takes_variant:
        given.setdefault("variant", variant)
    if "bn_axis_name" in known:
        given.setdefault("bn_axis_name", variant.bn_axis_name)
        plain = dataclasses.replace(plain, bn_axis_name=variant.bn_axis_name)
    for key, value in choices.items():
        if not takes_variant and getattr(variant, key) != getattr(plain, key):
            raise ValueError(
                f"{name}: {key}={value!r} needs a field `variant: models.Variant`, which the class "
                "does not have; kwargs set its own fields"
            )
    try:
        return module(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _find_class(name: str) -> type[nn.Module]:
    place, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), attribute)):
        raise ValueError(f"unknown model {name!r}; a class of your own is package.module:Class")
    with _current_directory_first():
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name}: there is no module {error.name!r} in the current directory or among the "
                "installed packages"
            ) from error
        # The user's code runs here and may raise anything.
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(f"{name}: importing {place} fails: {kind}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ValueError(f"{name}: {place} has no class {attribute!r}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name}: {attribute} is not a class of flax.linen.Module")
    parameters = inspect.signature(found.__call__).parameters.values()
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"{name}: its call does not take train; wanted (images, train=…)")
    return found


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    """Makes imports find modules in the current directory, as ``python -m`` does."""
    folder = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # The imported module may have changed the list itself.
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
