"""Drawings of a few kinds of shapes, saved as SVG and PNG.

Importing matplotlib and finding a layout with it takes longer than reading and measuring a large
network.
"""

import functools
import html
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

INK = "#24292f"
"""The colour of text and axes; a page replaces it by its own."""

# Pixels of a PNG file per point, 72 to the inch; and how many times finer its shapes are drawn to
# smooth them.
_SCALE = 130 / 72
_FINER = 4
# Where a text begins, ends or has its middle, on its baseline: Pillow's words for SVG's.
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}

Point = tuple[float, float]
Points = Sequence[Point]


class Drawing:
    """Shapes and texts, placed in points from the top left, to be saved as SVG and PNG.

    Args:
      width: in points.
      height: in points.
      smooth: whether a PNG file has smooth edges; upright rectangles need none.
    """

    def __init__(self, width: float, height: float, *, smooth: bool = True) -> None:
        self._width, self._height = width, height
        self._finer = _FINER if smooth else 1
        self._elements: list[str] = []
        # Functions that paint the same shapes with Pillow, at a number of pixels per point.
        self._shapes: list[Callable[[Any, float], None]] = []
        self._texts: list[tuple[float, float, str, float, str, bool]] = []

    def box(self, corner: Point, size: Point, color: str, opacity: float = 1) -> None:
        """Draws a rectangle: its top left corner, its width and height."""
        (x, y), (width, height) = corner, size
        shown = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self._elements.append(
            f'<rect x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" '
            f'height="{_short(height)}" fill="{color}"{shown}/>'
        )
        on_white = mixed(("#ffffff", color), opacity) if opacity < 1 else color

        def paint(canvas: Any, scale: float) -> None:
            edges = [round(edge * scale) for edge in (x, y, x + width, y + height)]
            # Pillow's rectangles contain their last row and column.
            if edges[2] > edges[0] and edges[3] > edges[1]:
                canvas.rectangle((edges[0], edges[1], edges[2] - 1, edges[3] - 1), fill=on_white)

        self._shapes.append(paint)

    def line(
        self, points: Points, color: str, width: float, dashes: tuple[float, ...] = ()
    ) -> None:
        """Draws a line through points, solid or with dashes and gaps of the given lengths."""
        places = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
        gaps = f' stroke-dasharray="{" ".join(map(_short, dashes))}"' if dashes else ""
        self._elements.append(
            f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width:g}" '
            f'stroke-linejoin="round" shape-rendering="auto"{gaps}/>'
        )

        def paint(canvas: Any, scale: float) -> None:
            for part in _dashed(points, dashes) if dashes else [points]:
                places = [(x * scale, y * scale) for x, y in part]
                canvas.line(places, color, max(1, round(width * scale)), joint="curve")

        self._shapes.append(paint)

    def dot(self, x: float, y: float, radius: float, color: str) -> None:
        """Draws a disc around its middle."""
        self._elements.append(
            f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{radius:g}" fill="{color}" '
            'shape-rendering="auto"/>'
        )
        corners = (x - radius, y - radius, x + radius, y + radius)
        self._shapes.append(
            lambda canvas, scale: canvas.ellipse([place * scale for place in corners], color)
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        anchor: Literal["start", "middle", "end"] = "start",
        *,
        upright: bool = False,
    ) -> None:
        """Writes a line of text on its baseline; an upright line reads from bottom to top."""
        turned = f' transform="rotate(-90 {_short(x)} {_short(y)})"' if upright else ""
        self._elements.append(
            f'<text x="{_short(x)}" y="{_short(y)}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{INK}"{turned}>{html.escape(text)}</text>'
        )
        self._texts.append((x, y, text, size, anchor, upright))

    def svg(self, *, page: bool = False) -> str:
        """Returns the drawing as an SVG document, the same bytes every time.

        Args:
          page: text and axes have the colour of the surrounding page, on a transparent ground.
        """
        width, height = _short(self._width), _short(self._height)
        # Smooth edges would leave fine lines between neighbouring rectangles.
        ground = "" if page else '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt" '
            f'viewBox="0 0 {width} {height}" shape-rendering="crispEdges" '
            'font-family="DejaVu Sans, Verdana, sans-serif">\n'
            + ground
            + "\n".join(self._elements)
            + "\n</svg>\n"
        )
        return text.replace(INK, "currentColor") if page else text

    def write_png(self, path: pathlib.Path) -> None:
        """Writes the drawing as a PNG file of 130 pixels an inch."""
        from PIL import Image, ImageDraw

        width, height = (math.ceil(side * _SCALE) for side in (self._width, self._height))
        image = Image.new("RGB", (width * self._finer, height * self._finer), "white")
        canvas = ImageDraw.Draw(image)
        for paint in self._shapes:
            paint(canvas, _SCALE * self._finer)
        image = image.reduce(self._finer)
        canvas = ImageDraw.Draw(image)
        for x, y, text, size, anchor, upright in self._texts:
            font, place = _font(size * _SCALE), (x * _SCALE, y * _SCALE)
            origin = _ANCHORS[anchor]
            if not upright:
                canvas.text(place, text, INK, font, anchor=origin)
                continue
            left, top, right, bottom = font.getbbox(text, anchor=origin)
            mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
            ImageDraw.Draw(mask).text((-left, -top), text, 255, font, anchor=origin)
            corner = (round(place[0] + top), round(place[1] - right))
            canvas.bitmap(corner, mask.transpose(Image.Transpose.ROTATE_90), INK)
        image.save(path, dpi=(130, 130))


def mixed(colors: Sequence[str], share: float) -> str:
    """Returns the colour at a share of the way through colours at equal distances."""
    place = min(max(share, 0), 1) * (len(colors) - 1)
    number = min(int(place), len(colors) - 2)
    ends = (bytes.fromhex(color[1:]) for color in colors[number : number + 2])
    parts = (round(a + (b - a) * (place - number)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def text_width(text: str, size: float) -> float:
    """Returns the width of a text in points."""
    return _font(size * 4).getlength(text) / 4


@functools.lru_cache(maxsize=16)
def _font(size: float) -> Any:
    """Returns the font of matplotlib's figures, which comes with it, or Pillow's own."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    folder = pathlib.Path(found.origin).parent if found and found.origin else pathlib.Path()
    try:
        return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def _dashed(points: Points, lengths: Sequence[float]) -> Iterator[Points]:
    """Yields the dashes of a line; lengths are those of a dash and of a gap."""
    number, left = 0, lengths[0]
    dash = [points[0]]
    for start, end in itertools.pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            place = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
            if number % 2 == 0:
                yield [*dash, place]
            dash, number = [place], number + 1
            left = lengths[number % len(lengths)]
        left -= length - done
        dash.append(end)
    if number % 2 == 0 and len(dash) > 1:
        yield dash


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
