"""The figures of an evaluation for a terminal."""

from collections.abc import Mapping
from typing import Any

_CLASSES_SHOWN = 20
_KINDS = ("hard", "soft", "rolled_hard", "rolled_soft")


def print_consistency(results: Mapping[str, Any]) -> None:
    """Prints the table of an evaluation, and one by class.

    Args:
      results: from `evaluate`.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe has no width; what reads it wants whole rows.
        console = Console(width=120)
    console.print(_figures(results))
    if len(results["classes"]) > 1:
        console.print(_by_class(results["classes"]))


def _figures(results: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    settings = results["settings"]
    title = f"{settings['weights']} on {results['images']} images of {settings['data']}"
    # Names come from the user's files: as Text they are shown, never taken as markup.
    table = Table(title=Text(_printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
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
    first = shown[0][1]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class")
    table.add_column("images", justify="right")
    columns: list[tuple[str, tuple[str, ...]]] = [("accuracy", ("accuracy",))]
    if "iou" in first:
        columns.insert(0, ("IoU", ("iou",)))
    if "shift_consistency" in first:
        columns.append(("shifts", ("shift_consistency",)))
    for name in ("fliplr", "flipud"):
        if name in first.get("flip_consistency", {}):
            columns.append((name, ("flip_consistency", name, "hard")))
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for name, figures in shown:
        cells = []
        for _, path in columns:
            found = figures
            for key in path:
                found = found[key]
            cells.append(_interval(found))
        table.add_row(Text(_printable(name)), str(figures["images"]), *cells)
    if len(classes) > len(shown):
        table.caption = f"{len(classes) - len(shown)} more classes in the file"
    return table


def _shifts(found: Mapping[str, Any]) -> str:
    settings = found["settings"]
    words = f"{settings['mode']} shifts {settings['low']} to {settings['high']}"
    if not settings["draws"]:
        return words
    return f"{words}, {settings['draws']} pairs per {settings['per']}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:.2f} ({100 * found['low']:.2f}–{100 * found['high']:.2f})"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
