"""The picture of an agreement map."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "kernsym", "font.size": 9}
_MOST_NUMBERS = 11


def write_map(found: Mapping[str, Any], title: str, path: pathlib.Path) -> None:
    """Draws how often the class stays for each offset, the same bytes every time.

    Args:
      found: ``shift_consistency`` of an evaluation, with its map.
      title: above the picture.
      path: of the SVG file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shares = 100 * np.array(found["map"]["agreement"], np.float64)
    dy, dx = found["map"]["dy"], found["map"]["dx"]
    # An image agrees with itself: that cell would use up the colours of the others.
    others = np.array([[row != 0 or column != 0 for column in dx] for row in dy])
    others &= np.isfinite(shares)
    low, high = (shares[others].min(), shares[others].max()) if others.any() else (0.0, 100.0)
    if low == high:
        low, high = low - 1, high + 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
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
        axis.set_title(
            f"{title}\n{settings['mode']} {between}: {100 * found['value']:.2f} %".replace(
                "$", r"\$"
            ),
            fontsize=9,
        )
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
