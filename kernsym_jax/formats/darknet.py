"""Reads Darknet's ``.weights`` together with the ``.cfg`` beside them, which lists the layers."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, map_file, open_regular, view

MAX_CONFIG = 4 << 20
MAX_SECTIONS = 10_000
MAX_CHANNELS = 1 << 20

_FLOAT = np.dtype("<f4")
_SAME_SHAPE = frozenset((
    "activation", "cost", "dropout", "gaussian_yolo", "l2norm", "logistic", "noise",
    "normalization", "region", "sam", "scale_channels", "shortcut", "softmax", "yolo",
))  # fmt: skip
_WEIGHTED = ("convolutional", "conv", "connected", "conn")
Section = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The settings of a convolution in the configuration.

    Attributes:
      stride: (rows, columns).
      padding: zeros at each end of each axis.
      dilation: step between taps.
      groups: channel groups.
    """

    stride: tuple[int, int]
    padding: int
    dilation: int
    groups: int


@dataclasses.dataclass(frozen=True)
class Darknet:
    """The arrays of a network, in forward order.

    Attributes:
      arrays: name -> array: ``conv0.weight`` (out, in / groups, kh, kw), ``conv0.bias``,
        ``bn0.weight`` and so on, numbered as Darknet counts its layers.
      layers: layer name -> its settings in the configuration.
      missing: the number of layers at the end for which the file has no values.
    """

    arrays: dict[str, StoredArray]
    layers: dict[str, Layer]
    missing: int


def is_darknet(path: str | os.PathLike, head: bytes) -> bool:
    """Returns whether a file with this name and beginning holds Darknet's weights."""
    name = pathlib.Path(path).name.lower()
    named = name.endswith(".weights") or re.search(r"\.conv\.\d{1,4}$", name) is not None
    return named and head[:4] == bytes(4) and head[5:8] == bytes(3) and head[4] < 10


def read_darknet(path: str | os.PathLike) -> Darknet:
    """Reads the weights of a network.

    Args:
      path: the weights. The configuration lies beside them and has the same name (``net.cfg`` for
        ``net.weights`` or ``net_final.weights``), or is the only one there.

    Raises:
      FileNotFoundError: if there is no configuration.
      ValueError: if the file is damaged, or has more or fewer values than the configuration asks
        for. A file that ends between two layers holds the first layers only.

    Reference: https://github.com/pjreddie/darknet/blob/master/src/parser.c
    """
    sections = _sections(_config_of(pathlib.Path(path)))
    return _Reader(map_file(path)).read(sections)


def _config_of(path: pathlib.Path) -> pathlib.Path:
    configs = {each.stem.lower(): each for each in sorted(path.parent.glob("*.cfg"))}
    stem = re.sub(r"\.conv\.\d{1,4}$|\.weights$", "", path.name.lower())
    for name in (stem, re.sub(r"[-_](final|best|last|\d+)$", "", stem)):
        if name in configs:
            return configs[name]
    if len(configs) == 1:
        return next(iter(configs.values()))
    raise FileNotFoundError(
        f"{path}: Darknet's weights need their configuration beside them: {stem}.cfg"
    )


def _sections(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
    """Returns the sections of a configuration: (kind, settings)."""
    with open_regular(path) as file:
        content = file.read(MAX_CONFIG + 1)
    if len(content) > MAX_CONFIG:
        raise ValueError(f"{path.name} is too large for a configuration of Darknet")
    sections: list[tuple[str, dict[str, str]]] = []
    for line in content.decode("utf-8", "replace").splitlines():
        text = re.split(r"[#;]", line, maxsplit=1)[0].strip()
        if text.startswith("["):
            sections.append((text.strip("[]").strip().lower(), {}))
        elif "=" in text and sections:
            name, _, value = text.partition("=")
            sections[-1][1][name.strip().lower()] = value.strip()
    if not sections or sections[0][0] not in ("net", "network"):
        raise ValueError(f"{path.name} is no configuration of Darknet: it has no [net]")
    if len(sections) > MAX_SECTIONS:
        raise ValueError(f"{path.name} has more than {MAX_SECTIONS} sections")
    return sections


class _Reader:
    """The values of a file, taken in the order of the layers."""

    def __init__(self, data: np.ndarray):
        self._data = data
        major, minor, _ = view(data, 0, np.dtype("<i4"), (3,)).tolist()
        # The number of images seen is 8 bytes wide since version 0.2.
        self._place = 20 if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else 16
        self._arrays: dict[str, StoredArray] = {}
        self._layers: dict[str, Layer] = {}

    def read(self, sections: list[tuple[str, dict[str, str]]]) -> Darknet:
        settings = sections[0][1]
        shape = (
            _number(settings, "channels", 3),
            _number(settings, "height", 0, least=0),
            _number(settings, "width", 0, least=0),
        )
        shapes: list[tuple[int, int, int]] = []
        missing = 0
        for number, (kind, section) in enumerate(sections[1:]):
            if kind in _WEIGHTED and self._place == self._data.size:
                missing = sum(kind in _WEIGHTED for kind, _ in sections[number + 1 :])
                break
            try:
                shape = self._layer(number, kind, section, shape, shapes)
            except (ValueError, LookupError) as error:
                raise ValueError(f"layer {number} [{kind}]: {error}") from error
            shapes.append(shape)
        if self._place != self._data.size:
            rest = self._data.size - self._place
            raise ValueError(f"{rest} bytes more than the layers of the configuration have")
        if not self._layers:
            raise ValueError("no values of any layer")
        return Darknet(self._arrays, self._layers, missing)

    def _layer(
        self,
        number: int,
        kind: str,
        section: Section,
        shape: tuple[int, int, int],
        shapes: list[tuple[int, int, int]],
    ) -> tuple[int, int, int]:
        """Takes the values of a layer; returns (channels, height, width) of its output."""
        channels, height, width = shape
        if kind in ("convolutional", "conv") and "share_index" not in section:
            return self._convolution(number, section, shape)
        if kind in ("connected", "conn"):
            return self._connected(number, section, shape)
        if kind == "local":
            return self._local(number, section, shape)
        if kind == "crop":
            rows, columns = (_number(section, f"crop_{name}", 1) for name in ("height", "width"))
            return channels, rows, columns
        if kind == "route":
            return _route(section, shapes)
        if kind in ("avgpool", "avg"):
            return channels, 1, 1
        if kind in ("maxpool", "max", "local_avgpool"):
            step = _number(section, "stride", 1)
            around = _number(section, "size", step) - 1
            room = _number(section, "padding", around, least=0) - around
            rows, columns = (_number(section, name, step) for name in ("stride_y", "stride_x"))
            return channels, (height + room - 1) // rows + 1, (width + room - 1) // columns + 1
        if kind == "upsample":
            step = _number(section, "stride", 2)
            return channels, height * step, width * step
        if kind in ("reorg", "reorg_old"):
            step = _number(section, "stride", 1)
            if _number(section, "reverse", 0, least=0):
                return channels // step**2, height * step, width * step
            return channels * step**2, height // step, width // step
        if kind == "shortcut" and section.get("weights_type", "none") != "none":
            maps = len(section.get("from", "").split(",")) + 1
            per_channel = section["weights_type"] == "per_channel"
            self._take(f"shortcut{number}.scales", (maps * (channels if per_channel else 1),))
        if kind in _SAME_SHAPE and "share_index" not in section:
            return shape
        raise ValueError("layers of this kind are not read")

    def _convolution(
        self, number: int, section: Section, shape: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        channels, height, width = shape
        filters = _number(section, "filters", 1)
        groups = _number(section, "groups", 1)
        size = _number(section, "size", 1)
        step = _number(section, "stride", 1)
        dilation = _number(section, "dilation", 1)
        rows, columns = (_number(section, name, step) for name in ("stride_y", "stride_x"))
        padding = _number(section, "padding", 0, least=0)
        if _number(section, "pad", 0, least=0):
            padding = size // 2
        if size == 1:
            dilation = 1
        # Darknet pads by the step between taps for each pixel of padding.
        padding *= dilation
        if channels % groups or filters % groups:
            raise ValueError(f"{channels} and {filters} channels in {groups} groups")
        normed = _number(section, "batch_normalize", 0, least=0) > 0
        own, norm = f"conv{number}", f"bn{number}"
        # A normalised layer has no bias of its own: the normalisation has it.
        self._take(f"{norm if normed else own}.bias", (filters,))
        if normed:
            for name in ("weight", "running_mean", "running_var"):
                self._take(f"{norm}.{name}", (filters,))
        self._take(f"{own}.weight", (filters, channels // groups, size, size))
        # The values of the normalisation come first, but it runs behind the convolution.
        for name in ("bias", "weight", "running_mean", "running_var") if normed else ():
            self._arrays[f"{norm}.{name}"] = self._arrays.pop(f"{norm}.{name}")
        self._layers[f"conv{number}"] = Layer((rows, columns), padding, dilation, groups)
        span = dilation * (size - 1) + 1
        sizes = [(n + 2 * padding - span) // s + 1 for n, s in ((height, rows), (width, columns))]
        return filters, sizes[0], sizes[1]

    def _local(
        self, number: int, section: Section, shape: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        """Takes the values of a layer that has a kernel of its own for every place."""
        channels, height, width = shape
        filters, size = _number(section, "filters", 1), _number(section, "size", 1)
        step = _number(section, "stride", 1)
        edge = 1 if _number(section, "pad", 0, least=0) else size
        rows, columns = ((n - edge) // step + 1 for n in (height, width))
        self._take(f"local{number}.bias", (filters * rows * columns,))
        self._take(f"local{number}.weight", (rows * columns, filters, channels * size * size))
        return filters, rows, columns

    def _connected(
        self, number: int, section: Section, shape: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        outputs = _number(section, "output", 1)
        self._take(f"fc{number}.bias", (outputs,))
        self._take(f"fc{number}.weight", (outputs, shape[0] * shape[1] * shape[2]))
        if _number(section, "batch_normalize", 0, least=0):
            for name in ("weight", "running_mean", "running_var"):
                self._take(f"fc_bn{number}.{name}", (outputs,))
        return outputs, 1, 1

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        array = view(self._data, self._place, _FLOAT, shape)
        self._place += array.nbytes
        self._arrays[name] = StoredArray.of(array)


def _route(section: Section, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Returns the shape of several layers' concatenated maps, or of a group of their channels.

    Raises:
      ValueError: if it names a layer that does not come before it.
    """
    here = len(shapes)
    numbers = [int(part) for part in section.get("layers", "").split(",") if part.strip()]
    places = [number if number >= 0 else here + number for number in numbers]
    if not places or not all(0 <= place < here for place in places):
        raise ValueError(f"no such layers: {section.get('layers', '')[:40]!r}")
    groups = _number(section, "groups", 1)
    found = [shapes[place] for place in places]
    return sum(shape[0] // groups for shape in found), *found[0][1:]


def _number(section: Section, name: str, default: int, least: int = 1) -> int:
    text = section.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= MAX_CHANNELS:
        raise ValueError(f"{name} is {text[:40]!r}, wanted {least} to {MAX_CHANNELS}")
    return int(text)
