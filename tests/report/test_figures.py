"""The figures of a layer table as SVG and PNG files."""

import dataclasses
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from kernsym_jax import report
from kernsym_jax.report import figures
from kernsym_jax.report.drawing import Drawing

_PIXELS = 130 / 72


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    kernels = {f"conv{n}": {"kernel": rng.standard_normal((3, 3, 4, 8))} for n in range(9)}
    return report.table(kernels, name="nine layers")


@pytest.fixture(scope="module")
def recorded(table):
    """The table of a run whose second layer has no score at one step of four."""
    history = [
        {
            "step": 100 * number,
            "scores": {
                row["layer"]: None if (number, row["layer"]) == (1, "conv1") else row["score"]
                for row in table.rows
            },
        }
        for number in range(4)
    ]
    return dataclasses.replace(table, history=history)


def _elements(drawing, tag):
    return ET.fromstring(drawing.svg()).iter(f"{{http://www.w3.org/2000/svg}}{tag}")


def test_both_files_of_the_gallery_show_the_colours_of_the_cells(table, tmp_path):
    figures.write_figures(table, tmp_path)
    image = Image.open(tmp_path / "mean_kernels.png").convert("RGB")
    boxes = list(_elements(figures.gallery(table), "rect"))[1:]
    for place, row in enumerate(table.rows):
        for cell, value in enumerate(figures.unit_kernel(table.mean_kernels[row["layer"]]).flat):
            box = boxes[9 * place + cell].attrib
            middle = [
                (float(box[start]) + float(box[length]) / 2) * _PIXELS
                for start, length in (("x", "width"), ("y", "height"))
            ]
            assert box["fill"] == figures.kernel_color(float(value))
            red, green, blue = image.getpixel(tuple(map(int, middle)))
            assert f"#{red:02x}{green:02x}{blue:02x}" == box["fill"]


def test_the_ends_and_the_middle_of_the_colours_are_those_of_the_scale():
    assert [figures.kernel_color(value) for value in (-1.0, 0.0, 1.0)] == [
        "#2d004b",
        "#f7f7f7",
        "#7f3b08",
    ]


def test_a_point_of_the_scores_lies_where_its_axes_say(table):
    drawing = figures.score_by_depth(table)
    texts = {text.text: text.attrib for text in _elements(drawing, "text")}
    high, low = float(texts["1.0"]["y"]), float(texts["0.3"]["y"])
    dots = [dot.attrib for dot in _elements(drawing, "circle")][: len(table.rows)]
    for number, (dot, row) in enumerate(zip(dots, table.rows, strict=True), 1):
        assert float(dot["cx"]) == pytest.approx(float(texts[str(number)]["x"]), abs=0.02)
        expected = low + (row["score"] - 0.3) / 0.7 * (high - low)
        # The numbers stand a little below their ticks.
        assert float(dot["cy"]) == pytest.approx(expected - 3.2, abs=0.02)


def test_a_curve_has_a_gap_where_a_score_is_undefined(recorded):
    drawing = figures.trajectory(recorded)
    curves = [line for line in _elements(drawing, "polyline") if line.get("stroke-width") == "1.3"]
    points = [len(line.get("points").split()) for line in curves]
    # Nine curves of four steps, one of them in two parts, and nine lines of the legend.
    assert sorted(points) == sorted([4] * 8 + [1, 2] + [2] * 9)


def test_a_trajectory_on_the_page_has_the_page_s_colours(recorded):
    plot = figures.trajectory(recorded).svg(page=True)
    assert "currentColor" in plot
    assert not re.search('fill="#ffffff"|#24292f', plot)


def test_a_dashed_line_has_dashes_and_gaps_of_the_given_lengths_in_both_files(tmp_path):
    drawing = Drawing(100, 20)
    drawing.line([(0, 10), (40, 10), (100, 10)], "#000000", 4, (10, 10))
    assert 'stroke-dasharray="10 10"' in drawing.svg()
    drawing.write_png(tmp_path / "line.png")
    row = np.asarray(Image.open(tmp_path / "line.png").convert("L"))[round(10 * _PIXELS)]
    dark = [row[round(place * _PIXELS)] < 128 for place in range(5, 100, 10)]
    assert dark == [True, False] * 5


def test_large_kernels_are_drawn_in_at_most_64_cells_a_side():
    kernel = np.arange(130 * 3, dtype=np.float32).reshape(130, 3)
    drawn = figures.coarse(kernel)
    assert drawn.shape == (64, 3)
    np.testing.assert_allclose(drawn[0], kernel[:2].mean(axis=0))


def test_analyzing_a_file_does_not_import_matplotlib(tmp_path):
    np.savez(tmp_path / "net.npz", **{"conv/kernel": np.ones((3, 3, 2, 2), np.float32)})
    program = (
        "import sys; from kernsym_jax import report; "
        f"report.analyze([{str(tmp_path / 'net.npz')!r}], {str(tmp_path / 'out')!r}); "
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
