"""An ONNX classifier or segmenter, run by onnxruntime."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernsym_jax.cli import one_line, path_name
from kernsym_jax.evaluation.measure import HostFunction
from kernsym_jax.formats.onnx_file import read_structure

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_CHANNELS = (1, 3)
_SILENT = 4
# The smallest probability whose logarithm is taken.
_TINY = 1e-30


class _Output(NamedTuple):
    """Where a graph keeps its logits, and how they become (batch, …, classes)."""

    name: str
    axes: tuple[int, ...]
    per_pixel: bool
    probabilities: bool


class OnnxNetwork:
    """An ONNX graph that takes one batch of images.

    Attributes:
      path: the file.
      input: name of the input.
      dtype: ``float32``, ``float16`` or ``uint8``.
      layout: ``NCHW`` or ``NHWC``, by the axis that has 1 or 3 channels.
      channels: channels of the images.
      size: height and width in pixels; None for a side that the graph leaves open.
      batch: the number of images that the graph takes; None if it takes any.

    >>> import pathlib
    >>> import tempfile
    >>> import onnx
    >>> from onnx import TensorProto, helper
    >>> from kernsym_jax import evaluation
    >>> pool = helper.make_node("GlobalAveragePool", ["x"], ["mean"])
    >>> flat = helper.make_node("Flatten", ["mean"], ["logits"])
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    >>> y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])
    >>> model = helper.make_model(
    ...     helper.make_graph([pool, flat], "net", [x], [y]),
    ...     opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    ... )
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.onnx"
    >>> onnx.save(model, path)
    >>> network = evaluation.OnnxNetwork(path)
    >>> network.layout, network.channels, network.size
    ('NCHW', 1, (8, 8))
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Opens an ONNX file.

        Args:
          path: the ONNX file.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if onnxruntime is not installed, the file is damaged, or the graph does not
            take one batch of images.
        """
        self.path = pathlib.Path(path)
        self._label = path_name(path)
        self._session = _open(self.path, self._label)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one_line(found.name) for found in inputs)
            raise ValueError(f"{self._label}: wanted a network of one input, got {names or 'none'}")
        (found,) = inputs
        self.input: str = found.name
        told = f"its input {one_line(found.name)} is {found.type} {_shown(found.shape)}"
        if found.type not in _DTYPES:
            raise ValueError(f"{self._label}: {told}; wanted float32, float16 or uint8")
        shape = [n if isinstance(n, int) and n > 0 else None for n in found.shape or ()]
        if len(shape) != 4 or not {shape[1], shape[3]} & set(_CHANNELS):
            raise ValueError(
                f"{self._label}: {told}; wanted (batch, channels, height, width) or (batch, "
                "height, width, channels) with 1 or 3 channels"
            )
        self.dtype = _DTYPES[found.type]
        self.layout = "NCHW" if shape[1] in _CHANNELS else "NHWC"
        places = ("N", "C", "H", "W") if self.layout == "NCHW" else ("N", "H", "W", "C")
        sides = dict(zip(places, shape, strict=True))
        self.batch, self.size = sides["N"], (sides["H"], sides["W"])
        self.channels: int = sides["C"] or 0

    def input_size(self, asked: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        """Returns the size of the images to give to the network.

        Args:
          asked: pixels that the user asks for, one number or (height, width); None for no wish.

        Returns:
          One number for squares, or (height, width); None for images as they are.

        Raises:
          ValueError: if the graph takes another size, or fixes one side and the other is open.
        """
        if asked is None and self.size == (None, None):
            return None
        height, width = self.size if asked is None else _pair(asked)
        for side, fixed in ((height, self.size[0]), (width, self.size[1])):
            if side is None:
                raise ValueError(
                    f"{self._label}: its input is {_shown(self.size)} pixels; --input_size says "
                    "the open side"
                )
            if fixed not in (None, side):
                raise ValueError(
                    f"{self._label}: its input is {_shown(self.size)} pixels, not {height}×{width}"
                )
        return asked or ((height, width) if height != width else height)  # type: ignore[return-value]

    def predictor(
        self, example: np.ndarray, classes: int, *, per_pixel: bool
    ) -> tuple[HostFunction, dict[str, Any]]:
        """Makes the function from images to logits that `measure` takes.

        A softmax at the end of the graph is undone by a logarithm, so that the answers of all
        networks are logits.

        Args:
          example: images (n, height, width, channels) float32 as the network will get them; the
            answer to them shows which output holds the logits.
          classes: the number of classes that the data have.
          per_pixel: whether an answer for every pixel is wanted, or one for every image.

        Returns:
          A function of images (batch, height, width, channels) float32, and the names and layouts
          of the input and the output.

        Raises:
          ValueError: if the graph does not run, or no output has the wanted shape.
        """
        names = [found.name for found in self._session.get_outputs()]
        answers = dict(zip(names, self._run(example, None), strict=True))
        size = example.shape[1:3]
        chosen = None
        for name, answer in answers.items():
            axes = _logit_axes(answer, len(example), size, classes, self.layout, per_pixel)
            if axes is not None:
                shares = _in_order(answer, axes, per_pixel)
                chosen = _Output(name, axes, per_pixel, _are_probabilities(shares))
                break
        if chosen is None:
            height, width = size
            wanted = f"(batch, classes, {height}, {width})" if per_pixel else "(batch, classes)"
            got = ", ".join(f"{one_line(name)} {_described(a)}" for name, a in answers.items())
            kind = "masks" if per_pixel else "class labels"
            raise ValueError(
                f"{self._label}: no output is {wanted} of floats with at least {classes} classes, "
                f"as data with {kind} want; got {got}"
            )
        facts = {
            "input": {"name": self.input, "layout": self.layout, "dtype": self.dtype},
            "output": {"name": chosen.name, "probabilities": chosen.probabilities},
        }
        return HostFunction(lambda images: self._logits(images, chosen)), facts

    def _logits(self, images: np.ndarray, output: _Output) -> np.ndarray:
        (answer,) = self._run(images, [output.name])
        if len(answer) != len(images):
            raise ValueError(
                f"{self._label}: {len(answer)} answers to a batch of {len(images)} images"
            )
        logits = _in_order(answer, output.axes, output.per_pixel)
        return np.log(np.maximum(logits, _TINY)) if output.probabilities else logits

    def _run(self, images: np.ndarray, outputs: Sequence[str] | None) -> list[Any]:
        """Runs the graph, in batches of the size that it takes."""
        fed = self._as_input(images)
        step = self.batch or len(fed)
        parts = []
        for first in range(0, len(fed), step):
            part = fed[first : first + step]
            filling = np.repeat(part[-1:], step - len(part), axis=0)
            try:
                found = self._session.run(outputs, {self.input: np.concatenate([part, filling])})
            # The classes of onnxruntime's errors have no common base.
            except Exception as error:
                raise ValueError(f"{self._label}: does not run: {_reason(error)}") from error
            parts.append([_first(answer, len(part), step) for answer in found])
        return [_joined(answers) for answers in zip(*parts, strict=True)]

    def _as_input(self, images: np.ndarray) -> np.ndarray:
        if self.dtype == "uint8":
            images = np.clip(np.rint(images * 255), 0, 255)
        if self.layout == "NCHW":
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images, self.dtype)


def _open(path: pathlib.Path, label: str) -> Any:
    # First, because it refuses damaged and hostile files, which onnxruntime would parse in C++.
    try:
        read_structure(path)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            f"{label}: ONNX networks run in onnxruntime: pip install 'kernsym-jax[onnxruntime]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    known = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [provider for provider in wanted if provider in known]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ValueError(f"{label}: onnxruntime cannot open it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Returns the message of an error of onnxruntime without its code and the path."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(str(error)))
    return re.sub(r"^Load model from .*? failed:", "", text)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _shown(shape: Sequence[Any] | None) -> str:
    return f"({', '.join(one_line(str(n if n is not None else '?')) for n in shape or ())})"


def _described(answer: Any) -> str:
    if not isinstance(answer, np.ndarray):
        return "(no array)"
    return f"{answer.shape} {answer.dtype}"


def _logit_axes(
    answer: Any, batch: int, size: tuple[int, ...], classes: int, layout: str, per_pixel: bool
) -> tuple[int, ...] | None:
    """Returns the axes of an output in the order (batch, height, width, classes), or None."""
    is_floats = isinstance(answer, np.ndarray) and answer.dtype.kind == "f"
    if not is_floats or answer.shape[:1] != (batch,):
        return None
    if answer.ndim == 2:
        return (0, 1) if not per_pixel and answer.shape[1] >= classes else None
    if answer.ndim != 4:
        return None
    orders = {"NCHW": (0, 2, 3, 1), "NHWC": (0, 1, 2, 3)}
    # If both orders fit, the order of the input decides.
    for axes in sorted(orders.values(), key=lambda axes: axes != orders[layout]):
        _, height, width, channels = (answer.shape[axis] for axis in axes)
        # A classifier may leave its pooled map of 1×1 as it is.
        wanted = size if per_pixel else (1, 1)
        if (height, width) == tuple(wanted) and channels >= classes:
            return axes
    return None


def _in_order(answer: np.ndarray, axes: tuple[int, ...], per_pixel: bool) -> np.ndarray:
    ordered = answer.astype(np.float32).transpose(axes)
    return ordered if per_pixel else ordered.reshape(len(ordered), -1)


def _are_probabilities(values: np.ndarray) -> bool:
    """Returns whether values (…, classes) are ≥ 0 and sum to 1, as those of a softmax."""
    sums = values.sum(axis=-1)
    return values.shape[-1] > 1 and bool((values >= 0).all() and (abs(sums - 1) < 1e-2).all())


def _first(answer: Any, count: int, of: int) -> Any:
    """Returns the answers to the images that did not fill up a batch."""
    if isinstance(answer, np.ndarray) and answer.shape[:1] == (of,):
        return answer[:count]
    return answer


def _joined(answers: Sequence[Any]) -> Any:
    if len(answers) > 1 and all(isinstance(a, np.ndarray) and a.ndim for a in answers):
        return np.concatenate(answers)
    return answers[0]
