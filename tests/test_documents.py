"""The README and the pages of docs/ tell the truth: their code and their commands run."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import shlex

import network
import pytest
import writers

import kernsym_jax
from kernsym_jax import training

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    # Generated from results, with the commands that took hours to produce them.
    if not path.is_relative_to(ROOT / "docs" / "results") and path.name != "claims.md"
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Commands that no test runs as they stand, each with the reason.
NOT_RUN = {
    "bash launch/quickstart.sh": "its two commands run here, on a shorter schedule",
    "bash launch/test.sh": "it would start this suite again",
    "pip install": "the suite runs in an environment that is installed already",
}
BINARIES = ("train", "evaluate", "analyze", "audit", "study")

# What makes a command short without changing what it shows.
SHORTER = {
    "kernsym_jax.train": ["--config.epochs=2", "--config.consistency.images=8"],
    "kernsym_jax.study": ["--dry_run"],
    "kernsym_jax.evaluate": ["--limit=64"],
}


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands(page):
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as the reader of the README has it: the checkout, a short run, files of weights."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "docs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "checkpoints").mkdir()
    writers.write_torch(folder / "checkpoints" / "epoch_1.pth", network.state_dict())
    writers.write_safetensors(folder / "model.safetensors")
    writers.write_onnx(folder / "net.onnx")
    writers.write_cifar_resnet20(folder / "resnet20.th")
    writers.write_image_archive(folder / "cifar10.tar.gz")
    config = training.default()
    config.epochs, config.consistency.images = 1.0, 0
    training.train_and_evaluate(config, folder / "runs" / "digits")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_blocks_of_a_page_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, Python block {number}", "exec"), namespace)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_run(page, workplace, monkeypatch, run_binary):
    monkeypatch.chdir(workplace)
    for words in commands(page):
        line = " ".join(words)
        if any(line.startswith(start) for start in NOT_RUN):
            continue
        assert words[:2] == ["python", "-m"], f"{page.name}: {line} is neither run nor excused"
        status, _, errors = run_binary(
            words[2].removeprefix("kernsym_jax."), *words[3:], *SHORTER.get(words[2], [])
        )
        assert status == 0, f"{page.name}: {line}\n{errors}"


@pytest.mark.parametrize(
    "module",
    [
        found.name
        for found in pkgutil.walk_packages(kernsym_jax.__path__, "kernsym_jax.")
        # Binaries define flags of the same names, so one process can import only one of them.
        if found.name.rpartition(".")[2] not in BINARIES
    ],
)
def test_the_examples_of_docstrings_hold(module):
    found = importlib.import_module(module)
    assert doctest.testmod(found, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
