"""TensorFlow Datasets: read without TensorFlow, once they are prepared."""

import contextlib
import difflib
import functools
import importlib.util
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from kernsym_jax.data.encoded_set import EncodedSet, Files

_FORMAT = "array_record"
_TEST_SPLITS = ("test", "validation")
_EXTRA = "pip install 'kernsym-jax[tf]'"


def load(place: str, split: str) -> EncodedSet:
    """Opens a split of a prepared set.

    Args:
      place: the set's name as TFDS writes it, ``name[/config][:version]``; it is looked for in
        ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
      split: ``train``, or ``test``: the set's own test split if that has labels, else its
        validation split.

    Returns:
      The images in the order of their records.

    Raises:
      FileNotFoundError: if the set is not prepared.
      ValueError: if the name is unknown, or the set is not one of labelled images.
    """
    builder = _builder(place)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"tfds:{place} is not prepared in {builder.data_dir}: either set TFDS_DATA_DIR to the "
            f"folder where it is, or prepare it (kernsym-train --prepare; for most sets this needs "
            f"TensorFlow, {_EXTRA})"
        )
    image_key, label_key = _keys(builder, place)
    candidates = ("train",) if split == "train" else _TEST_SPLITS
    for name in candidates:
        if name not in builder.info.splits or not builder.info.splits[name].num_examples:
            continue
        encoded = _encoded_set(builder, place, name, image_key, label_key)
        # Some test splits are published without labels, which TFDS writes as −1.
        if encoded.files.record(0)[1] >= 0:
            return encoded
    raise ValueError(
        f"tfds:{place}: no labelled split {' or '.join(candidates)}; "
        f"it has {', '.join(builder.info.splits) or 'none'}"
    )


def prepare(place: str) -> None:
    """Downloads a set and writes it where `load` looks for it, unless it is there.

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
    # The sets of TFDS itself use it while they are written, after what may be a long download; one
    # of the user's own that gives encoded images does not.
    own = not type(builder).__module__.startswith("tensorflow_datasets.")
    if not own and importlib.util.find_spec("tensorflow") is None:
        raise ValueError(needs)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(f"{needs} ({error})") from error
    except AssertionError as error:
        # How TFDS says that files have to be downloaded by hand, and where to put them.
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
    """Holds back what TFDS prints about optional libraries and empty folders."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _keys(builder: Any, place: str) -> tuple[str, str]:
    """The names of the one image and the one class label of an example."""
    from tensorflow_datasets import features

    found = []
    supervised = builder.info.supervised_keys or ()
    for kind, word in ((features.Image, "image"), (features.ClassLabel, "class label")):
        names = [name for name, feature in builder.info.features.items() if type(feature) is kind]
        # Where there are several, those that TFDS itself would train on.
        chosen = [name for name in names if name in supervised] or names
        if len(chosen) != 1:
            raise ValueError(
                f"tfds:{place}: wanted one {word} per example, got {', '.join(names) or 'none'}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _encoded_set(
    builder: Any, place: str, split: str, image_key: str, label_key: str
) -> EncodedSet:
    from tensorflow_datasets import decode, features

    # Images stay encoded: Pillow decodes them for every source.
    images = [name for name, f in builder.info.features.items() if isinstance(f, features.Image)]
    decoders = {name: decode.SkipDecoding() for name in images}
    records = builder.as_data_source(split=split, decoders=decoders)
    folder = pathlib.Path(builder.data_dir)
    written = (folder / "dataset_info.json").stat()
    name = functools.partial("tfds:{}, {} record {}".format, place, split)
    listed = Files(
        size=len(records),
        classes=tuple(builder.info.features[label_key].names),
        record=functools.partial(_record, records, image_key, label_key, name),
        name=name,
    )
    return EncodedSet(
        place=f"{folder}/{split}",
        identity=lambda: (len(records), written.st_size, written.st_mtime_ns),
        list=lambda: listed,
    )


def _record(
    records: Any, image_key: str, label_key: str, name: Callable[[int], str], index: int
) -> tuple[bytes, int]:
    # The reader of records raises RuntimeError for damaged files, TFDS whatever it runs into.
    try:
        example = records[index]
    except Exception as error:
        raise ValueError(f"{name(index)}: damaged ({error})") from error
    return example[image_key], int(example[label_key])
