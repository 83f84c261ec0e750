"""What stands behind the colon of a generated source: ``textures:group=d4,size=24``."""

import dataclasses
import difflib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)


def parse(kind: str, place: str, defaults: "Settings") -> "Settings":
    """Reads settings of the form ``name=value,name=value``.

    Args:
      kind: of the source, for messages.
      place: the settings, perhaps none.
      defaults: a dataclass of whole numbers above 0, and words.

    Returns:
      The defaults with the given values in their place.

    Raises:
      ValueError: for an unknown name or a value that is no such number.
    """
    names = [field.name for field in dataclasses.fields(defaults)]
    given: dict[str, int | str] = {}
    for part in filter(None, place.split(",")):
        name, equals, value = part.partition("=")
        if name not in names or not equals:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"the source {kind} takes name=value of {', '.join(names)}; got {part!r}{hint}"
            )
        if isinstance(getattr(defaults, name), str):
            given[name] = value
        elif value.isascii() and value.isdigit() and int(value) > 0:
            given[name] = int(value)
        else:
            raise ValueError(f"the source {kind}: {name} is a whole number above 0, got {value!r}")
    return dataclasses.replace(defaults, **given)
