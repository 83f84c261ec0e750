"""The page in a real browser: no error, no request, tables that sort and filter."""

import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

from kernsym_jax import report
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


def visit(browser, page, folder):
    path = folder / "page.html"
    path.write_text(page.replace("</body>", VISIT + "</body>"), encoding="utf-8")
    ran = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={folder}/profile", path.as_uri()],
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
