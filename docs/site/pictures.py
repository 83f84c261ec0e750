"""Draws the pictures of the README and the documentation that no command writes.

python docs/site/pictures.py resnet20.th resnet32.th resnet44.th resnet56.th

writes docs/images/signature.png (the padding signature of every layer of these networks) and
docs/images/coverage.png (how many windows read each pixel).
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np

from kernsym_jax import geometry, report

IMAGES = pathlib.Path(__file__).resolve().parents[1] / "images"
_ORANGE, _GREY = "#e8590c", "#868e96"


def draw_signature(paths):
    """Draws the signature of every layer; strided layers stand out."""
    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    tables = [report.table(path) for path in paths]
    for wanted, colour, label, size in [
        ("internal", _GREY, "stride 1", 14),
        ("strided", _ORANGE, "stride 2, uneven padding", 60),
    ]:
        rows = [row for table in tables for row in table.rows if row["role"] == wanted]
        x, y = ([row[f"sig_{axis}"] for row in rows] for axis in "xy")
        axes.scatter(x, y, size, colour, label=f"{len(rows)} layers of {label}", edgecolors="white")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("signature along x, in cells  (right →)")
    axes.set_ylabel("signature along y, in cells  (down →)")
    axes.set_title(f"Padding signature, {len(paths)} trained CIFAR-10 ResNets")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(IMAGES / "signature.png", dpi=140)


def draw_coverage():
    """Draws how many windows of a 3×3 convolution with stride 2 read each pixel."""
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
    for axes, size in zip(panels, (8, 9), strict=True):
        counts = np.asarray(geometry.foveation(size, kernel=3, stride=2)).round().astype(int)
        padded = np.pad(counts, 1)
        last = size if size % 2 else size - 1
        axes.imshow(
            padded, cmap="Blues", vmin=0, vmax=6, extent=(-1.5, size + 0.5, size + 0.5, -1.5)
        )
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, count, ha="center", va="center")
        axes.add_patch(plt.Rectangle((-0.5, -0.5), size, size, fill=False, linewidth=1.5))
        axes.add_patch(
            plt.Rectangle((-1.5, -1.5), 3, 3, fill=False, edgecolor=_ORANGE, linewidth=2.5)
        )
        axes.add_patch(
            plt.Rectangle(
                (last - 2.5, last - 2.5), 3, 3, fill=False, edgecolor=_ORANGE, linewidth=2.5
            )
        )
        uneven = geometry.uneven_padding(size, kernel=3, stride=2, padding=1)
        text = "the far padding is never read" if uneven else "both sides are read alike"
        axes.set_title(f"{size}×{size} pixels, u = {uneven}: {text}", fontsize=11)
        axes.set_xlim(-1.6, size + 0.6)
        axes.set_ylim(size + 0.6, -1.6)
        axes.axis("off")
    title = "Windows (3×3, stride 2, padding 1) that read each pixel; first and last window"
    figure.suptitle(title, fontsize=11)
    figure.savefig(IMAGES / "coverage.png", dpi=120)


if __name__ == "__main__":
    draw_signature(sys.argv[1:])
    draw_coverage()
