"""TensorFlow Datasets, read without TensorFlow once they are prepared."""

import contextlib
import difflib
import functools
import importlib.util
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from kernsym_jax.data.image_set import EncodedSet, Files, MaskCoding, Masks

_FORMAT = "array_record"
_CANDIDATES = {"train": ("train",), "test": ("test", "validation")}
_EXTRA = "pip install 'kernsym-jax[tf]'"


def load(place: str, split: str) -> EncodedSet:
    """Opens a split of a prepared set.

    Args:
      place: the set's name as TFDS writes it, ``name[/config][:version]``; the set lies in
        ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
      split: ``train`` or ``test``. For ``test`` the set's test split if it has labels, else its
        validation split.

    Returns:
      The images in the order of their records.

    Raises:
      FileNotFoundError: if the set is not prepared.
      ValueError: if the name is unknown, or the set has no labelled images.
    """
    builder = _prepared(place)
    image_key, label_key = _keys(builder, place)
    for name in _splits(builder, split):
        records = _Records(builder, place, name, image_key, label_key)
        # Some test splits are published without labels, which TFDS writes as −1.
        if records.labelled(0)[1] >= 0:
            return _class_labelled(builder, records)
    raise _no_split(builder, place, split, "labelled split")


def load_masks(place: str, split: str, coding: MaskCoding) -> EncodedSet:
    """Opens a split of a prepared set whose examples have one image and one mask.

    A mask is an image of one channel, an image is one of three.

    Args:
      place: as `load` takes it.
      split: ``train`` or ``test``. For ``test`` the test split, or the validation split if there is
        none.
      coding: the meaning of the masks' values.

    Returns:
      The images in the order of their records; masks are read when the set is listed.

    Raises:
      FileNotFoundError: if the set is not prepared.
      ValueError: if the name is unknown, or the examples do not have one image and one mask.
    """
    builder = _prepared(place)
    image_key, mask_key = _mask_keys(builder, place)
    names = _splits(builder, split)
    if not names:
        raise _no_split(builder, place, split, "split")
    records = _Records(builder, place, names[0], image_key, mask_key)
    return EncodedSet(
        place=f"{records.place} with masks",
        identity=records.identity,
        list=lambda: _masked_files(builder, place, records, coding),
        coding=coding,
    )


def _class_labelled(builder: Any, records: "_Records") -> EncodedSet:
    listed = Files(
        size=len(records),
        classes=tuple(builder.info.features[records.label_key].names),
        record=records.labelled,
        name=records.name,
    )
    return EncodedSet(records.place, records.identity, lambda: listed)


def _masked_files(builder: Any, place: str, records: "_Records", coding: MaskCoding) -> Files:
    names = getattr(builder.info.features[records.label_key], "names", None) or ()
    coding = coding.with_names(tuple(names))
    # All splits have the classes of the training masks, if there are any.
    train = next(iter(_splits(builder, "train")), records.split)
    known = _Records(builder, place, train, records.image_key, records.label_key)
    coding = coding.completed(
        f"tfds:{place}",
        len(known),
        lambda index: (known[index][1], f"the mask of {known.name(index)}"),
    )
    return Files(
        size=len(records),
        classes=coding.classes,
        record=records.__getitem__,
        name=records.name,
        masks=Masks(coding, lambda index: f"the mask of {records.name(index)}"),
    )


def prepare(place: str) -> None:
    """Downloads a set and writes it to the folder that `load` reads, unless it is there.

    Args:
      place: the set's name as TFDS writes it.

    Raises:
      ValueError: if the name is unknown, or TensorFlow is needed and not installed.
      OSError: if it cannot be downloaded or written.
    """
    builder = _builder(place)
    if builder.is_prepared():
        return
    needs = f"preparing tfds:{place} needs TensorFlow (reading it does not): {_EXTRA}"
    # The sets of TFDS itself use TensorFlow when they are written, which may be after a long
    # download. A set of the user's own that returns encoded images does not need it.
    own = not type(builder).__module__.startswith("tensorflow_datasets.")
    if not own and importlib.util.find_spec("tensorflow") is None:
        raise ValueError(needs)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(f"{needs} ({error})") from error
    except AssertionError as error:
        # TFDS raises it to say which files have to be downloaded by hand, and where to put them.
        raise ValueError(f"tfds:{place}: {error}") from error


def _builder(place: str) -> Any:
    import tensorflow_datasets

    try:
        with _quiet():
            # TFDS itself reads the variable only once, when it is imported.
            return tensorflow_datasets.builder(
                place, file_format=_FORMAT, data_dir=os.environ.get("TFDS_DATA_DIR") or None
            )
    except ImportError as error:
        raise ValueError(
            f"tfds:{place}: TFDS cannot describe it without TensorFlow ({_EXTRA}), unless it is "
            "prepared and its name is given with the version (name:1.0.0)"
        ) from error
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        name = place.partition(":")[0].partition("/")[0]
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known)
        hint = f"; close to it are {', '.join(close)}" if close else ""
        raise ValueError(
            f"tfds:{place}: unknown to TFDS, and not prepared under that name and version{hint}"
        ) from error
    except (ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(": ")
        raise ValueError(f"tfds:{place}: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what TFDS prints about optional libraries and empty folders."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _keys(builder: Any, place: str) -> tuple[str, str]:
    """Returns the names of the one image and the one class label of an example."""
    from tensorflow_datasets import features

    found = []
    supervised = builder.info.supervised_keys or ()
    for kind, word in ((features.Image, "image"), (features.ClassLabel, "class label")):
        names = [name for name, feature in builder.info.features.items() if type(feature) is kind]
        # If there are several, the one that TFDS itself would train on.
        chosen = [name for name in names if name in supervised] or names
        if len(chosen) != 1:
            raise ValueError(
                f"tfds:{place}: wanted one {word} per example, got {', '.join(names) or 'none'}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _mask_keys(builder: Any, place: str) -> tuple[str, str]:
    """Returns the names of the one image and the one mask of an example."""
    from tensorflow_datasets import features

    images = {n: f for n, f in builder.info.features.items() if isinstance(f, features.Image)}
    found = []
    for word, wanted in (("image of three channels", False), ("mask of one channel", True)):
        names = [name for name, feature in images.items() if (feature.shape[-1] == 1) == wanted]
        if len(names) != 1:
            raise ValueError(
                f"tfds:{place}: wanted one {word} per example, got {', '.join(names) or 'none'}"
            )
        found.append(names[0])
    return found[0], found[1]


def _prepared(place: str) -> Any:
    builder = _builder(place)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"tfds:{place} is not prepared in {builder.data_dir}: either set TFDS_DATA_DIR to the "
            f"folder where it is, or prepare it (kernsym-train --prepare; for most sets this needs "
            f"TensorFlow, {_EXTRA})"
        )
    return builder


def _splits(builder: Any, split: str) -> list[str]:
    """Returns the splits that fit the request and have examples, the best one first."""
    present = builder.info.splits
    wanted = _CANDIDATES[split]
    return [name for name in wanted if name in present and present[name].num_examples]


def _no_split(builder: Any, place: str, split: str, kind: str) -> ValueError:
    return ValueError(
        f"tfds:{place}: no {kind} {' or '.join(_CANDIDATES[split])}; "
        f"it has {', '.join(builder.info.splits) or 'none'}"
    )


class _Records:
    """The examples of a split, with encoded images and masks."""

    def __init__(
        self, builder: Any, place: str, split: str, image_key: str, label_key: str
    ) -> None:
        from tensorflow_datasets import decode, features

        # Images stay encoded: Pillow decodes them for every source.
        found = builder.info.features.items()
        images = [name for name, f in found if isinstance(f, features.Image)]
        decoders = {name: decode.SkipDecoding() for name in images}
        self._records = builder.as_data_source(split=split, decoders=decoders)
        self.name = functools.partial("tfds:{}, {} record {}".format, place, split)
        self.split, self.image_key, self.label_key = split, image_key, label_key
        folder = pathlib.Path(builder.data_dir)
        written = (folder / "dataset_info.json").stat()
        self.place = f"{folder}/{split}"
        self._identity = (len(self._records), written.st_size, written.st_mtime_ns)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        # The reader of records raises RuntimeError for a damaged file, and TFDS other errors.
        try:
            example = self._records[index]
        except Exception as error:
            raise ValueError(f"{self.name(index)}: damaged ({error})") from error
        return example[self.image_key], example[self.label_key]

    def labelled(self, index: int) -> tuple[bytes, int]:
        """Returns the image, and its class label as a plain number."""
        image, label = self[index]
        return image, int(label)

    def identity(self) -> tuple[int, int, int]:
        """Returns another value if the set is written anew."""
        return self._identity
