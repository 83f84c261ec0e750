"""The configuration of a run: every key with its default, and the check of a user's version."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from kernsym_jax import symmetry

_NESTED = (Mapping, ml_collections.ConfigDict)
_AT_LEAST = {
    "batch_size": 1,
    "eval_batch_size": 1,
    "seeds": 1,
    "devices": 0,
    "log_every": 1,
    "keep_checkpoints": 1,
    "keep_best": 0,
    "consistency.images": 0,
    "consistency.shift": 0,
    "optimizer.accumulate": 1,
    "optimizer.clip_norm": 0,
    "symmetry.loss_weight": 0,
}
_WORDS = {
    "backend": ("jit", "pmap"),
    "population": ("auto", "vmap", "turn"),
    "consistency.mode": ("circular", "zero"),
    "model.dtype": ("float32", "bfloat16"),
    "class_balance": ("none", "median"),
}
# Where and how a run computes, which may change from session to session: the numbers do not.
_PLACE = ("backend", "devices", "population", "keep_checkpoints", "keep_best")


def default() -> ml_collections.ConfigDict:
    """Every key that a run knows, with its default; a config file changes a few and returns it."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # How many networks, of the seeds seed, seed + 1, …; each gets a run directory of its own.
    config.seeds = 1
    # Several seeds as one program (vmap) or one after another (turn); auto for what is faster here.
    config.population = "auto"
    # Over all devices and processes.
    config.batch_size = 128
    config.epochs = 10.0
    config.eval_batch_size = 256
    # jit over a mesh of devices, or pmap.
    config.backend = "jit"
    # 0 for all; for one of each process on the CPU, where further devices only share the cores.
    config.devices = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "small_cnn"
    config.model.padding = "zero"
    config.model.downsample = "stride"
    # 0 for as many as the training labels have.
    config.model.num_classes = 0
    config.model.dtype = "float32"

    config.data = ml_collections.ConfigDict()
    config.data.source = "digits"
    # Per channel, on the scale where white is 1; empty for those of the training images.
    config.data.mean = ()
    config.data.std = ()
    # Of what is drawn once for the whole set: generated images, random labels.
    config.data.seed = 0
    # Files that are no readable images: fail, or skip.
    config.data.on_broken = "fail"
    # Images are scaled and cropped to squares of that size as they are read; 0 to leave them.
    config.data.image_size = 0
    # Height and width to which whole images are scaled as they are read, masks by nearest
    # neighbour; empty to leave them.
    config.data.scale_to = ()
    # Of masks: the values that do not count (CamVid: (11,)), the others in the order of the classes
    # (empty for 0 to the largest), and the names of the classes (empty for the values).
    config.data.void = ()
    config.data.mask_values = ()
    config.data.classes = ()
    # The whole set, both splits, turned counter-clockwise by 0, 90, 180 or 270 degrees.
    config.data.rotate = 0
    # Labels of the training split shuffled.
    config.data.random_labels = False
    # Largest random shift in pixels, and random flips: none, horizontal, vertical, d4.
    config.data.shift = 0
    config.data.flip = "none"
    # Random resized crops of that size, 0 for none: share of the area, and width over height. At
    # evaluation the middle of the image, of that share of its shorter side.
    config.data.crop_size = 0
    config.data.crop_scale = (0.08, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.eval_crop = 0.875
    # Read while training instead of once before; always so for sets of more bytes when decoded.
    config.data.streaming = False
    config.data.device_bytes = 4 * 2**30
    # Processes that read and decode a streamed set besides this one's threads; 0 for none.
    config.data.workers = 0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 1.0
    # Parts into which a batch is split, one after another, to need less memory. The gradient is the
    # whole batch's; BatchNorm sees each part by itself.
    config.optimizer.accumulate = 1
    # Longest gradient over all parameters together; 0 for any.
    config.optimizer.clip_norm = 0.0

    # Share of the target that is spread over all classes.
    config.label_smoothing = 0.0
    # What a label of each class counts in the loss; empty for all alike. With class_balance=median,
    # for masks, it is filled in from the training masks: median frequency over that of the class.
    config.class_weights = ()
    config.class_balance = "none"
    # Of the moving average of the weights, which is then evaluated too; 0 for none.
    config.ema_decay = 0.0

    # At every evaluation: how often the class of a few test images, evenly chosen, survives flips
    # and every shift of up to so many pixels, circular or with zeros entering. 0 images for never.
    config.consistency = ml_collections.ConfigDict()
    config.consistency.images = 256
    config.consistency.shift = 1
    config.consistency.mode = "circular"

    config.symmetry = ml_collections.ConfigDict()
    # λ of the term λ·(1 − mean score) of the loss. Train lines have the loss without it, so that
    # they can be compared, and its own value as symmetry_loss.
    config.symmetry.loss_weight = 0.0
    # After each update, and at the start, the mean kernels are replaced by their invariant part.
    config.symmetry.project = False
    # Of D4, such as ("fliplr",): both are about the group that they generate; empty for all of D4.
    # What does not apply to a kernel's shape (kh ≠ kw) is left out.
    config.symmetry.elements = ()
    # Both are about these layers; empty for all convolutions larger than 1×1. As shell patterns of
    # the end of a path, ("conv*", "layer3_*/conv1"), or after a slash of all of it, ("/conv1",).
    config.symmetry.layers = ()

    # In steps; evaluation and checkpoints in epochs.
    config.log_every = 50
    config.eval_every_epochs = 1.0
    config.checkpoint_every_epochs = 1.0
    # The newest, and besides them those of the best evaluation accuracy, or mean IoU of masks.
    config.keep_checkpoints = 3
    config.keep_best = 1
    return config


def resolve(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Fills a config up with the defaults and checks it.

    Args:
      config: any part of the keys of `default`, nested alike. Under ``model`` further keys are the
        fields of the model.

    Returns:
      A complete, locked config of plain values.

    Raises:
      ValueError: for a key that no run knows, or a value of the wrong kind or range.
    """
    try:
        _update(complete := default(), config, ())
    except AttributeError as error:  # no mapping, as after a config file that could not be loaded
        raise ValueError(f"not a config: {error}") from error
    for name, low in _AT_LEAST.items():
        if _value(complete, name) < low:
            raise ValueError(f"config.{name} must be at least {low}, got {_value(complete, name)}")
    for name in ("epochs", "eval_every_epochs", "checkpoint_every_epochs"):
        if not complete[name] > 0:
            raise ValueError(f"config.{name} must be above 0, got {complete[name]}")
    for name in ("label_smoothing", "ema_decay"):
        if not 0 <= complete[name] < 1:
            raise ValueError(f"config.{name} must lie in 0 to 1, 1 left out, got {complete[name]}")
    if not 0 <= complete.seed <= 2**32 - complete.seeds:
        raise ValueError(f"config.seed must lie in 0 to 2³² − 1, got {complete.seed}")
    for name, words in _WORDS.items():
        if _value(complete, name) not in words:
            raise ValueError(
                f"config.{name}: got {_value(complete, name)!r}, wanted {' or '.join(words)}"
            )
    _require_group(complete.symmetry)
    if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in complete.class_weights):
        raise ValueError(f"config.class_weights: numbers ≥ 0, got {complete.class_weights}")
    complete.lock()
    return complete


def to_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain nested dicts and lists, as ``config.json`` holds it."""
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return json.loads(json.dumps(plain))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two configs of a run differ, as ``key: old → new``, in order.

    A key that a config lacks, as those of earlier versions do, has its default; what only says
    where a run computes does not count.
    """
    defaults = dict(_leaves(to_json(default())))
    old_values, new_values = (defaults | dict(_leaves(to_json(one))) for one in (old, new))
    return [
        f"{key}: {old_values.get(key, 'absent')} → {new_values.get(key, 'absent')}"
        for key in sorted(old_values.keys() | new_values.keys())
        if key not in _PLACE and old_values.get(key, ...) != new_values.get(key, ...)
    ]


def _update(known: Any, given: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for key, value in given.items():
        name = ".".join(("config", *path, key))
        if key not in known:
            if path == ("model",):
                known[key] = value
                continue
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown config key {name}{hint}")
        nested = [isinstance(part, _NESTED) for part in (known[key], value)]
        if any(nested):
            if not all(nested):
                raise ValueError(f"{name}: got {value!r}, wanted a value like {known[key]!r}")
            _update(known[key], value, (*path, key))
        else:
            known[key] = _like(known[key], value, name)


def _require_group(lever: ml_collections.ConfigDict) -> None:
    for name in ("elements", "layers"):
        if not all(isinstance(value, str) for value in lever[name]):
            raise ValueError(f"config.symmetry.{name}: got {lever[name]!r}, wanted names")
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
