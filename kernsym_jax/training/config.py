"""The configuration of a run: every key with its default, and the check of a user's values.

The comments in `default`, and for the nested keys in the functions below it, document every key:
what it does, its unit, and after the comment its default.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from kernsym_jax import data, symmetry
from kernsym_jax.cli import nearest
from kernsym_jax.training.loss import median_frequency_weights

_NESTED = (Mapping, ml_collections.ConfigDict)
_AT_LEAST = {
    "batch_size": 1,
    "eval_batch_size": 1,
    "seeds": 1,
    "devices": 0,
    "log_every": 1,
    "keep_checkpoints": 1,
    "keep_best": 0,
    "data.limit": 0,
    "consistency.images": 0,
    "consistency.shift": 0,
    "optimizer.accumulate": 1,
    "optimizer.clip_norm": 0,
    "symmetry.loss_weight": 0,
}
_WORDS = {
    "backend": ("jit", "pmap"),
    "population": ("auto", "vmap", "products", "turn", "processes"),
    "consistency.mode": ("circular", "zero"),
    "model.dtype": ("float32", "bfloat16"),
    "class_balance": ("none", "median"),
    "symmetry.tie": ("none", "fliplr", "d4"),
}
# Keys that may change when a run resumes, because the results do not depend on them.
_PLACE = ("backend", "devices", "population", "keep_checkpoints", "keep_best")
# Training masks whose pixels are counted; reading all masks of a large set would take hours.
_MASKS_COUNTED = 2000


def default() -> ml_collections.ConfigDict:
    """Returns a config with every key and its default; a config file changes a few of them.

    >>> from kernsym_jax import training
    >>> config = training.default()
    >>> config.model.padding, config.optimizer.learning_rate
    ('zero', 0.1)
    """
    config = ml_collections.ConfigDict()
    # Seed of the weights, the order of the images, the augmentation and dropout; 0 to 2³² − 1.
    config.seed = 0
    # Number of networks with the seeds seed, seed + 1, …; above 1 each gets a run directory of its
    # own, seed_000, seed_001, …, below the workdir.
    config.seeds = 1
    # Training of several seeds: as one program whose convolutions are grouped (vmap) or batched
    # matrix products (products), one after another (turn), or side by side in single-threaded child
    # processes, one per core (processes). auto takes what was fastest on this kind of device (see
    # `training.backend`); on a CPU turn or processes, which it measures first if runs are long.
    config.population = "auto"
    # Images per training step of one network, over all devices and processes together.
    config.batch_size = 128
    # Length of the run in passes over the training images; may be a fraction.
    config.epochs = 10.0
    # Images per evaluation step, over all devices and processes together.
    config.eval_batch_size = 256
    # How devices share a batch: jit (one program over a mesh) or pmap (one program per device).
    config.backend = "jit"
    # Number of devices over all processes; 0 for all of them, on the CPU for one per process, where
    # further devices only share the cores.
    config.devices = 0

    # The network.
    config.model = _model()

    # The images, their preparation and their augmentation.
    config.data = _data()

    # SGD with momentum. The learning rate rises from 0 over the warm-up and then falls along half a
    # cosine to 0 at the last step.
    config.optimizer = _optimizer()

    # Share of the target that is spread over all classes, 0 to 1.
    config.label_smoothing = 0.0
    # Weight of each class in the loss; () for equal weights, or for those of class_balance.
    config.class_weights = ()
    # Class weights from the training masks: none, or median (median frequency over the frequency of
    # the class). config.json then holds the weights under class_weights.
    config.class_balance = "none"
    # Decay of the moving average of the weights per step, which is evaluated too; 0 for no average.
    config.ema_decay = 0.0

    # Consistency, measured at every evaluation: the share of a few test images, evenly spread over
    # the set, whose predicted class survives flips, quarter turns and small shifts.
    config.consistency = _consistency()

    # Three ways to make kernels more symmetric than the task alone does.
    config.symmetry = _symmetry()

    # Steps between two log lines, and between two measurements of the symmetry of all layers.
    config.log_every = 50
    # Epochs between two evaluations; may be a fraction.
    config.eval_every_epochs = 1.0
    # Epochs between two checkpoints; may be a fraction.
    config.checkpoint_every_epochs = 1.0
    # Number of newest checkpoints to keep.
    config.keep_checkpoints = 3
    # Number of further checkpoints to keep: those of the best evaluation accuracy, or mean IoU.
    config.keep_best = 1
    return config


def _model() -> ml_collections.ConfigDict:
    """Returns the keys under ``config.model``."""
    config = ml_collections.ConfigDict()
    # Name in the registry (see `kernsym_jax.models`), or package.module:Class for a Linen module of
    # your own, imported from the current directory or the installed packages. Further keys under
    # config.model are the fields of that network, such as width and depth of small_cnn.
    config.name = "small_cnn"
    # Fields of the network, for a class of your own whose padding, say, means something else.
    config.kwargs = ml_collections.ConfigDict()
    # Padding of all convolutions and poolings: zero, same (TensorFlow's), reflect, replicate,
    # symmetric, circular, partial or valid.
    config.padding = "zero"
    # How strided layers step down: stride, blur, sbpool, aps or lps.
    config.downsample = "stride"
    # Number of classes that the network tells apart; 0 for the number of classes in the data.
    config.num_classes = 0
    # Type in which the network computes: float32 or bfloat16. Parameters, BatchNorm's statistics
    # and all figures of symmetry are float32 in both cases.
    config.dtype = "float32"
    return config


def _data() -> ml_collections.ConfigDict:
    """Returns the keys under ``config.data``."""
    config = ml_collections.ConfigDict()
    # Source of the images. With class labels: digits, idx:<dir>, folder:<dir or tar>, tfds:<name>;
    # with masks: masks:<dir or tar>, tfds-masks:<name>; generated: textures[:…], noise[:…],
    # fake[:…]. `kernsym_jax.data.load` documents them.
    config.source = "digits"
    # Mean and standard deviation of the images, one number per channel, where white is 1; () for
    # those of the training images (of a sample, if the set is streamed).
    config.mean = ()
    config.std = ()
    # Seed of generated images and of random labels, drawn once for a whole set; 0 to 2³² − 1.
    config.seed = 0
    # What happens at a file that is no readable image: the run stops (fail) or leaves it out
    # (skip).
    config.on_broken = "fail"
    # Pixels per side: the largest square in the middle of each image is scaled to this size as the
    # image is read; 0 leaves images as they are.
    config.image_size = 0
    # (height, width) in pixels: whole images are scaled to this size as they are read, masks by
    # nearest neighbour; () leaves them as they are.
    config.scale_to = ()
    # Values of mask pixels without a class, such as (11,) for CamVid; () for none.
    config.void = ()
    # Values of mask pixels in the order of the classes; () for 0, 1, … up to the largest.
    config.mask_values = ()
    # Names of the classes of masks; () for their values.
    config.classes = ()
    # Number of training images, evenly spread over the set; 0 for all.
    config.limit = 0
    # Degrees by which the images of both splits are turned counter-clockwise: 0, 90, 180 or 270.
    config.rotate = 0
    # Whether the labels of the training images are shuffled among them.
    config.random_labels = False
    # Augmentation: largest random shift of a training image along each axis, in pixels; 0 for none.
    config.shift = 0
    # Augmentation: random flips of training images: none, horizontal, vertical or d4 (all eight).
    config.flip = "none"
    # Augmentation: pixels per side of random resized crops of training images; 0 for no crops.
    # Evaluation takes a crop of this size from the middle of each image.
    config.crop_size = 0
    # Share of the image's area that a random crop covers, (least, largest).
    config.crop_scale = (0.08, 1.0)
    # Width over height of a random crop, (least, largest).
    config.crop_ratio = (3 / 4, 4 / 3)
    # Side of the crop that evaluation takes, as a share of the image's shorter side.
    config.eval_crop = 0.875
    # Whether images are read and decoded while the network trains, rather than once before.
    config.streaming = False
    # Size of the decoded training images, in bytes, above which a set is always streamed.
    config.device_bytes = 4 * 2**30
    # Processes that read and decode a streamed set; 0 for threads of this process alone.
    config.workers = 0
    return config


def _optimizer() -> ml_collections.ConfigDict:
    """Returns the keys under ``config.optimizer``."""
    config = ml_collections.ConfigDict()
    # Largest learning rate.
    config.learning_rate = 0.1
    # Momentum, 0 to below 1, 0 for none; and whether it is Nesterov's.
    config.momentum = 0.9
    config.nesterov = True
    # Weight decay of kernels, added to the gradient; BatchNorm and biases have none.
    config.weight_decay = 5e-4
    # Length of the warm-up in epochs.
    config.warmup_epochs = 1.0
    # Number of parts of a batch that are computed one after another, to need less memory. The
    # gradient is that of the whole batch; BatchNorm sees each part on its own.
    config.accumulate = 1
    # Longest gradient, as the norm over all parameters; 0 for no bound.
    config.clip_norm = 0.0
    return config


def _consistency() -> ml_collections.ConfigDict:
    """Returns the keys under ``config.consistency``."""
    config = ml_collections.ConfigDict()
    # Number of test images; 0 for no measurement.
    config.images = 256
    # Largest shift along each axis, in pixels; 0 for no shifts.
    config.shift = 1
    # What enters at the border: the other side of the image (circular), or zero.
    config.mode = "circular"
    return config


def _symmetry() -> ml_collections.ConfigDict:
    """Returns the keys under ``config.symmetry``."""
    config = ml_collections.ConfigDict()
    # λ of the loss term λ·(1 − mean score over the layers); 0 for no term. The loss in train lines
    # leaves the term out, so that runs compare; symmetry_loss is its value.
    config.loss_weight = 0.0
    # Whether mean kernels are replaced by their invariant part, at the start and after each update.
    config.project = False
    # Elements of D4, such as ("fliplr",), that generate the group of the term and the projection;
    # () for all of D4. A kernel with kh ≠ kw leaves out the elements that do not apply to it.
    config.elements = ()
    # Layers of the term and the projection; () for all convolutions larger than 1×1. Shell patterns
    # of the end of a layer's path, ("conv*", "layer3_*/conv1"), or of the whole, ("/conv1",).
    config.layers = ()
    # Ties every slice of these layers, not only their mean, to be invariant under the left-right
    # flip (fliplr) or under all of D4 (d4), at the start and after each update; none: free slices.
    config.tie = "none"
    return config


def resolve(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config with defaults for the keys that it leaves out, and checks it.

    Args:
      config: some of the keys of `default`, nested alike. Further keys under ``model`` are fields
        of the model.

    Returns:
      A locked config of plain values.

    Raises:
      ValueError: for an unknown key, or a value of the wrong type or out of range.

    >>> from kernsym_jax import training
    >>> training.resolve({"model": {"padding": "reflect"}}).model.padding
    'reflect'
    >>> training.resolve({"epoch": 3})
    Traceback (most recent call last):
        ...
    ValueError: unknown config key config.epoch; did you mean 'epochs'?
    """
    complete = default()
    try:
        _update(complete, config, ())
    # A config file that raises an error gives an object without the methods of a mapping.
    except AttributeError as error:
        raise ValueError(f"not a config: {error}") from error
    _require_ranges(complete)
    _require_group(complete.symmetry)
    complete.lock()
    return complete


def complete(config: ml_collections.ConfigDict, dataset: data.Dataset) -> ml_collections.ConfigDict:
    """Returns the config with the values that it leaves to the data filled in.

    These are the mean and the standard deviation of the images, the number of classes and the class
    weights.

    Args:
      config: the resolved config of the run.
      dataset: the data of the run.

    Raises:
      ValueError: if the model has too few classes for the data, or too many for masks, or if the
        images are too small for a shift or not square for a flip.
    """
    config = ml_collections.ConfigDict(config)
    config.data.mean, config.data.std = dataset.mean, dataset.std
    classes = len(dataset.classes)
    if 0 < config.model.num_classes < classes:
        raise ValueError(
            f"labels up to {classes - 1} are out of range for "
            f"config.model.num_classes={config.model.num_classes}"
        )
    config.model.num_classes = config.model.num_classes or classes
    if dataset.masks and config.model.num_classes > data.VOID:
        raise ValueError(
            f"masks have at most {data.VOID} classes, got "
            f"config.model.num_classes={config.model.num_classes}"
        )
    config.class_weights = _class_weights(config, dataset)
    height, width = dataset.image_shape[:2]
    if config.data.shift >= min(height, width):
        raise ValueError(
            f"config.data.shift={config.data.shift} leaves nothing of {height}×{width} images"
        )
    if config.data.flip == "d4" and height != width:
        raise ValueError(f"config.data.flip=d4 needs square images, got {height}×{width}")
    if config.consistency.images and config.consistency.shift >= min(height, width):
        raise ValueError(
            f"config.consistency.shift={config.consistency.shift} leaves nothing of "
            f"{height}×{width} images"
        )
    return config


def member_configs(config: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """Returns the configs with which the members of a population would train alone."""
    members = []
    for index in range(config.seeds):
        member = ml_collections.ConfigDict(config)
        member.seed, member.seeds, member.population = config.seed + index, 1, "auto"
        members.append(member)
    return members


def to_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config as plain nested dicts and lists, the content of ``config.json``."""
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return json.loads(json.dumps(plain))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which two configs of a run differ, as ``key: old → new``, in order.

    A key that one of them lacks, because an earlier version wrote it, counts as its default. Keys
    that leave the results as they are, such as ``devices``, do not count.
    """
    defaults = dict(_leaves(to_json(default())))
    old_values, new_values = (defaults | dict(_leaves(to_json(one))) for one in (old, new))
    return [
        f"{key}: {old_values.get(key, 'absent')} → {new_values.get(key, 'absent')}"
        for key in sorted(old_values.keys() | new_values.keys())
        if key not in _PLACE and old_values.get(key, ...) != new_values.get(key, ...)
    ]


def _class_weights(config: ml_collections.ConfigDict, dataset: data.Dataset) -> tuple[float, ...]:
    """Returns the class weights of the config, or those that it computes from the masks."""
    given, classes = tuple(config.class_weights), config.model.num_classes
    if config.class_balance != "none" and not dataset.masks:
        raise ValueError(
            f"config.class_balance={config.class_balance} is for masks, and the data have class "
            "labels; config.class_weights gives weights for these"
        )
    if given and len(given) != classes:
        raise ValueError(f"config.class_weights: {len(given)} numbers for {classes} classes")
    if given or config.class_balance == "none":
        return given
    masks = dataset.take_static(min(dataset.train_size, _MASKS_COUNTED))["label"]
    return median_frequency_weights(masks, classes)


def _update(known: Any, given: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for key, value in given.items():
        name = ".".join(("config", *path, key))
        if key not in known:
            if path in (("model",), ("model", "kwargs")):
                known[key] = value
                continue
            raise ValueError(f"unknown config key {name}{nearest(key, known)}")
        nested = [isinstance(part, _NESTED) for part in (known[key], value)]
        if any(nested):
            if not all(nested):
                raise ValueError(f"{name}: got {value!r}, wanted a value like {known[key]!r}")
            _update(known[key], value, (*path, key))
        else:
            known[key] = _like(known[key], value, name)


def _require_ranges(config: ml_collections.ConfigDict) -> None:
    for name, low in _AT_LEAST.items():
        if _value(config, name) < low:
            raise ValueError(f"config.{name} must be at least {low}, got {_value(config, name)}")
    for name in ("epochs", "eval_every_epochs", "checkpoint_every_epochs"):
        if not config[name] > 0:
            raise ValueError(f"config.{name} must be above 0, got {config[name]}")
    for name in ("label_smoothing", "ema_decay"):
        if not 0 <= config[name] < 1:
            raise ValueError(f"config.{name} must lie in 0 to 1, 1 left out, got {config[name]}")
    if not 0 <= config.seed <= 2**32 - config.seeds:
        raise ValueError(f"config.seed must lie in 0 to 2³² − 1, got {config.seed}")
    for name, words in _WORDS.items():
        if _value(config, name) not in words:
            raise ValueError(
                f"config.{name}: got {_value(config, name)!r}, wanted {' or '.join(words)}"
            )
    if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in config.class_weights):
        raise ValueError(f"config.class_weights: numbers ≥ 0, got {config.class_weights}")


def _require_group(lever: ml_collections.ConfigDict) -> None:
    for name in ("elements", "layers"):
        if not all(isinstance(value, str) for value in lever[name]):
            raise ValueError(f"config.symmetry.{name}: got {lever[name]!r}, wanted names")
    if lever.tie != "none" and lever.project:
        raise ValueError("config.symmetry: tie keeps mean kernels invariant too; leave out project")
    try:
        group = symmetry.generated(lever.elements)
    except ValueError as error:
        raise ValueError(f"config.symmetry.elements: {error}") from error
    if group == ("e",):
        raise ValueError("config.symmetry.elements: the identity alone leaves kernels as they are")


def _like(example: Any, value: Any, name: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(example, float) and number:
        return float(value)
    if isinstance(example, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if type(example) is not type(value):
        raise ValueError(f"{name}: got {value!r}, wanted a value like {example!r}")
    return value


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
