"""The picture of one answer to masks: what it is, what it becomes under a shift, and where."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.data import VOID
from kernsym_jax.evaluation.masks import move
from kernsym_jax.evaluation.shift import Shifts, shift
from kernsym_jax.evaluation.subject import Subject

_STYLE: Any = {"font.size": 8}
_UNSEEN, _SAME, _OTHER = 0, 1, 2
# White, a light grey and red; void is black.
_OUTCOMES = np.array([(255, 255, 255), (210, 210, 210), (200, 30, 30)], np.uint8)
_NAMED = 24


class Example(NamedTuple):
    """A network's answers to one image and to the same image shifted.

    Attributes:
      image: (height, width, channels) uint8, as the network sees it at rest.
      mask: (height, width) uint8, the true classes.
      answer: (height, width) integers, the classes of the network.
      shifted_answer: (height, width) integers, its classes for the shifted image, as it sees that.
      outcome: (height, width), once the shift is undone: 1 where both answers are the same, 2 where
        they are not, 0 where the shifted image does not show the place.
      offset: pixels down and to the right.
    """

    image: np.ndarray
    mask: np.ndarray
    answer: np.ndarray
    shifted_answer: np.ndarray
    outcome: np.ndarray
    offset: tuple[int, int]


def example(subject: Subject, shifts: Shifts, number: int) -> Example:
    """A network's answers to one of its images, and to it under the largest of the shifts.

    Args:
      subject: a network that answers each pixel.
      shifts: the mode and the range.
      number: of the image.

    Returns:
      The answers.

    Raises:
      ValueError: if that shift leaves nothing of the image.
    """
    offset = max(reversed(shifts.grid), key=lambda place: abs(place[0]) + abs(place[1]))
    images, masks = subject.images.images[[number]], subject.images.labels[[number]]
    view = shifts.view_size(*images.shape[1:3])
    rest, moved = jnp.zeros(2, jnp.int32), jnp.asarray(offset, jnp.int32)
    if shifts.mode == "crop":
        shown, mask = shift(images, rest, "crop", view), move(masks, rest, "crop", view)
    else:
        shown, mask = images, masks
    answer, other = (
        jnp.argmax(subject.predict(shift(subject.normalized(images), by, shifts.mode, view)), -1)
        for by in (rest, moved)
    )
    back = move(other + 1, -moved, "circular" if shifts.mode == "circular" else "zero")
    outcome = jnp.where(back == answer + 1, _SAME, _OTHER)
    found = shown, mask, answer, other, jnp.where(back == 0, _UNSEEN, outcome)
    image, true, at_rest, shifted, same = (np.asarray(array)[0] for array in jax.device_get(found))
    return Example(image, true, at_rest, shifted, same, offset)


def write_picture(subject: Subject, shifts: Shifts | None, path: pathlib.Path) -> bool:
    """Draws the answers to the middle one of the images, the same bytes every time.

    Args:
      subject: what is evaluated; of images with class labels there is nothing to draw.
      shifts: which were compared; without any there is nothing to draw either.
      path: of the PNG file; its folder is made if it is not there.

    Returns:
      Whether it has been drawn.
    """
    if shifts is None or not subject.images.masks:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    found = example(subject, shifts, len(subject.images) // 2)
    _draw(found, shifts, subject.images.classes, path)
    return True


def _draw(found: Example, shifts: Shifts, classes: Sequence[str], path: pathlib.Path) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # A network may have more classes than its images have names for.
    largest = int(max(found.answer.max(), found.shifted_answer.max()))
    colors = _colors(max(len(classes), 1 + largest))
    image = found.image if found.image.shape[-1] == 3 else found.image.repeat(3, axis=-1)
    seen = found.outcome != _UNSEEN
    share = np.mean(found.outcome[seen] == _SAME)
    known = found.mask != VOID
    right = np.mean(found.answer[known] == found.mask[known]) if known.any() else np.nan
    down, across = found.offset
    panels = {
        "image": image,
        "mask": colors[np.where(known, found.mask, len(colors) - 1)],
        f"answer: {100 * right:.1f} % right": colors[found.answer],
        f"answer to the image {down} down, {across} right\n({shifts.mode})": colors[
            found.shifted_answer
        ],
        f"both, the shift undone: {100 * share:.1f} % alike": _OUTCOMES[found.outcome],
    }
    height, width = found.answer.shape
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 1.1 + 5.4 * height / width), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3).ravel()
        axes[-1].set_axis_off()
        for axis, (title, picture) in zip(axes, panels.items(), strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set(xticks=[], yticks=[])
        present = np.union1d(found.mask[known], [found.answer, found.shifted_answer]).tolist()
        patches = [
            # A name is the user's: none of it is taken for a formula.
            Patch(color=colors[label] / 255, label=name.replace("$", r"\$"))
            for label in present[:_NAMED]
            for name in [classes[label] if label < len(classes) else f"class {label}"]
        ]
        patches.append(Patch(color=colors[-1] / 255, label="void"))
        names = ("not seen by both", "alike", "not alike")
        patches += [
            Patch(facecolor=color / 255, edgecolor="grey", label=name)
            for color, name in zip(_OUTCOMES, names, strict=True)
        ]
        axes[-1].legend(handles=patches, loc="center", ncol=2, fontsize=7, frameon=False)
        figure.savefig(path, format="png", metadata={"Software": None})


def _colors(classes: int) -> np.ndarray:
    """(classes + 1, 3) uint8, one for each class and black for void."""
    from matplotlib import colormaps

    wheel = colormaps["tab20"] if classes <= 20 else colormaps["gist_ncar"]
    places = np.arange(classes) if classes <= 20 else np.linspace(0.03, 0.97, classes)
    shades = (255 * wheel(places)[:, :3]).round().astype(np.uint8)
    return np.concatenate([shades, np.zeros((1, 3), np.uint8)])
