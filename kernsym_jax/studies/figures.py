"""Figures of a study: effects with intervals, layers by variant, and figures during training."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.evaluation.figures import CHANCE, INK, new_figure, style, svg
from kernsym_jax.studies import statistics
from kernsym_jax.studies.results import FinishedRun, Results, Test

COLORS = ("#1b7f79", "#d1495b", "#8a5fbf", "#b8860b", "#3a6ea5", "#7f7f7f", "#e07b39", "#4c9f38",
          "#c45ab3", "#5b5bd6")  # fmt: skip
_ARROW = 20.0
# In inches: on half a wide page and on a phone, letters keep a size that can be read.
_WIDTH = 6.2
# More have no legend: it would take the place of the curves. Their names are in the data.
_MOST_VARIANTS = 12


def draw(results: Results) -> dict[str, Any]:
    """Draws all figures of a study.

    Args:
      results: the results.

    Returns:
      Name -> matplotlib figure: ``effects``, ``scatter_<number>`` for each pair of correlated
      measures, ``layers_<figure>``, ``steps_<figure>``, ``networks`` if networks were read, and
      ``kernels`` if the study is about the padding signature.
    """
    study = results.study
    drawn = {"effects": effects(results)}
    pairs = dict.fromkeys((test.x, test.y) for test in study.correlations.values())
    for number, (x, y) in enumerate(pairs, 1):
        drawn[f"scatter_{number}"] = scatter(results, x, y)
    if study.networks:
        drawn["networks"] = networks(results)
    elif "sig_x" in study.layer_figures:
        drawn["kernels"] = kernels(results)
    for name in study.layer_figures:
        drawn[f"layers_{name}"] = layers(results, name)
    for name in study.trajectories:
        drawn[f"steps_{name}"] = steps(results, name)
    return drawn


def data(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Returns what the figures show as tables.

    Args:
      results: the results.

    Returns:
      Name of a figure, as `draw` names it -> its rows.
    """
    study = results.study
    found = {"effects": [_effect_row(results, test) for test in results.tests]}
    pairs = dict.fromkeys((test.x, test.y) for test in study.correlations.values())
    for number, (x, y) in enumerate(pairs, 1):
        found[f"scatter_{number}"] = [
            {"variant": variant, study.unit: unit, x: row[x], y: row[y]}
            for (variant, unit), row in results.values.items()
        ]
    if study.networks:
        found["networks"] = [
            {"network": run.seed, "layer": layer, "place": place, "kind": kind, "score": above}
            for run in results.finished
            for kind, layers in _above_chance(run).items()
            for layer, place, above in layers
        ]
    elif "sig_x" in study.layer_figures:
        found["kernels"] = [
            {"variant": variant, "layer": layer, "row": y, "column": x, "share": float(share)}
            for variant, by_layer in _tap_shares(results).items()
            for layer, shares in by_layer.items()
            for (y, x), share in np.ndenumerate(shares)
        ]
    facts = ("variant", study.unit, "order", "layer", "role")
    rows = results.layers()
    for name in study.layer_figures:
        found[f"layers_{name}"] = [{key: row[key] for key in (*facts, name)} for row in rows]
    for name in study.trajectories:
        found[f"steps_{name}"] = [
            {"variant": run.variant, study.unit: run.seed, "step": step, name: mean}
            for run in results.finished
            for step, mean in _steps_of(run, name)
        ]
    return found


def _effect_row(results: Results, test: Test) -> dict[str, Any]:
    low, high = test.interval if test.primary else (test.effect.low, test.effect.high)
    return {
        "test": test.name,
        "verdict": test.verdict,
        "smallest that matters": test.test.smallest,
        "effect": test.effect.effect,
        "low": low,
        "high": high,
        **{f"{results.study.unit} {unit}": value for unit, value in test.differences.items()},
    }


def write(drawn: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes figures as SVG files.

    Args:
      drawn: name -> matplotlib figure.
      folder: the folder; created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (folder / f"{name}.svg").write_text(svg(figure), encoding="utf-8")


def effects(results: Results) -> Any:
    """Draws every effect in units of the smallest that matters, with interval and seeds."""
    known = [test for test in results.tests if test.effect.effect is not None]
    figure, axis = _figure(_WIDTH, 0.9 + 0.42 * max(len(known), 1))
    axis.axvspan(-1, 1, color=CHANCE, alpha=0.3, lw=0)
    axis.axvline(0, color=CHANCE, lw=1)
    for place, test in enumerate(reversed(known)):
        unit = test.test.smallest
        color = COLORS[list(results.study.claims).index(test.test.claim) % len(COLORS)]
        low, high = test.interval if test.primary else (test.effect.low, test.effect.high)
        if low is not None and high is not None:
            width = 2 if test.primary else 1
            ends = [low / unit, high / unit]
            axis.plot(ends, [place, place], color=color, lw=width, solid_capstyle="butt")
        size = 34 if test.primary else 14
        axis.scatter([(test.effect.effect or 0.0) / unit], [place], s=size, color=color, zorder=3)
        units = [value / unit for value in test.differences.values()]
        axis.scatter(units, [place - 0.28] * len(units), s=7, color=color, alpha=0.6)
    axis.set(
        yticks=range(len(known)),
        yticklabels=[
            f"{test.name} ({test.verdict})" if test.primary else test.name
            for test in reversed(known)
        ],
        ylim=(-0.6, len(known) - 0.4),
        xlabel="effect over the smallest that matters (grey); small dots are "
        f"{results.study.unit}s",
    )
    return figure


def scatter(results: Results, x: str, y: str) -> Any:
    """Draws two measures of every run, coloured by variant unless the variants are many."""
    figure, axis = _figure(_WIDTH, 3.6)
    many = len(results.study.variants) > _MOST_VARIANTS
    for number, variant in enumerate(results.study.variants):
        index = 0 if many else number
        pairs = [
            (row[x], row[y])
            for (name, _), row in results.values.items()
            if name == variant and row[x] is not None and row[y] is not None
        ]
        if pairs:
            color, mark = COLORS[index % len(COLORS)], "os^"[index // len(COLORS) % 3]
            axis.scatter(*zip(*pairs, strict=True), s=18, color=color, marker=mark, label=variant)
    axis.set(xlabel=results.study.measures[x].meaning, ylabel=results.study.measures[y].meaning)
    if not many:
        _legend(axis)
    return figure


def networks(results: Results) -> Any:
    """Draws the score minus chance of every square kernel in order, one panel per family."""
    families: dict[str, list[FinishedRun]] = {}
    for run in results.finished:
        family = results.study.networks[str(run.seed)].family
        families.setdefault(family, []).append(run)
    across = min(2, len(families))
    down = -(-len(families) // across)
    figure, axes = _figure(7.5, 0.5 + 1.7 * down, (down, across))
    for axis in axes.flat[len(families) :]:
        axis.set_axis_off()
    for axis, (family, runs) in zip(axes.flat, families.items(), strict=False):
        axis.axhline(0, color=CHANCE, lw=1)
        for index, run in enumerate(runs):
            _depths(axis, run, index)
        axis.set_title(family, fontsize=8, color=INK)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, labelcolor=INK, frameon=False, loc="upper left",
                    bbox_to_anchor=(1, 1))  # fmt: skip
    figure.supylabel("score − chance", fontsize=9, color=INK)
    figure.supxlabel("layer, in order", fontsize=9, color=INK)
    return figure


def _depths(axis: Any, run: FinishedRun, index: int) -> None:
    """Draws the layers of one network: a line through the ordinary ones, and marks by kind."""
    color = COLORS[index % len(COLORS)]
    label = str(run.seed)
    kinds = _above_chance(run)
    for kind, mark in (("conv", "o-"), ("depthwise", "x"), ("first", "*")):
        if kind in kinds:
            _, x, y = zip(*kinds[kind], strict=True)
            axis.plot(x, y, mark, ms=5 if kind == "first" else 3, lw=1, color=color, label=label)
            label = "_"


def _above_chance(run: FinishedRun) -> dict[str, list[tuple[str, int, float]]]:
    """Returns the square kernels by kind: their names, places, and scores minus chance."""
    kinds: dict[str, list[tuple[str, int, float]]] = {}
    for place, row in enumerate(run.table.rows, 1):
        kh, kw = row["shape"].split("×")[:2]
        if row["score"] is not None and kh == kw:
            kind = "first" if row["role"] == "first" else row["kind"]
            above = row["score"] - row["null_mean"]
            kinds.setdefault(kind, []).append((row["layer"], place, above))
    return kinds


def kernels(results: Results) -> Any:
    """Draws the size of the weights per tap, averaged over seeds, with the padding signature.

    Each row is a variant, each column a layer of the study's roles. Red cells have larger weights
    than the mean of the kernel, blue ones smaller ones. An arrow is the mean signature, drawn
    `_ARROW` times as long as it is.
    """
    found = _tap_shares(results)
    names = list(dict.fromkeys(name for by_layer in found.values() for name in by_layer))
    down, across = max(len(found), 1), max(len(names), 1)
    figure, axes = _figure(0.8 + 1.1 * across, 1.1 * down, (down, across))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    for row_axes, (variant, by_layer) in zip(axes, found.items(), strict=False):
        row_axes[0].set_ylabel(variant, fontsize=7)
        for axis, name in zip(row_axes, names, strict=True):
            if name in by_layer:
                _tap_sizes(axis, by_layer[name])
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(name, fontsize=8, color=INK)
    return figure


def _tap_shares(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Returns variant -> layer -> the rms kernel, which sums to 1, averaged over the seeds."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for run in results.finished:
        for row in run.table.rows:
            if row["role"] in results.study.roles and row["sig_x"] is not None:
                weight = np.asarray(run.weights[row["layer"]], np.float32)
                sizes = np.sqrt(np.mean(weight**2, axis=(2, 3)))
                by_layer = found.setdefault(run.variant, {})
                by_layer.setdefault(row["layer"], []).append(sizes / sizes.sum())
    return {
        variant: {layer: np.mean(sizes, axis=0) for layer, sizes in by_layer.items()}
        for variant, by_layer in found.items()
    }


def _tap_sizes(axis: Any, sizes: np.ndarray) -> None:
    """Draws one rms kernel, relative to its mean, and the arrow of its first moment."""
    height, width = sizes.shape
    axis.imshow(sizes * sizes.size - 1, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    right, low = float(sizes.sum(0) @ x), float(sizes.sum(1) @ y)
    start = ((width - 1) / 2, (height - 1) / 2)
    tip = (start[0] + _ARROW * right, start[1] + _ARROW * low)
    axis.annotate(
        "",
        tip,
        start,
        arrowprops={"arrowstyle": "->", "lw": 1.4, "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0},
    )
    # Adding 0 takes the sign off a rounded zero.
    moments = (f"{round(moment, 3) + 0:+.3f}" for moment in (right, low))
    axis.set_xlabel(", ".join(moments).replace("-", "−"), fontsize=6)


def layers(results: Results, name: str) -> Any:
    """Draws a column of the layer table over the layers in order, one line per variant."""
    found: dict[str, dict[int, list[float]]] = {}
    labels: dict[int, str] = {}
    rows = results.layers()
    for row in rows:
        if row[name] is not None and row["order"] is not None:
            found.setdefault(row["variant"], {}).setdefault(row["order"], []).append(row[name])
            mark = "" if row["role"] == "internal" else f"\n{row['role']}"
            labels.setdefault(row["order"], f"{row['layer']}{mark}")
    figure, axis = _figure(_WIDTH, 3.6)
    for index, (variant, by_layer) in enumerate(found.items()):
        # Side by side, so that their intervals do not cover each other.
        offset = 0.3 * (index / max(len(found) - 1, 1) - 0.5)
        orders = sorted(by_layer)
        seeds = [by_layer[order] for order in orders]
        _line(axis, np.array(orders) + offset, seeds, variant, index, results.study.coverage)
    if name == "score":
        _chance(axis, rows)
    few = len(labels) <= 12
    axis.set(xlabel="" if few else "layer, in order", ylabel=name)
    if few:
        axis.set_xticks(list(labels), list(labels.values()), fontsize=8)
    _legend(axis)
    return figure


def steps(results: Results, name: str) -> Any:
    """Draws a symmetry figure over the steps, averaged over all layers but the first."""
    figure, axis = _figure(_WIDTH, 3.6)
    for index, variant in enumerate(results.study.variants):
        by_step: dict[int, list[float]] = {}
        for run in results.finished:
            if run.variant != variant:
                continue
            for step, mean in _steps_of(run, name):
                by_step.setdefault(step, []).append(mean)
        if by_step:
            at = sorted(by_step)
            _band(axis, np.array(at), [by_step[step] for step in at], variant, index)
    if name == "score":
        _chance(axis, results.layers())
    axis.set(xlabel="completed steps", ylabel=f"mean {name}")
    _legend(axis)
    return figure


def _steps_of(run: FinishedRun, name: str) -> list[tuple[int, float]]:
    """Returns the steps of a run with the figure's mean over all layers but the first."""
    layers = [r["layer"] for r in run.table.rows if r["role"] in ("internal", "strided")]
    found = []
    for line in run.history:
        known = [line["layers"][layer][name] for layer in layers]
        known = [value for value in known if value is not None]
        if known:
            found.append((line["step"], float(np.mean(known))))
    return found


def _line(
    axis: Any, x: np.ndarray, values: Sequence[Sequence[float]], label: str, i: int, coverage: float
) -> None:
    """Draws means with their intervals, which need two seeds."""
    color = COLORS[i % len(COLORS)]
    axis.plot(x, [np.mean(v) for v in values], "o-", ms=4, lw=1.2, color=color, label=label)
    for place, seeds in zip(x, values, strict=True):
        mean = statistics.paired(seeds, coverage)
        if mean.low is not None:
            axis.plot([place, place], [mean.low, mean.high], color=color, lw=1.2)


def _band(axis: Any, x: np.ndarray, values: Sequence[Sequence[float]], label: str, i: int) -> None:
    """Draws means with the range of the seeds."""
    color = COLORS[i % len(COLORS)]
    ends: list[Callable[[Sequence[float]], float]] = [min, max]
    low, high = ([end(seeds) for seeds in values] for end in ends)
    axis.plot(x, [np.mean(v) for v in values], lw=1.4, color=color, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


def _chance(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    nulls = {(row["null_mean"], row["null_q95"]) for row in rows if row["role"] != "first"}
    if len(nulls) == 1:
        low, high = nulls.pop()
        axis.axhspan(low, high, color=CHANCE, alpha=0.3, lw=0, zorder=0,
                     label="chance: mean to 95 % point")  # fmt: skip


def _legend(axis: Any) -> None:
    """Draws the legend above the axes, in as many columns as fit."""
    _, labels = axis.get_legend_handles_labels()
    if not labels:  # matplotlib warns of an empty legend
        return
    longest = max(map(len, labels))
    # The widest letters fit 13 times into an inch; a mark is as wide as seven letters. If the
    # legend is wider than the figure, nothing is left of the axes.
    columns = max(1, min(len(labels), int(13 * _WIDTH) // (longest + 7)))
    axis.legend(fontsize=8, labelcolor=INK, frameon=False, loc="lower left", ncols=columns,
                bbox_to_anchor=(0, 1))  # fmt: skip


def _figure(width: float, height: float, panels: tuple[int, int] | None = None) -> tuple[Any, Any]:
    with style():
        figure = new_figure(width, height)
        if panels is None:
            return figure, figure.subplots()
        return figure, figure.subplots(*panels, sharey=True, squeeze=False)
