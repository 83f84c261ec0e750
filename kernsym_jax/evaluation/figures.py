"""The figures and files of an evaluation, its table for a terminal, and the plot style."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax import cli, json_file
from kernsym_jax.data import VOID
from kernsym_jax.evaluation.transforms import Shifts, shift, shift_maps

if TYPE_CHECKING:
    from kernsym_jax.evaluation.subject import Subject


# Only text and axes have this colour, so a page can replace it by its own.
INK = "#24292f"
CHANCE = "#9aa5b1"
"""The colour of chance: null bands and reference lines."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kernsym",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MOST_NUMBERS = 11
_UNSEEN, _SAME, _OTHER = 0, 1, 2
# White, a light grey and red; void is black.
_OUTCOMES = np.array([(255, 255, 255), (210, 210, 210), (200, 30, 30)], np.uint8)
_MOST_NAMES = 24


def style() -> Any:
    """Returns a context in which matplotlib draws and saves in the package's style."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float, *, dpi: float = 100) -> Any:
    """Makes an empty figure that needs no display.

    Args:
      width: in inches.
      height: in inches.
      dpi: pixels per inch of a PNG file.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def svg(figure: Any, *, page: bool = False) -> str:
    """Renders a figure as SVG text, the same bytes every time.

    Args:
      figure: a matplotlib figure.
      page: draws text and axes in the colour of the surrounding page, on a transparent ground.

    Returns:
      The SVG document, or the SVG element alone for a page.
    """
    stream = io.StringIO()
    with style():
        figure.savefig(
            stream,
            format="svg",
            transparent=page,
            facecolor="none" if page else "white",
            metadata={"Date": None, "Creator": None},
        )
    text = stream.getvalue()
    if page:
        text = text[text.index("<svg") :].replace(INK, "currentColor")
    return text


def literal(text: str) -> str:
    """Escapes dollar signs, between which matplotlib would read a formula."""
    return text.replace("$", r"\$")


def write_results(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes an evaluation as JSON, and the map of its shifts beside it as SVG.

    Args:
      results: from `evaluate`.
      path: the JSON file; its folder is created if it is missing.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> results = evaluation.summarize(answers, ("dark", "bright"))
    >>> results["settings"] = {"weights": "net", "data": "two images"}
    >>> evaluation.write_results(results, folder / "found.json")
    >>> sorted(path.name for path in folder.iterdir())
    ['found.json', 'found.svg']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_json(path, results)
    if "shift_consistency" in results:
        title = f"{pathlib.Path(results['settings']['weights']).name}, {results['images']} images"
        write_map(results["shift_consistency"], title, path.with_suffix(".svg"))


def write_map(found: Mapping[str, Any], title: str, path: pathlib.Path) -> None:
    """Draws the share of unchanged classes for each offset, the same bytes every time.

    Args:
      found: ``shift_consistency`` of an evaluation, with its map.
      title: the title of the figure.
      path: the SVG file.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> results = evaluation.summarize(answers, ("dark", "bright"))
    >>> evaluation.write_map(results["shift_consistency"], "shifts", folder / "map.svg")
    >>> (folder / "map.svg").is_file()
    True
    """
    from matplotlib.ticker import MaxNLocator

    shares = 100 * np.array(found["map"]["agreement"], np.float64)
    dy, dx = found["map"]["dy"], found["map"]["dx"]
    # The cell of the image at rest is 100 % and would use up the colour range of the others.
    others = np.array([[row != 0 or column != 0 for column in dx] for row in dy])
    others &= np.isfinite(shares)
    low, high = (shares[others].min(), shares[others].max()) if others.any() else (0.0, 100.0)
    if low == high:
        low, high = low - 1, high + 1
    with style():
        figure = new_figure(4.8, 4.2)
        axis = figure.subplots()
        picture = axis.imshow(
            shares,
            cmap="viridis",
            vmin=low,
            vmax=high,
            extent=(dx[0] - 0.5, dx[-1] + 0.5, dy[-1] + 0.5, dy[0] - 0.5),
            interpolation="nearest",
        )
        if len(dy) <= _MOST_NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if np.isfinite(share):
                    color = "black" if share > (low + high) / 2 else "white"
                    axis.text(dx[column], dy[row], f"{share:.1f}", fontsize=6, ha="center",
                              va="center", color=color)  # fmt: skip
        settings = found["settings"]
        axis.set(xlabel="dx, pixels to the right", ylabel="dy, pixels down")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        between = "shift" if not settings["draws"] else "difference between two shifts"
        figure.colorbar(picture, ax=axis, shrink=0.9, label="same class, %", extend="max")
        text = f"{title}\n{settings['mode']} {between}: {100 * found['value']:.2f} %"
        axis.set_title(literal(text), fontsize=9)
    path.write_text(svg(figure), encoding="utf-8")


class Example(NamedTuple):
    """A network's answers to one image and to the same image shifted.

    Attributes:
      image: (height, width, channels) uint8, the network's input at rest.
      mask: (height, width) uint8, the true classes.
      answer: (height, width) integers, the answer at rest.
      shifted_answer: (height, width) integers, the answer to the shifted image, aligned with it.
      outcome: (height, width), aligned with the image at rest: 1 where both answers are the same,
        2 where they differ, 0 where the shifted image does not show the place.
      offset: the shift in pixels, down and to the right.
    """

    image: np.ndarray
    mask: np.ndarray
    answer: np.ndarray
    shifted_answer: np.ndarray
    outcome: np.ndarray
    offset: tuple[int, int]


def example(subject: "Subject", shifts: Shifts, number: int) -> Example:
    """Runs a network on one of its images, at rest and under the largest of the shifts.

    Args:
      subject: a network with one answer per pixel.
      shifts: the mode and the range.
      number: number of the image.

    Returns:
      The answers.

    Raises:
      ValueError: if that shift moves the image out of sight.

    >>> import numpy as np
    >>> from kernsym_jax import data, evaluation
    >>> def bright_pixels(images):
    ...     return np.concatenate([0.5 - images, images], axis=-1)
    ...
    >>> masks = np.eye(4, dtype=np.uint8)[None]
    >>> images = data.ImageSet(255 * masks[..., None], masks, ("dark", "bright"))
    >>> network = evaluation.HostFunction(bright_pixels)
    >>> subject = evaluation.Subject(network, images, (0.0,), (1.0,), {})
    >>> evaluation.example(subject, evaluation.Shifts("zero", -1, 1), number=0).offset
    (1, 1)
    """
    offset = max(reversed(shifts.grid), key=lambda place: abs(place[0]) + abs(place[1]))
    images, masks = subject.images.images[[number]], subject.images.labels[[number]]
    view = shifts.view_size(*images.shape[1:3])
    rest, moved = jnp.zeros(2, jnp.int32), jnp.asarray(offset, jnp.int32)
    if shifts.mode == "crop":
        shown, mask = shift(images, rest, "crop", view), shift_maps(masks, rest, "crop", view)
    else:
        shown, mask = images, masks
    answer, other = (
        jnp.argmax(subject.predict(shift(subject.normalized(images), by, shifts.mode, view)), -1)
        for by in (rest, moved)
    )
    back = shift_maps(other + 1, -moved, "circular" if shifts.mode == "circular" else "zero")
    outcome = jnp.where(back == answer + 1, _SAME, _OTHER)
    found = shown, mask, answer, other, jnp.where(back == 0, _UNSEEN, outcome)
    image, true, at_rest, shifted, same = (np.asarray(array)[0] for array in jax.device_get(found))
    return Example(image, true, at_rest, shifted, same, offset)


def write_picture(subject: "Subject", shifts: Shifts | None, path: pathlib.Path) -> bool:
    """Draws the answers to the middle one of the images, the same bytes every time.

    Args:
      subject: the network and its images; images with class labels have no picture.
      shifts: the shifts that were compared; without shifts there is no picture.
      path: the PNG file; its folder is created if it is missing.

    Returns:
      Whether it wrote a picture.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import data, evaluation, models
    >>> images = data.load("digits", "test")
    >>> model = models.create("small_cnn", num_classes=10)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> predict = evaluation.predictor(model, variables)
    >>> subject = evaluation.Subject(predict, images, (0.3,), (0.4,), {})
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> evaluation.write_picture(subject, evaluation.Shifts(), folder / "net.png")  # no masks
    False
    """
    if shifts is None or not subject.images.masks:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    found = example(subject, shifts, len(subject.images) // 2)
    with style():
        figure = _draw(found, shifts, subject.images.classes)
        figure.savefig(path, format="png", metadata={"Software": None})
    return True


def _draw(found: Example, shifts: Shifts, classes: Sequence[str]) -> Any:
    # A network may have more classes than its images have names for.
    largest = int(max(found.answer.max(), found.shifted_answer.max()))
    colors = _colors(max(len(classes), 1 + largest))
    height, width = found.answer.shape
    figure = new_figure(8.4, 1.1 + 5.4 * height / width, dpi=110)
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, picture) in zip(axes, _panels(found, shifts, colors).items(), strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])
    axes[-1].set_axis_off()
    patches = _patches(found, classes, colors)
    axes[-1].legend(handles=patches, loc="center", ncol=2, fontsize=7, frameon=False)
    return figure


def _panels(found: Example, shifts: Shifts, colors: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the pictures by title."""
    image = found.image if found.image.shape[-1] == 3 else found.image.repeat(3, axis=-1)
    seen, known = found.outcome != _UNSEEN, found.mask != VOID
    share = np.mean(found.outcome[seen] == _SAME)
    right = np.mean(found.answer[known] == found.mask[known]) if known.any() else np.nan
    down, across = found.offset
    moved = f"answer to the image {down} down, {across} right\n({shifts.mode})"
    return {
        "image": image,
        "mask": colors[np.where(known, found.mask, len(colors) - 1)],
        f"answer: {100 * right:.1f} % right": colors[found.answer],
        moved: colors[found.shifted_answer],
        f"both, the shift undone: {100 * share:.1f} % alike": _OUTCOMES[found.outcome],
    }


def _patches(found: Example, classes: Sequence[str], colors: np.ndarray) -> list[Any]:
    """Returns the legend: the classes that appear, void, and the outcomes."""
    from matplotlib.patches import Patch

    known = found.mask[found.mask != VOID]
    present = np.union1d(known, [found.answer, found.shifted_answer]).tolist()
    names = [classes[label] if label < len(classes) else f"class {label}" for label in present]
    patches = [
        Patch(color=colors[label] / 255, label=literal(name))
        for label, name in list(zip(present, names, strict=True))[:_MOST_NAMES]
    ]
    patches.append(Patch(color=colors[-1] / 255, label="void"))
    outcomes = ("not seen by both", "alike", "not alike")
    return patches + [
        Patch(facecolor=color / 255, edgecolor="grey", label=name)
        for color, name in zip(_OUTCOMES, outcomes, strict=True)
    ]


def _colors(classes: int) -> np.ndarray:
    """(classes + 1, 3) uint8, one for each class and black for void."""
    from matplotlib import colormaps

    wheel = colormaps["tab20"] if classes <= 20 else colormaps["gist_ncar"]
    places = np.arange(classes) if classes <= 20 else np.linspace(0.03, 0.97, classes)
    shades = (255 * wheel(places)[:, :3]).round().astype(np.uint8)
    return np.concatenate([shades, np.zeros((1, 3), np.uint8)])


_CLASSES_SHOWN = 20
_KINDS = ("hard", "soft", "rolled_hard", "rolled_soft")


def print_consistency(results: Mapping[str, Any]) -> None:
    """Prints the table of an evaluation, and a table by class.

    Args:
      results: from `evaluate`.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> results = evaluation.summarize(answers, ("dark", "bright"))
    >>> results["settings"] = {"weights": "net", "data": "zeros"}
    >>> evaluation.print_consistency(results)  # doctest: +ELLIPSIS
    net on 4 images of zeros
    ...
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
    """Returns the headings of the table by class, with the path to each figure."""
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
