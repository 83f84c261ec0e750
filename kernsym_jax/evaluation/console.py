"""The figures of an evaluation for a terminal."""

from collections.abc import Mapping
from typing import Any

from kernsym_jax import cli

_CLASSES_SHOWN = 20
_KINDS = ("hard", "soft", "rolled_hard", "rolled_soft")


def print_consistency(results: Mapping[str, Any]) -> None:
    """Prints the table of an evaluation, and a table by class.

    Args:
      results: from `evaluate`.
    """
    console = cli.console()
    console.print(_figures(results))
    if len(results["classes"]) > 1:
        console.print(_by_class(results["classes"]))


def _figures(results: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    settings = results["settings"]
    title = f"{settings['weights']} on {results['images']} images of {settings['data']}"
    # Names come from the user's files. Inside a Text they are shown as they are, not as markup.
    table = Table(title=Text(cli.printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("%, with 95 % intervals")
    for name in _KINDS:
        table.add_column(name, justify="right")
    of_pixels = "mean_iou" in results
    table.add_row("pixel accuracy" if of_pixels else "accuracy", _interval(results["accuracy"]))
    if of_pixels:
        table.add_row("mean IoU", _interval(results["mean_iou"]))
    if "shift_consistency" in results:
        table.add_row(
            _shifts(results["shift_consistency"]), _interval(results["shift_consistency"])
        )
    for name, kinds in results.get("flip_consistency", {}).items():
        cells = (kinds[kind] for kind in _KINDS)
        if name != "e":
            table.add_row(name, *map(_interval, cells))
    return table


def _by_class(classes: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = list(classes.items())[:_CLASSES_SHOWN]
    columns = _columns(shown[0][1])
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class")
    for heading in ("images", *columns):
        table.add_column(heading, justify="right")
    for name, figures in shown:
        cells = []
        for path in columns.values():
            found = figures
            for key in path:
                found = found[key]
            cells.append(_interval(found))
        table.add_row(Text(cli.printable(name)), str(figures["images"]), *cells)
    if len(classes) > len(shown):
        table.caption = f"{len(classes) - len(shown)} more classes in the file"
    return table


def _columns(figures: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The headings of the table by class, with the path to each figure."""
    columns: dict[str, tuple[str, ...]] = {"IoU": ("iou",)} if "iou" in figures else {}
    columns["accuracy"] = ("accuracy",)
    if "shift_consistency" in figures:
        columns["shifts"] = ("shift_consistency",)
    for name in ("fliplr", "flipud"):
        if name in figures.get("flip_consistency", {}):
            columns[name] = ("flip_consistency", name, "hard")
    return columns


def _shifts(found: Mapping[str, Any]) -> str:
    settings = found["settings"]
    words = f"{settings['mode']} shifts {settings['low']} to {settings['high']}"
    if not settings["draws"]:
        return words
    return f"{words}, {settings['draws']} pairs per {settings['per']}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:.2f} ({100 * found['low']:.2f}–{100 * found['high']:.2f})"
