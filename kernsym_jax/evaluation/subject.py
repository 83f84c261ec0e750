"""What is evaluated: a network with its trained weights, and the test images it is shown."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from kernsym_jax import data, models, weights
from kernsym_jax.data.encoded_set import EncodedSet
from kernsym_jax.data.picture import View
from kernsym_jax.data.sources import decoded, find, resized
from kernsym_jax.evaluation.measure import measure
from kernsym_jax.evaluation.placement import Predict
from kernsym_jax.evaluation.shift import Shifts
from kernsym_jax.evaluation.summary import summarize
from kernsym_jax.formats.orbax import read_tree

# What a run knows about its data and foreign weights do not tell.
_AS_THEY_ARE = {
    "scale_to": (), "image_size": 0, "crop_size": 0, "eval_crop": 1.0, "rotate": 0, "seed": 0,
    "on_broken": "fail", "void": (), "mask_values": (), "classes": (),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and the images it is shown.

    Attributes:
      predict: maps normalised images to logits.
      images: the test images, with labels or masks, of the size that shifts start from.
      mean: of the network's training images, per channel, on the scale where white is 1.
      std: their standard deviation.
      settings: what was asked for, of JSON types.
    """

    predict: Predict
    images: data.ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, Any]

    def batches(self, batch_size: int) -> Iterator[dict[str, jax.Array]]:
        """The images on this process's devices, normalised, each once.

        Args:
          batch_size: images per batch; rounded up so that the devices share them evenly. The last
            batch is filled up with images of weight 0.
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
        """Images (batch, height, width, channels) uint8 as the network gets them, float32."""
        return _normalize(images, self.mean, self.std)


def open_subject(
    model: Mapping[str, Any],
    source: str | pathlib.Path,
    photos: Mapping[str, Any],
    shifts: Shifts | None = None,
    input_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    ema: bool = False,
) -> Subject:
    """Puts a network and its test images together.

    Args:
      model: arguments of `models.create`; without ``num_classes``, or with 0, as many as the images
        have.
      source: its weights, a run directory or any file that `weights.load_into` reads.
      photos: ``source``, ``mean`` and ``std``, and whatever else of the keys under ``config.data``
        of a run decides what it is evaluated on.
      shifts: that the images have to be large enough for.
      input_size: one number for squares from the middle of the images, or a height and a width to
        which the whole of them is scaled; for shifts of mode ``crop`` the size of the window.
        ``None`` for that of the run, or for images as they are.
      limit: at most so many images, evenly spread over the set; ``None`` for all.
      ema: whether to take the moving averages of a run's weights instead of the weights.

    Returns:
      The subject.

    Raises:
      FileNotFoundError: if the weights or the images are not there.
      ValueError: if they cannot be read or do not fit each other, or the images are too small.
    """
    photos = {**_AS_THEY_ARE, **photos}
    mean, std = (tuple(map(float, photos[name])) for name in ("mean", "std"))
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise ValueError(f"mean and std are of 1 or 3 channels, std above 0; got {mean} and {std}")
    images = _load(photos, _view(photos, len(mean), shifts, input_size))
    if images.images.shape[-1] != len(mean):
        raise ValueError(
            f"{photos['source']}: images of {images.images.shape[-1]} channels, but {len(mean)} "
            "numbers in mean and std"
        )
    if limit is not None and limit < len(images):
        # Sets are sorted by class: the first ones would all be of one.
        chosen = np.linspace(0, len(images) - 1, limit).round().astype(int)
        images = data.ImageSet(images.images[chosen], images.labels[chosen], images.classes)
    height, width = images.images.shape[1:3]
    seen = shifts.view_size(height, width) if shifts else (height, width)
    fields = {**model, "num_classes": model.get("num_classes") or len(images.classes)}
    if fields["num_classes"] < len(images.classes):
        raise ValueError(
            f"{photos['source']}: images of {len(images.classes)} classes for a network of "
            f"{fields['num_classes']}"
        )
    network = models.create(**fields)
    arrays = _averages(pathlib.Path(source)) if ema else source
    variables = weights.load_into(network, arrays, (1, *seen, len(mean)))
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
    return Subject(Partial(network.apply, variables), images, mean, std, settings)


def evaluate(
    subject: Subject, shifts: Shifts | None = None, flips: bool = True, batch_size: int = 256
) -> dict[str, Any]:
    """Everything that ``consistency.json`` holds.

    Args:
      subject: what is evaluated.
      shifts: which to compare.
      flips: whether to compare the elements of D4.
      batch_size: images per batch.

    Returns:
      What `summarize` returns, and the ``settings``.

    Raises:
      ValueError: if the network's logits are not finite.
    """
    answers = measure(subject.predict, subject.batches(batch_size), shifts, flips)
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


def _load(photos: Mapping[str, Any], view: View) -> data.ImageSet:
    found = find(photos["source"], "test", photos["seed"], data.MaskCoding.from_config(photos))
    if isinstance(found, EncodedSet):
        return decoded(found, view, photos["on_broken"])
    return resized(found, view)


def _averages(workdir: pathlib.Path) -> Mapping[str, Any]:
    """The moving averages in a run's newest checkpoint."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{workdir}: moving averages are those of a run directory")
    found = read_tree(folder).get("ema")
    if not found:
        raise ValueError(f"{workdir}: the run has no moving averages (config.ema_decay is 0)")
    return found


@functools.partial(jax.jit, static_argnames=("mean", "std"))
def _normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    return data.normalize(images, mean, std)
