"""The table of one network, and the tables of several side by side."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.cli import path_name
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report import page
from kernsym_jax.report.layer_table import COLUMNS, layer_rows, measurable, measure_layers
from kernsym_jax.report.summary import summarize
from kernsym_jax.weights import Weights, flax_layer

RowsAt = Callable[[Any], Sequence[LayerGeometry]]

COMPARED = ("score", "score_centered", "E", "sig_x", "sig_y")
"""The figures that a comparison puts side by side."""

MEANS = (
    "layers",
    "mean",
    "internal_mean",
    "strided_mean",
    "first_score",
    "above_null",
    "above_null_centered",
    "padding_tested",
    "padding_shown",
    "discoveries",
    "depth_spearman",
    "strided_deficit",
)
"""The figures of a whole network in comparisons and trajectories, from `summarize`."""

# Names that number several networks of one shape, and not the checkpoints of one run.
_NO_STEP = re.compile(r"(seed|fold|run|rank|part|shard|member|version|variant|v)[-_=. ]*$", re.I)
_STEP = re.compile(r"(step|iteration|iter|epoch)s?[-_=. ]*$", re.I)
# ``checkpoint-500`` of Hugging Face's trainer, ``global_step500`` of DeepSpeed.
_STEP_FOLDER = re.compile(
    r"(checkpoint|ckpt|(global[-_]?)?step|iter(ation)?|epoch)[-_=. ]*\d+", re.I
)
# Two networks of one shape in a folder may just have been trained for different times.
_FEWEST_BY_CONTENT = 3


@dataclasses.dataclass(frozen=True)
class NetworkTable:
    """The measured layers of one network.

    In a notebook it shows its table and its mean kernels.

    Attributes:
      source: the network's name in tables and figures.
      weights: the weights that were measured.
      rows: one dict per layer, with the keys of `COLUMNS` and `FURTHER`; None where unknown or
        undefined.
      mean_kernels: layer -> (kh, kw) float32, in the order of the rows.
      geometry: rows of the audit, pooling included; empty if nothing is known.
      rows_at: audits the network at another input size; None if that is impossible.
      history: ``{"step": completed steps, "scores": {layer: score}}`` of a run, in order.
      consistency: the results of `evaluate`; None if the network was not evaluated.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> net = {"conv": {"kernel": np.ones((3, 3, 8, 8))}}
    >>> table = report.table(net)
    >>> [(row["layer"], row["shape"]) for row in table.rows]
    [('conv', '3×3×8×8')]
    >>> table.mean_kernels["conv"].shape
    (3, 3)
    """

    source: str
    weights: Weights
    rows: list[dict[str, Any]]
    mean_kernels: dict[str, np.ndarray]
    geometry: Sequence[LayerGeometry] = ()
    rows_at: RowsAt | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    consistency: dict[str, Any] | None = None

    def to_dataframe(self) -> Any:
        """Returns the rows as a ``pandas.DataFrame`` with the columns of ``layers.csv``.

        Raises:
          ImportError: if pandas is not installed.
        """
        return _dataframe(self.rows, COLUMNS)

    def _repr_html_(self) -> str:
        return page.fragment(self)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several networks, layer by layer.

    Attributes:
      tables: the networks.
      rows: one dict per layer name that at least two of the networks share: ``layer``, ``role`` and
        ``shape`` in the first of these, and for each figure of `COMPARED` a list with one value per
        network, None where it lacks the layer.
      means: one dict per network: ``source`` and the figures of `MEANS`.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> net = {"conv": {"kernel": np.ones((3, 3, 8, 8))}}
    >>> comparison = report.compare({"a": net, "b": net})
    >>> [row["layer"] for row in comparison.rows], [mean["source"] for mean in comparison.means]
    (['conv'], ['a', 'b'])
    """

    tables: Sequence[NetworkTable]
    rows: list[dict[str, Any]]
    means: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The columns of ``comparison.csv``.

        For each figure one column per network and, from the second network on, the difference from
        the first.
        """
        return ["layer", "role", "shape", *(name for name, _ in self._cells({}))]

    def flat_rows(self) -> list[dict[str, Any]]:
        """Returns the rows of ``comparison.csv``: one per layer, then the means over the layers."""
        flat = [
            {key: row[key] for key in ("layer", "role", "shape")} | dict(self._cells(row))
            for row in self.rows
        ]
        if flat:
            means: dict[str, Any] = {"layer": "mean over these layers", "role": None, "shape": None}
            for name in self.columns[3:]:
                known = [row[name] for row in flat if row[name] is not None]
                means[name] = float(np.mean(known)) if known else None
            flat.append(means)
        return flat

    def to_dataframe(self) -> Any:
        """Returns the rows of ``comparison.csv`` as a ``pandas.DataFrame``.

        Raises:
          ImportError: if pandas is not installed.
        """
        return _dataframe(self.flat_rows(), self.columns)

    def _repr_html_(self) -> str:
        return page.comparison_fragment(self)

    def _cells(self, row: Mapping[str, Any]) -> list[tuple[str, float | None]]:
        """Returns the figures of a row by column."""
        cells: list[tuple[str, float | None]] = []
        names = [f"{number}: {table.source}" for number, table in enumerate(self.tables, 1)]
        for figure in COMPARED:
            values: list[float | None] = row.get(figure, [None] * len(names))
            cells += [
                (f"{figure} {name}", value) for name, value in zip(names, values, strict=True)
            ]
            for name, value in list(zip(names, values, strict=True))[1:]:
                cells.append((f"{figure} difference {name}", _difference(value, values[0])))
        return cells


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The checkpoints of one run, in order.

    Attributes:
      source: name of the run.
      steps: numbers of the checkpoints: steps or epochs, as their names or contents count.
      tables: the checkpoints.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.savez(folder / "epoch_1.npz", **{"conv/kernel": np.ones((3, 3, 8, 8))})
    >>> np.savez(folder / "epoch_2.npz", **{"conv/kernel": np.ones((3, 3, 8, 8))})
    >>> trajectory = report.trajectory(folder, trusted=True)
    >>> trajectory.steps, len(trajectory.tables)
    ([1, 2], 2)
    """

    source: str
    steps: list[int]
    tables: list[NetworkTable]

    @property
    def columns(self) -> list[str]:
        """The columns of ``trajectory.csv``: the network's figures and the score of each layer."""
        layers = [row["layer"] for row in self.tables[-1].rows]
        return ["run", "step", "source", *MEANS, *(f"score {layer}" for layer in layers)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``trajectory.csv``, one dict per checkpoint."""
        return [
            {
                "run": self.source,
                "step": step,
                "source": table.source,
                **_means(table),
                **{f"score {row['layer']}": row["score"] for row in table.rows},
            }
            for step, table in zip(self.steps, self.tables, strict=True)
        ]

    @property
    def last(self) -> NetworkTable:
        """The table of the last checkpoint, with the scores of all as its history."""
        history = [
            {"step": step, "scores": {row["layer"]: row["score"] for row in table.rows}}
            for step, table in zip(self.steps, self.tables, strict=True)
        ]
        return dataclasses.replace(self.tables[-1], history=history)

    def to_dataframe(self) -> Any:
        """Returns the rows as a ``pandas.DataFrame``.

        Raises:
          ImportError: if pandas is not installed.
        """
        return _dataframe(self.rows, self.columns)

    def _repr_html_(self) -> str:
        return page.trajectory_fragment(self)


def network_table(
    weights: Weights,
    source: str | None = None,
    geometry: Sequence[LayerGeometry] = (),
    rows_at: RowsAt | None = None,
    history: Iterable[dict[str, Any]] = (),
    consistency: dict[str, Any] | None = None,
) -> NetworkTable:
    """Measures every kernel of a network.

    Args:
      weights: from `weights.read`.
      source: the network's name; its path if None.
      geometry: rows of the network's audit, for facts that the weights do not tell.
      rows_at: audits the network at another input size.
      history: the scores during training, as in `NetworkTable`.
      consistency: the results of `evaluate`.

    Returns:
      The table.

    >>> import numpy as np
    >>> from kernsym_jax import report, weights
    >>> found = weights.read({"conv": {"kernel": np.ones((3, 3, 8, 8))}})
    >>> report.network_table(found, "ones").rows[0]["score"]
    1.0
    """
    source, weights = path_name(source or weights.source), measurable(weights)
    measured = measure_layers(weights)
    rows = layer_rows(weights, measured, source, geometry)
    means = {layer: found.mean_kernel for layer, found in measured.items()}
    return NetworkTable(source, weights, rows, means, geometry, rows_at, list(history), consistency)


def compare_tables(tables: Sequence[NetworkTable]) -> Comparison:
    """Compares networks layer by layer where their names match.

    ``layer1.0.conv1`` of PyTorch matches ``layer1_0/conv1`` of our models; kernels of different
    height or width do not match.

    Args:
      tables: one per network.

    Returns:
      The comparison.
    """
    by_name: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for number, table in enumerate(tables):
        for row in table.rows:
            kh, kw, *_ = row["shape"].split("×")
            key = flax_layer(row["layer"].removeprefix("module.")), f"{kh}×{kw}"
            by_name.setdefault(key, [None] * len(tables))[number] = row
    rows = []
    for found in by_name.values():
        known = [row for row in found if row is not None]
        if len(known) > 1:
            facts = {key: known[0][key] for key in ("layer", "role", "shape")}
            figures = {name: [row and row[name] for row in found] for name in COMPARED}
            rows.append(facts | figures)
    return Comparison(tables, rows, [{"source": t.source, **_means(t)} for t in tables])


def find_trajectories(
    tables: Sequence[NetworkTable],
) -> tuple[list[Trajectory], list[NetworkTable]]:
    """Finds the networks that are checkpoints of one run.

    These lie in one folder and have the same layers. Their names differ in a number that counts
    steps or epochs, or those of their own folders do (``checkpoint-500/model.safetensors``); or,
    from three checkpoints on, their files hold such numbers.

    Args:
      tables: one per network.

    Returns:
      The trajectories, and the networks that belong to none.
    """
    found, others = [], list(tables)
    for run_of, least in ((_by_name, 2), (_by_folder, 2), (_by_content, _FEWEST_BY_CONTENT)):
        groups: dict[Any, list[NetworkTable]] = {}
        for table in others:
            shapes = tuple((row["layer"], row["shape"]) for row in table.rows)
            groups.setdefault((run_of(pathlib.PurePath(table.source)), shapes), []).append(table)
        others = []
        for (run, _), members in groups.items():
            steps = _steps(members) if run and len(members) >= least else None
            if steps is None:
                others += members
            else:
                found.append(trajectory_of(members, steps, str(run)))
    return found, others


def _by_name(source: pathlib.PurePath) -> pathlib.PurePath | None:
    if not source.name:
        return None
    # Folders named by their step alone are the checkpoints of the folder around them.
    pattern = _pattern(source.name)
    return source.parent if pattern == "*" else source.with_name(pattern)


def _by_folder(source: pathlib.PurePath) -> pathlib.PurePath | None:
    folder = source.parent
    numbered = _STEP_FOLDER.fullmatch(folder.name)
    return folder.with_name(_pattern(folder.name)) / source.name if numbered else None


def _by_content(source: pathlib.PurePath) -> pathlib.PurePath | None:
    # The names of checkpoints in a folder of their own tell nothing.
    return source.parent


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def trajectory_of(
    tables: Sequence[NetworkTable], steps: Sequence[int] | None = None, source: str = ""
) -> Trajectory:
    """Puts the checkpoints of one run in order.

    Args:
      tables: one per checkpoint.
      steps: their numbers; from names and contents if None.
      source: name of the run.

    Returns:
      The trajectory.

    Raises:
      ValueError: if nothing tells their order.
    """
    numbers = _steps(tables) if steps is None else steps
    if numbers is None:
        names = ", ".join(table.source for table in tables[:3])
        raise ValueError(f"neither names nor contents tell the order of the checkpoints {names}")
    ordered = sorted(zip(numbers, tables, strict=True), key=lambda pair: pair[0])
    return Trajectory(
        source or str(pathlib.PurePath(tables[0].source).parent),
        [step for step, _ in ordered],
        [table for _, table in ordered],
    )


def _steps(tables: Sequence[NetworkTable]) -> list[int] | None:
    """Returns the steps of checkpoints, all different, from their names or else their contents."""
    if len(tables) < 2:
        return None
    paths = [pathlib.PurePath(table.source) for table in tables]
    by_name = _steps_in_names([path.name for path in paths])
    by_folder = None
    if all(_STEP_FOLDER.fullmatch(path.parent.name) for path in paths):
        by_folder = _steps_in_names([path.parent.name for path in paths])
    for steps in (by_name, by_folder, [table.weights.step for table in tables]):
        if steps is not None and None not in steps and len(set(steps)) == len(tables):
            return [int(step) for step in steps if step is not None]
    return None


def _steps_in_names(names: Sequence[str]) -> list[int] | None:
    """Returns the numbers that count steps or epochs in names which differ in numbers only."""
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(words) for words in parts}) > 1:
        return None
    varying = [
        place
        for place in range(1, len(parts[0]), 2)
        if len({words[place] for words in parts}) == len(names)
        and not _NO_STEP.search(parts[0][place - 1])
    ]
    # Lightning writes ``epoch=3-step=1200.ckpt``; a number beside a loss is no step.
    named = [place for place in varying if _STEP.search(parts[0][place - 1])]
    chosen = named or varying
    return [int(words[chosen[-1 if named else 0]]) for words in parts] if chosen else None


def _means(table: NetworkTable) -> dict[str, Any]:
    figures = summarize(table)
    return {name: figures[name] for name in MEANS}


def _difference(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def _dataframe(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    try:
        import pandas
    except ImportError:
        raise ImportError("data frames need pandas: pip install kernsym-jax[pandas]") from None
    chosen = [{name: row[name] for name in columns} for row in rows]
    return pandas.DataFrame(chosen, columns=list(columns))
