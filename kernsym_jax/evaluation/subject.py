"""The subject of an evaluation: a trained network and its test images."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from kernsym_jax import data, run_directory
from kernsym_jax.data import View
from kernsym_jax.evaluation.estimates import summarize
from kernsym_jax.evaluation.measure import HostFunction, Predict, measure
from kernsym_jax.evaluation.onnx_network import OnnxNetwork
from kernsym_jax.evaluation.transforms import Shifts
from kernsym_jax.formats.orbax import read_tree

if TYPE_CHECKING:
    import flax.linen as nn

# The config of a run sets these keys; for other weights the images stay unchanged.
_UNCHANGED = {
    "scale_to": (), "image_size": 0, "crop_size": 0, "eval_crop": 1.0, "rotate": 0, "seed": 0,
    "on_broken": "fail", "void": (), "mask_values": (), "classes": (),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and its test images.

    Attributes:
      predict: maps normalised images to logits.
      images: the test images, with labels or masks, in the size before any shift.
      mean: mean of the network's training images per channel, on the scale where white is 1.
      std: their standard deviation per channel.
      settings: the settings of the evaluation, of JSON types.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import data, evaluation, models
    >>> images = data.load("digits", "test")
    >>> model = models.create("small_cnn", num_classes=10)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> predict = evaluation.predictor(model, variables)
    >>> subject = evaluation.Subject(predict, images, (0.3,), (0.4,), {})
    >>> len(subject.images), subject.settings
    (360, {})
    """

    predict: Predict | HostFunction
    images: data.ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, Any]

    def batches(self, batch_size: int) -> Iterator[dict[str, jax.Array]]:
        """Yields the normalised images on this process's devices, each image once.

        Args:
          batch_size: images per batch; rounded up so that the devices share them evenly. Images of
            weight 0 fill up the last batch.
        """
        devices = jax.local_devices()
        split = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
        size = min(batch_size, len(self.images))
        size = -(-size // len(devices)) * len(devices)
        for batch in data.evaluation_batches(
            self.images, size, lambda array: jax.device_put(array, split)
        ):
            yield {**batch, "image": self.normalized(batch["image"])}

    def normalized(self, images: Any) -> jax.Array:
        """Normalises images (batch, height, width, channels) uint8 to float32."""
        return _normalize(images, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """A network in evaluation mode. Equal networks are equal functions, so they compile once."""

    network: "nn.Module"

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        from kernsym_jax import models

        with models.naming_failures(self.network):
            logits: Any = self.network.apply(variables, images, train=False)
        return logits


def predictor(network: "nn.Module", variables: Any) -> Predict:
    """Makes the function from images to logits that `measure` takes.

    Predictors of equal modules share one compiled program, because the variables are its arguments.

    Args:
      network: a module of ``kernsym_jax.models``.
      variables: its variables.

    Returns:
      A function of normalised images (batch, height, width, channels) float32.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation, models
    >>> model = models.create("small_cnn", num_classes=10)
    >>> images = jnp.zeros((2, 8, 8, 1))
    >>> predict = evaluation.predictor(model, jax.jit(model.init)(jax.random.key(0), images))
    >>> predict(images).shape
    (2, 10)
    """
    return Partial(_Apply(network), variables)


def read_run(workdir: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the settings of a run's network and images.

    Args:
      workdir: the run directory.

    Returns:
      The keys under ``config.model``, which are arguments of `models.create`, and the keys under
      ``config.data``.

    Raises:
      FileNotFoundError: if it is not a run directory.
      ValueError: if its config is damaged.

    >>> import pathlib
    >>> import tempfile
    >>> from kernsym_jax import evaluation, training
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (run / "config.json").write_text(training.resolve({}).to_json())
    >>> model, photos = evaluation.read_run(run)
    >>> model["name"], photos["source"]
    ('small_cnn', 'digits')
    """
    needed = ("data.source", "data.mean", "data.std")
    config = run_directory.read_config(pathlib.Path(workdir), *needed)
    photos = {**config["data"]}
    for name in ("mean", "std"):
        photos[name] = tuple(map(float, photos[name]))
    return config["model"], photos


def open_subject(
    model: Mapping[str, Any],
    source: str | pathlib.Path,
    photos: Mapping[str, Any],
    shifts: Shifts | None = None,
    *,
    input_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    ema: bool = False,
    trusted: bool = False,
) -> Subject:
    """Reads a network's weights and its test images.

    Args:
      model: arguments of `models.create`; without ``num_classes``, or with 0, the network has as
        many classes as the images.
      source: the weights: a run directory or any file that `weights.load_into` reads.
      photos: ``source``, ``mean`` and ``std``, and any other keys under ``config.data`` of a run
        that change its test images.
      shifts: the shifts that the images must be large enough for.
      input_size: the network's input in pixels; for shifts of mode ``crop`` the size of the window.
        One number takes squares from the middle of the images; a height and a width scale the whole
        images. None takes the size of the run, or the images as they are.
      limit: the largest number of images, evenly spread over the set; None for all images.
      ema: evaluates the moving averages of a run's weights instead of the weights.
      trusted: reads the weights in this process, as `weights.read` does.

    Returns:
      The subject.

    Raises:
      FileNotFoundError: if the weights or the images do not exist.
      ValueError: if they cannot be read or do not fit each other, or the images are too small.

    >>> import pathlib
    >>> import tempfile
    >>> import flax.serialization
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation, models
    >>> model = models.create("small_cnn", num_classes=10)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.msgpack"
    >>> _ = path.write_bytes(flax.serialization.to_bytes(variables))
    >>> photos = {"source": "digits", "mean": (0.3,), "std": (0.4,)}
    >>> subject = evaluation.open_subject({"name": "small_cnn"}, path, photos, limit=10)
    >>> len(subject.images)
    10
    """
    # Imported here, because Linen takes a quarter of a second and figures need no network.
    from kernsym_jax import models, weights

    photos = {**_UNCHANGED, **photos}
    mean, std = (tuple(map(float, photos[name])) for name in ("mean", "std"))
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise ValueError(f"mean and std are of 1 or 3 channels, std above 0; got {mean} and {std}")
    images = _read_images(photos, _view(photos, len(mean), shifts, input_size), len(mean), limit)
    height, width = images.images.shape[1:3]
    seen = shifts.view_size(height, width) if shifts else (height, width)
    fields = {**model, "num_classes": model.get("num_classes") or len(images.classes)}
    if fields["num_classes"] < len(images.classes):
        raise ValueError(
            f"{photos['source']}: images of {len(images.classes)} classes for a network of "
            f"{fields['num_classes']}"
        )
    network = models.create(**fields)
    arrays = _moving_averages(pathlib.Path(source)) if ema else source
    with models.naming_failures(network):
        variables = weights.load_into(network, arrays, (1, *seen, len(mean)), trusted=trusted)
    settings = {
        "model": fields,
        "weights": str(source),
        "data": photos["source"],
        "split": "test",
        "mean": mean,
        "std": std,
        "image_size": [height, width],
        "network_input": list(seen),
        "limit": limit,
        "ema": ema,
    }
    return Subject(predictor(network, variables), images, mean, std, settings)


def open_onnx(
    network: OnnxNetwork,
    photos: Mapping[str, Any],
    shifts: Shifts | None = None,
    *,
    input_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
) -> Subject:
    """Reads the test images of an ONNX network.

    Args:
      network: the network.
      photos: as for `open_subject`, but without ``mean`` and ``std`` the network gets images in
        0 … 1, not normalised; one whose input is uint8 always gets the images' bytes.
      shifts: the shifts that the images must be large enough for.
      input_size: as for `open_subject`; None takes that of the graph, or the images as they are.
      limit: the largest number of images, evenly spread over the set; None for all images.

    Returns:
      The subject; its settings tell whether the images are normalised, and which input and output
      of the graph are used.

    Raises:
      FileNotFoundError: if the images do not exist.
      ValueError: if they cannot be read, do not fit the network, or the network does not run.

    >>> import pathlib
    >>> import tempfile
    >>> import onnx
    >>> from onnx import TensorProto, helper
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
    >>> from kernsym_jax import evaluation
    >>> network = evaluation.OnnxNetwork(path)
    >>> photos = {"source": "fake:size=8,channels=1,classes=1"}
    >>> subject = evaluation.open_onnx(network, photos, limit=4)
    >>> len(subject.images)
    4
    """
    channels = network.channels
    given = [name for name in ("mean", "std") if photos.get(name) is not None]
    if given and network.dtype == "uint8":
        raise ValueError(f"{network.path}: takes uint8 images, which --{given[0]} cannot normalise")
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    photos = {**_UNCHANGED, **plain, **{k: v for k, v in photos.items() if v is not None}}
    mean, std = (tuple(map(float, photos[name])) for name in ("mean", "std"))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(
            f"{network.path}: takes images of {channels} channels; mean and std are of as many "
            f"numbers, std above 0; got {mean} and {std}"
        )
    size = network.input_size(input_size)
    images = _read_images(photos, _view(photos, channels, shifts, size), channels, limit)
    height, width = images.images.shape[1:3]
    seen = shifts.view_size(height, width) if shifts else (height, width)
    top, left = ((side - window) // 2 for side, window in zip((height, width), seen, strict=True))
    first = images.images[:1, top : top + seen[0], left : left + seen[1]]
    predict, facts = network.predictor(
        np.asarray(_normalize(first, mean, std)), len(images.classes), per_pixel=images.masks
    )
    settings = {
        "weights": str(network.path),
        "data": photos["source"],
        "split": "test",
        "mean": mean,
        "std": std,
        "normalized": bool(given),
        "image_size": [height, width],
        "network_input": list(seen),
        "limit": limit,
        **facts,
    }
    return Subject(predict, images, mean, std, settings)


def evaluate(
    subject: Subject,
    shifts: Shifts | None = None,
    *,
    flips: bool = True,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Measures the contents of ``consistency.json``.

    Args:
      subject: the network and its images.
      shifts: the shifts to compare.
      flips: whether to compare the elements of D4.
      batch_size: images per batch.

    Returns:
      The figures of `summarize`, and the ``settings``.

    Raises:
      ValueError: if the network's logits are not finite.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import data, evaluation, models
    >>> images = data.load("digits", "test")
    >>> model = models.create("small_cnn", num_classes=10)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> predict = evaluation.predictor(model, variables)
    >>> subject = evaluation.Subject(predict, images, (0.3,), (0.4,), {})
    >>> results = evaluation.evaluate(subject, flips=False)
    >>> results["images"], sorted(results)
    (360, ['accuracy', 'classes', 'images', 'intervals', 'settings'])
    """
    answers = measure(subject.predict, subject.batches(batch_size), shifts, flips=flips)
    settings = {**subject.settings, "batch_size": batch_size}
    return {"settings": settings, **summarize(answers, subject.images.classes)}


def _view(
    photos: Mapping[str, Any],
    channels: int,
    shifts: Shifts | None,
    input_size: int | tuple[int, int] | None,
) -> View:
    asked: dict[str, Any] = {"rotate": photos["rotate"], "channels": channels}
    crops = shifts is not None and shifts.mode == "crop"
    margin = 2 * shifts.reach if shifts is not None and crops else 0
    if isinstance(input_size, tuple):
        return View(**asked, scale_to=tuple(side + margin for side in input_size))
    window = input_size or photos["crop_size"]
    if crops and window:
        return View(**asked, image_size=window + margin)
    if input_size:
        return View(**asked, image_size=input_size)
    names = ("image_size", "crop_size", "eval_crop")
    asked |= {name: photos[name] for name in names}
    return View(**asked, scale_to=tuple(photos["scale_to"]))


def _read_images(
    photos: Mapping[str, Any], view: View, channels: int, limit: int | None
) -> data.ImageSet:
    images = data.load(
        photos["source"],
        "test",
        view=view,
        on_broken=photos["on_broken"],
        seed=photos["seed"],
        coding=data.MaskCoding.from_config(photos),
    )
    if images.images.shape[-1] != channels:
        raise ValueError(
            f"{photos['source']}: the images have {images.images.shape[-1]} channels; "
            f"mean and std, and so the network, have {channels}"
        )
    if limit is not None and limit < len(images):
        # Sets are sorted by class: the first images would all have the same one.
        chosen = np.linspace(0, len(images) - 1, limit).round().astype(int)
        images = data.ImageSet(images.images[chosen], images.labels[chosen], images.classes)
    return images


def _moving_averages(workdir: pathlib.Path) -> Mapping[str, Any]:
    """Returns the moving averages in a run's newest checkpoint."""
    folder = workdir / run_directory.CHECKPOINTS
    if not folder.is_dir():
        raise ValueError(f"{workdir}: only a run directory has moving averages")
    found = read_tree(folder).get("ema")
    if not found:
        raise ValueError(f"{workdir}: the run has no moving averages (config.ema_decay is 0)")
    return found


@functools.partial(jax.jit, static_argnames=("mean", "std"))
def _normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    return data.normalize(images, mean, std)
