"""Sources of networks: files, run directories, folders of them and patterns."""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.cli import path_name
from kernsym_jax.formats.arrays import naming, natural_order, what_it_is
from kernsym_jax.formats.named_arrays import read_weight_map
from kernsym_jax.formats.tensor_bundle import index_of
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report import architecture
from kernsym_jax.report.summary import check_evaluation
from kernsym_jax.report.tables import (
    Comparison,
    NetworkTable,
    RowsAt,
    Trajectory,
    compare_tables,
    network_table,
    trajectory_of,
)
from kernsym_jax.weights import Weights

_SUFFIXES = (
    ".safetensors", ".safetensors.index.json", ".npz", ".msgpack", ".pt", ".pth", ".th", ".bin",
    ".ckpt", ".onnx", ".keras", ".h5", ".hdf5", ".tflite", ".pth.tar", ".pt.tar", ".pkl", ".pickle",
    ".pdparams", ".ptl", ".pt2", ".eqx", ".weights", ".pyth",
)  # fmt: skip
# ``checkpoint_100`` of Flax, ``ckpt-100`` and ``snapshot_iter_100`` have no suffix.
_NUMBERED = re.compile(r"(checkpoint|ckpt|snapshot|model)([-_][a-z]+)?[-_]?\d+", re.IGNORECASE)
# The values of a TensorFlow checkpoint, which its index stands for.
_VALUES = re.compile(r"\.data-\d{5}-of-\d{5}$")
# Names of files that trainers save beside the network.
_NO_NETWORK = re.compile(
    r"(optimizer|optim|scheduler|scaler|training_args|rng_state|random_states?)([-_.]?\d+)*"
    r"\.(pt|pth|bin|pkl)",
    re.IGNORECASE,
)
# Formats whose files keep the network's graph, all or some of them.
_GRAPHS = ("ONNX", "Keras", "TensorFlow Lite")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings for reading sources.

    Attributes:
      layout: ``HWIO``, ``OIHW`` or ``OHWI`` for files that leave the layout open.
      fold_batchnorm: multiplies each kernel by the scale of the BatchNorm after it.
      model: name of the registry model with these weights; it adds strides and paddings that files
        of weights alone do not keep.
      padding: padding of that model, one of ``layers.PADDINGS``.
      downsample: downsampling of that model, one of ``layers.DOWNSAMPLINGS``.
      input_size: pixels of the images, one number or (height, width), for the audit of ``model``,
        of runs and of the graphs of ONNX, Keras and TensorFlow Lite.
      which: ``ema`` for the moving average of the weights that a source holds, ``raw`` for the
        weights; None for the weights, or for the average if there is nothing else.
      trusted: reads sources in this process, without the limits of `weights.read`.

    >>> from kernsym_jax import report
    >>> options = report.Options(layout="HWIO", trusted=True)
    >>> options.layout, options.downsample
    ('HWIO', 'stride')
    """

    layout: str | None = None
    fold_batchnorm: bool = False
    model: str | None = None
    padding: str = "zero"
    downsample: str = "stride"
    input_size: int | tuple[int, int] | None = None
    which: str | None = None
    trusted: bool = False


class NoNetworkError(ValueError):
    """A file holds no layers, such as the state of an optimizer or of a trainer."""


def table(source: Any, *, name: str | None = None, **options: Any) -> NetworkTable:
    """Reads and measures one network.

    Args:
      source: a file of weights, a checkpoint or a run directory; or weights in memory, as for
        `weights.read`: a state dict, parameters, a module or a TrainState.
      name: the network's name in the table; by default its path, or its type if it is in memory.
      **options: the attributes of `Options`.

    Returns:
      The network's table: its ``rows``, ``to_dataframe()``, and a view for notebooks.

    Raises:
      ValueError: if it cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> net = {"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel[::-1].copy()}}
    >>> table = report.table(net, name="random")
    >>> table.source, [row["layer"] for row in table.rows]
    ('random', ['conv1', 'conv2'])
    """
    if isinstance(source, NetworkTable):
        return source
    settings = Options(**options)
    if isinstance(source, str | os.PathLike):
        found = read_table(os.fspath(source), settings)
    else:
        found = _in_memory(source, settings)
    if name is None:
        return found
    rows = [{**row, "source": name} for row in found.rows]
    return dataclasses.replace(found, source=name, rows=rows)


def compare(sources: Iterable[Any] | Mapping[str, Any], **options: Any) -> Comparison:
    """Compares networks layer by layer where their names match.

    Args:
      sources: networks, each as for `table`; or name -> network.
      **options: the attributes of `Options`.

    Returns:
      The comparison.

    Raises:
      ValueError: if a network cannot be read or has no spatial convolution.
      FileNotFoundError: if a source does not exist.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> net = {"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel[::-1].copy()}}
    >>> comparison = report.compare({"raw": net, "doubled": {"conv1": {"kernel": 2 * kernel}}})
    >>> comparison.rows[0]["layer"], len(comparison.rows[0]["score"])
    ('conv1', 2)
    """
    return compare_tables(_tables(sources, options))


def trajectory(sources: Any, **options: Any) -> Trajectory:
    """Follows the layers of a network over the checkpoints of one run.

    Args:
      sources: a folder of checkpoints, a pattern such as ``epoch_*.pth``, or the checkpoints, each
        as for `table`. Numbers in their names, or ``step`` or ``epoch`` in their contents, tell
        their order.
      **options: the attributes of `Options`.

    Returns:
      The trajectory.

    Raises:
      ValueError: if a checkpoint cannot be read, or nothing tells their order.
      FileNotFoundError: if there is no checkpoint.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for epoch in (1, 2):
    ...     np.savez(folder / f"epoch_{epoch}.npz", **{"conv/kernel": epoch * kernel})
    ...
    >>> report.trajectory(folder, trusted=True).steps
    [1, 2]
    """
    if isinstance(sources, str | os.PathLike):
        sources = find_sources([os.fspath(sources)])
    return trajectory_of(_tables(sources, options))


def _tables(
    sources: Iterable[Any] | Mapping[str, Any], options: Mapping[str, Any]
) -> list[NetworkTable]:
    if isinstance(sources, Mapping):
        return [table(source, name=name, **options) for name, source in sources.items()]
    return [table(source, **options) for source in sources]


def find_sources(places: Sequence[str]) -> list[pathlib.Path]:
    """Finds the sources that a command line names.

    Args:
      places: files, run directories, checkpoints, folders of numbered checkpoints (for each of
        them), other folders (for every run directory and file of weights below them), and patterns
        such as ``runs/*``.

    Returns:
      The sources, each once, in order: checkpoint 2 before checkpoint 10.

    Raises:
      FileNotFoundError: if a place does not exist, or a folder or pattern contains no source.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for epoch in (1, 2):
    ...     np.savez(folder / f"epoch_{epoch}.npz", **{"conv/kernel": epoch * kernel})
    ...
    >>> [path.name for path in report.find_sources([str(folder)])]
    ['epoch_1.npz', 'epoch_2.npz']
    """
    found: dict[pathlib.Path, None] = {}
    for place in places:
        path = pathlib.Path(place)
        if path.exists():
            matches = [path]
        else:
            names = sorted(glob.glob(place, recursive=True), key=natural_order)
            matches = [pathlib.Path(name) for name in names if not _VALUES.search(name)]
            index = None if matches else index_of(path)
            matches += [index] if index is not None else []
            if not matches:
                raise FileNotFoundError(f"{place}: no such file or directory")
        inside = [source for match in matches for source in _steps_of(match) or _below(match)]
        if not inside:
            raise FileNotFoundError(f"{place}: no run directory and no file of weights in it")
        found |= dict.fromkeys(inside)
    return list(found)


def begin_reading(path: str | pathlib.Path, options: Options | None = None) -> None:
    """Begins to read a source, while another one is measured; `read_table` then goes on with it."""
    from kernsym_jax import weights

    weights.begin_reading(path, **_reading(options or Options()))


def read_table(path: str | pathlib.Path, options: Options | None = None) -> NetworkTable:
    """Reads one source and measures it.

    Args:
      path: a run directory or a file of weights.
      options: settings for reading it.

    Returns:
      Its table.

    Raises:
      ValueError: if it cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for epoch in (1, 2):
    ...     np.savez(folder / f"epoch_{epoch}.npz", **{"conv/kernel": epoch * kernel})
    ...
    >>> table = report.read_table(folder / "epoch_1.npz", report.Options(trusted=True))
    >>> [row["layer"] for row in table.rows]
    ['conv']
    """
    from kernsym_jax import weights

    path, options = pathlib.Path(path), options or Options()
    with naming(path):
        found = weights.read(path, **_reading(options))
        _require_kernels(found, path_name(path))
        history = _symmetry_lines(path) if run_directory.is_run(path) else []
        has_graph = found.format.startswith(_GRAPHS)
        geometry = architecture.geometry_of(path, options, has_graph=has_graph)
        more = {"history": history, "consistency": _evaluation(path)}
        return _table(found, str(path), geometry, options, **more)


def _in_memory(source: Any, options: Options) -> NetworkTable:
    from kernsym_jax import weights

    found = weights.read(source, **_reading(options))
    _require_kernels(found, f"a {found.source} in memory")
    return _table(found, found.source, architecture.geometry_of(None, options), options)


def _reading(options: Options) -> dict[str, Any]:
    names = ("layout", "fold_batchnorm", "which", "trusted")
    return {name: getattr(options, name) for name in names}


def _table(
    found: Weights,
    source: str,
    geometry: tuple[Sequence[LayerGeometry], RowsAt | None],
    options: Options,
    **more: Any,
) -> NetworkTable:
    found, rows, rows_at = architecture.join(found, source, geometry, options)
    return network_table(found, source, rows, rows_at, **more)


def _require_kernels(weights: Weights, name: str) -> None:
    if not weights.kernels:
        kind = ValueError if any(map(_is_of_network, weights.skipped.values())) else NoNetworkError
        raise kind(
            f"{name}: no spatial convolution among its {len(weights.skipped)} entries, nothing to "
            f"measure{_open_layouts(weights)}"
        )


def _is_of_network(reason: str) -> bool:
    """Returns whether the reason why an array is left out allows that it is of a layer."""
    if reason.startswith(("optimizer state", "not run", "a scalar", "0-D", "1-D array")):
        return False
    return "not floating-point" not in reason


def _open_layouts(weights: Weights) -> str:
    """Returns the arrays that would be kernels if their layout were known."""
    open_ones = [f"{name}: {why}" for name, why in weights.skipped.items() if "--layout" in why]
    return f" ({'; '.join(open_ones[:3])})" if open_ones else ""


def _below(path: pathlib.Path, above: frozenset[pathlib.Path] = frozenset()) -> list[pathlib.Path]:
    if not path.is_dir() or _is_source(path):
        return [path]
    # A link may lead back to a folder above it.
    here = path.resolve()
    if here in above:
        return []
    found = []
    for entry in sorted(path.iterdir(), key=lambda entry: natural_order(entry.name)):
        if entry.is_dir():
            found += _below(entry, above | {here})
        elif _may_be_network(entry.name) or _is_index(entry):
            found.append(entry)
    return _without_shards(found)


def _is_index(path: pathlib.Path) -> bool:
    """Returns whether a file is the index of a TensorFlow checkpoint, its values beside it."""
    values = f"{glob.escape(path.stem)}.data-?????-of-?????"
    return path.suffix == ".index" and next(path.parent.glob(values), None) is not None


def _may_be_network(name: str) -> bool:
    if _NO_NETWORK.fullmatch(name):
        return False
    return name.lower().endswith((*_SUFFIXES, ".bin.index.json")) or bool(_NUMBERED.fullmatch(name))


def _without_shards(files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the files of a folder without the parts that an index joins into one network."""
    shards: set[pathlib.Path] = set()
    for file in files:
        if file.name.endswith(".index.json"):
            try:
                shards |= {file.parent / name for name in read_weight_map(file).values()}
            except (ValueError, OSError):
                continue  # reading the index reports the damage
    return [file for file in files if file not in shards]


def _steps_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a folder; a run directory counts with its newest only."""
    if not path.is_dir() or run_directory.is_run(path):
        return []
    from kernsym_jax.formats import orbax

    return list(orbax.steps(path).values())


def _is_source(folder: pathlib.Path) -> bool:
    # A half-written run counts too, and a wrong kind of folder, so that reading it reports them.
    if run_directory.is_run(folder) or what_it_is(folder) is not None:
        return True
    from kernsym_jax.formats import orbax, tensor_bundle

    if (folder / tensor_bundle.SAVED_MODEL).is_file() or orbax.is_distributed(folder):
        return True
    return orbax.is_checkpoint(folder)


def _evaluation(source: pathlib.Path) -> dict[str, Any] | None:
    """Returns the evaluation of a source.

    A run directory has ``consistency.json`` in it. A file of weights may have one beside it, which
    is an evaluation of this file if it names the file. Otherwise it belongs to another file, or to
    another program.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / run_directory.CONSISTENCY).exists():
        return None
    try:
        found = run_directory.read_consistency(folder)
        weights = pathlib.Path(str(found["settings"].get("weights"))).name
    except ValueError:
        if source.is_dir():
            raise
        return None
    if source.is_file() and weights != source.name:
        return None
    try:
        check_evaluation(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        path = path_name(folder / run_directory.CONSISTENCY)
        raise ValueError(f"{path}: not an evaluation ({error})") from error
    return found


def _symmetry_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the steps and scores of the metrics' lines that hold scores of layers."""
    return [
        {
            "step": line["step"],
            "scores": {layer: row["score"] for layer, row in line["layers"].items()},
        }
        for line in run_directory.read_metrics(workdir)
        if line["split"] == "symmetry"
    ]
