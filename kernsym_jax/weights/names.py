"""Names of arrays and of the layers they belong to; names are data and are never interpreted."""

import re

_DIGITS = re.compile(r"(\d{1,18})")
_LEAVES = frozenset(
    ["weight", "kernel", "weights", "w", "weight_v", "weight_orig", "depthwise_kernel", "original"]
)


def leaf_name(name: str) -> str:
    """The last part of a name: ``weight`` of ``layer1.0.conv1.weight``."""
    return re.split(r"[./]", name)[-1]


def layer_name(name: str) -> str:
    """The layer of a kernel's name: ``layer1.0.conv1`` of ``layer1.0.conv1.weight``."""
    leaf = leaf_name(name)
    layer = name[: len(name) - len(leaf) - 1]
    return layer if leaf in _LEAVES and layer else name


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts ``layer2`` before ``layer10``."""
    return tuple(
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)
        for part in _DIGITS.split(name)
    )
