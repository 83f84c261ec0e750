"""The page: what it says, its data, and its behaviour in a real browser without any request."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import time
import urllib.parse

import numpy as np
import pytest

from kernsym_jax import geometry, report
from kernsym_jax.report.page import render
from kernsym_jax.weights import ConvKernel, Weights

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
    "--dump-dom",
)
# Appended to the page: what a reader would do, and what is then to be seen.
VISIT = """
<script>
const rows = () => [...document.querySelectorAll("table.layers tbody tr")];
const shown = () => rows().filter((row) => !row.hidden).map((row) => row.cells[1].textContent);
const heading = (name) => [...document.querySelectorAll("table.layers th button")]
  .find((button) => button.textContent === name);
const result = { layers: rows().length, offered: performance.getEntriesByType("resource").length };
heading("score").click();
result.up = shown();
heading("score").click();
result.down = shown();
const role = document.querySelector(".by-role");
role.value = "strided";
role.dispatchEvent(new Event("change"));
result.strided = shown();
role.value = "";
const name = document.querySelector(".by-name");
name.value = "LAYER1";
name.dispatchEvent(new Event("input"));
result.named = shown();
result.count = document.querySelector(".count").textContent;
document.body.dataset.result = JSON.stringify(result);
</script>
"""
# How wide the page is, and the names that do not fit.
MEASURE = """
<script>
const table = document.querySelector("table.layers").getBoundingClientRect();
const names = [...document.querySelectorAll(".gallery .name, .energies .name, td.name")];
document.body.dataset.result = JSON.stringify({
  page: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  table: [table.left, table.right],
  names: names.length,
  cut: names.filter((name) => name.scrollWidth > name.clientWidth + 1).length,
});
</script>
"""


def network(layers):
    rng = np.random.default_rng(0)
    kernels = {
        f"layer{i}": ConvKernel(
            rng.normal(rng.uniform(0, 2), 1, (3, 3, 2, 2)).astype(np.float32),
            stride=(1 + (i % 5 == 4),) * 2,
        )
        for i in range(layers)
    }
    kernels["layer3"] = ConvKernel(np.zeros((3, 3, 2, 2), np.float32), stride=(1, 1))
    return report.network_table(Weights(kernels, {}, "a network", "test", "forward", "HWIO"))


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    return found


def visit(browser, page, folder, script=VISIT, width=800):
    path = folder / "page.html"
    path.write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
    ran = subprocess.run(
        [
            browser, *FLAGS, f"--window-size={width},900", f"--user-data-dir={folder}/profile",
            path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-result="([^"]*)"', ran.stdout)
    assert found, ran.stderr
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found[1].replace("&quot;", '"')), console


def test_a_visit_shows_no_error_and_the_table_sorts_and_filters(browser, tmp_path):
    table = network(12)
    result, console = visit(browser, render([table]), tmp_path)
    assert console == []
    assert result["layers"] == 12
    assert result["offered"] == 0
    scores = {row["layer"]: row["score"] for row in table.rows if row["score"] is not None}
    ranked = sorted(scores, key=scores.__getitem__)
    # What is undefined stays at the end both ways.
    assert result["up"] == [*ranked, "layer3"]
    assert result["down"] == [*ranked[::-1], "layer3"]
    assert set(result["strided"]) == {"layer4", "layer9"}
    assert set(result["named"]) == {"layer1", "layer10", "layer11"}
    assert result["count"] == "3 of 12 layers"


def test_a_network_of_a_thousand_layers_stays_usable(browser, tmp_path):
    started = time.monotonic()
    page = render([network(1000)])
    assert len(page) < 6e6
    result, console = visit(browser, page, tmp_path)
    assert console == []
    assert result["layers"] == 1000
    assert len(result["up"]) == 1000
    assert time.monotonic() - started < 60


def test_the_page_forbids_every_request():
    page = render([network(2)])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def grown(seed=0):
    """A kernel with larger weights at the bottom right."""
    sizes = np.ones((3, 3, 8, 8), np.float32)
    sizes[2], sizes[:, 2] = 1.5, 1.5
    return sizes * np.random.default_rng(seed).standard_normal(sizes.shape).astype(np.float32)


def audited(layer, size):
    out = (size + 2 - 3) // 2 + 1
    return geometry.LayerGeometry(
        layer, "conv", (size, size), (out, out), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    )


def strided(size, names=("a", "b")):
    """A network of one strided layer behind another, at an input of this size."""
    rows = []
    for name in names:
        rows.append(audited(name, rows[-1].output_size[0] if rows else size))
    kernels = {
        name: ConvKernel(grown(seed), stride=(2, 2), padding=((1, 1), (1, 1)))
        for seed, name in enumerate(names)
    }
    found = Weights(kernels, {}, "a network", "test", "forward", "HWIO")
    return report.network_table(found, geometry=rows)


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag, name=""):
        words = [attributes for found, attributes in self.found if found == tag]
        return [each for each in words if not name or name in each.get("class", "").split()]


def top_of(page):
    return re.findall(r'<p class="verdict ?(\w*)">(.*?)</p>', page[: page.index("</header>")])


def test_the_page_begins_with_the_verdict_whatever_is_known():
    ((tone, words),) = top_of(render([strided(32)]))
    assert tone == "shown"
    assert words.startswith("2 of 2 strided layers show the padding; ")
    assert "remedies: " in words
    assert top_of(render([strided(33)])) == [
        ("even", "No strided layer has uneven padding at 33 px.")
    ]
    of_weights = {
        "no strides (--model adds them)": {"a": ConvKernel(grown()), "b": ConvKernel(grown(1))},
        "no input size (--input_size or --model adds it)": {
            name: ConvKernel(grown(), stride=(2, 2)) for name in "ab"
        },
    }
    for lacks, kernels in of_weights.items():
        found = Weights(kernels, {}, "a network", "test", "forward", "HWIO")
        assert top_of(render([report.network_table(found)])) == [
            ("", f"Unknown whether the padding shows: the file keeps {lacks}.")
        ]


def test_several_networks_have_a_verdict_each_that_leads_to_them():
    page = render([strided(32), strided(33)])
    first, second = (words for _, words in top_of(page))
    assert first.startswith('<a href="#network-1">')
    assert "no strided layer" in second.lower()


def test_every_figure_has_its_data_a_click_away():
    table = strided(32)
    steps = [{"step": step, "scores": {"a": 0.5 + step, "b": None}} for step in (0.25, 0.5)]
    table.history.extend(steps)
    page = render([table])
    elements = Elements(page)
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    links = [link["href"] for link in elements.of("a")]
    assert {link[1:] for link in links if link.startswith("#")} == {"network-1-layers"} <= ids
    figures = len(elements.of("figure")) + len(elements.of("ul", "gallery"))
    figures += len(elements.of("ol", "energies"))
    assert figures == len(elements.of("p", "data")) == 4
    files = {}
    for link in elements.of("a"):
        if "download" in link:
            head, text = link["href"].split(",", 1)
            assert head == "data:text/csv;charset=utf-8"
            files[link["download"]] = list(csv.DictReader(io.StringIO(urllib.parse.unquote(text))))
    assert set(files) == {"layers.csv", "kernels.csv", "trajectory.csv"}
    assert [float(row["score"]) for row in files["layers.csv"]] == [
        row["score"] for row in table.rows
    ]
    for row in files["kernels.csv"]:
        cells = np.array([float(cell) for cell in row["cells row by row"].split()])
        kernel = cells.reshape(int(row["height"]), int(row["width"]))
        np.testing.assert_allclose(kernel, table.mean_kernels[row["layer"]], rtol=1e-5)
    assert files["trajectory.csv"] == [
        {"step": "0.25", "a": "0.75", "b": ""}, {"step": "0.5", "a": "1.0", "b": ""}
    ]  # fmt: skip


def test_arrows_are_drawn_on_strided_layers_and_explained_there_alone():
    page = render([strided(32)])
    (legend,) = re.findall(r'<p class="legend arrows">.*?</p>', page, re.DOTALL)
    text = " ".join(re.sub("<[^>]*>", "", legend).split())
    assert "Padding signature, on strided layers: from the middle to the side on which" in text
    assert "The padding predicts the bottom right. Drawn 20 times as long as it is" in text
    assert "Skew, on strided layers: from the middle to the side" in text
    tips = [circle["class"] for circle in Elements(page).of("circle", "tip")]
    # One of each kind on the layer behind the first, and one in the legend.
    assert sorted(tips) == ["tip signature"] * 2 + ["tip skew"] * 2
    plain = Weights({"a": ConvKernel(grown())}, {}, "a network", "test", "forward", "HWIO")
    page = render([report.network_table(plain)])
    assert "legend arrows" not in page
    assert not Elements(page).of("circle", "tip")


LONG = "backbone.feature_extractor.stages.{}.residual_blocks.{}.bottleneck.convolution.with_norm"


def long_names(count):
    kernels = {
        LONG.format(i // 100, i % 100): ConvKernel(grown(i), stride=(1, 1)) for i in range(count)
    }
    return report.network_table(Weights(kernels, {}, "a network", "test", "forward", "HWIO"))


def test_long_names_lose_what_all_share_and_stay_different():
    page = render([long_names(120)])
    shown = re.findall(r'<td class="name" title="([^"]*)">(.*?)</td>', page)
    assert len({short for _, short in shown}) == len(shown) == 120
    for whole, short in shown:
        plain = short.replace("<wbr>", "")
        assert plain[0] == "…"
        assert whole == f"backbone.feature_extractor.stages.{plain[1:]}"
    assert (
        "All names begin with <code>backbone.<wbr>feature_<wbr>extractor.<wbr>stages.</code>"
        in page
    )
    assert "All names begin with" not in render([network(12)])


@pytest.mark.parametrize("width", [1300, 420])
def test_the_page_fits_the_window_and_shows_whole_names(browser, tmp_path, width):
    names = [LONG.format(0, i) for i in range(12)]
    found, _ = visit(browser, render([strided(32, names)]), tmp_path, MEASURE, width)
    assert found["page"] <= found["window"]
    assert (found["names"], found["cut"]) == (36, 0)
    if width == 1300:
        assert found["window"] > 1200
        assert found["table"][0] >= 0
        assert found["table"][1] <= found["window"]
