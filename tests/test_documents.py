"""The README and the pages of docs/ tell the truth: their code and their commands run."""

import ast
import doctest
import importlib
import json
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess

import network
import pytest
import writers

import kernsym_jax
from kernsym_jax import training

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Generated from results, with the commands that took hours to produce them.
GENERATED = (ROOT / "docs" / "results", ROOT / "docs" / "claims", ROOT / "docs" / "claims.md")
PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if not any(path.is_relative_to(place) for place in GENERATED)
)
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Commands that no test runs as they stand, each with the reason.
NOT_RUN = {
    "bash launch/quickstart.sh": "its two commands run here, on a shorter schedule",
    "bash launch/test.sh": "it would start this suite again",
    ".ci/run": "it would start this suite again",
    "pip install": "the suite runs in an environment that is installed already",
    "mkdocs build": "`.ci/run` builds the pages",
    "bash launch/accelerator.sh": "it needs a GPU; `tests/launch` runs it with --tiny",
    "PYTHON=python3 WHEELS=wheels bash launch/accelerator.sh": "as above",
    "sky jobs launch": "it needs an account; `tests/launch` checks the file that it reads",
}
BINARIES = ("train", "evaluate", "analyze", "audit", "study")

# What makes a command short without changing what it shows.
SHORTER = {
    "kernsym_jax.train": ["--config.epochs=1", "--config.consistency.images=8"],
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


def with_blocks(language):
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as a reader of the pages has it: the checkout, short runs, files of weights."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "docs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "checkpoints").mkdir()
    writers.write_torch(folder / "checkpoints" / "epoch_1.pth", network.state_dict())
    writers.write_safetensors(folder / "model.safetensors")
    writers.write_onnx(folder / "net.onnx")
    writers.write_cifar_resnet20(folder / "resnet20.th")
    writers.write_image_archive(folder / "cifar10.tar.gz")
    for name, size in (("digits", 0), ("even", 9)):
        config = training.resolve(digits_config())
        config.epochs, config.consistency.images, config.data.image_size = 1.0, 8, size
        training.train_and_evaluate(config, folder / "runs" / name)
    return folder


def digits_config():
    """Returns the config of the first run, so that the pages' own commands find it finished."""
    namespace = {}
    exec((ROOT / "configs" / "digits.py").read_text("utf-8"), namespace)
    return namespace["get_config"]()


@with_blocks("python")
def test_the_python_blocks_of_a_page_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, Python block {number}", "exec"), namespace)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
@with_blocks("bash")
def test_the_commands_of_a_page_run(page, workplace, monkeypatch, run_binary):
    monkeypatch.chdir(workplace)
    for words in commands(page):
        line = " ".join(words)
        if any(line.startswith(start) for start in NOT_RUN):
            continue
        if "launch" in line and "--dry_run" in line:
            settings = dict(word.split("=", 1) for word in words[: words.index("bash")])
            subprocess.run(
                words[len(settings) :], env=os.environ | settings, cwd=ROOT, check=True, timeout=60
            )
            continue
        assert words[:2] == ["python", "-m"], f"{page.name}: {line} is neither run nor excused"
        shorter = [flag for flag in SHORTER.get(words[2], []) if not emits(words)]
        name = words[2].removeprefix("kernsym_jax.")
        status, _, errors = run_binary(name, *words[3:], *shorter)
        assert status == 0, f"{page.name}: {line}\n{errors}"


SHOWN = re.compile(r"^```bash\n([^\n]*)\n```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def audits():
    """Yields page, command and shown output of the audits, whose figures no training changes."""
    for page in PAGES:
        for command, shown in SHOWN.findall(page.read_text("utf-8")):
            if command.startswith("python -m kernsym_jax.audit"):
                yield pytest.param(command, shown, id=page.name)


@pytest.mark.parametrize(("command", "shown"), list(audits()))
def test_an_audit_prints_what_a_page_shows(command, shown, run_binary):
    status, output, _ = run_binary("audit", *shlex.split(command)[3:])
    lines = [line.split() for line in output.splitlines()]
    assert status == 0
    for line in shown.splitlines():
        # The rule below a table's head is as wide as the console.
        assert set(line) <= set(" ─") or line.split() in lines, line


def emits(words):
    """Returns whether a command only writes jobs, so that it is short as it stands."""
    return any(word.startswith("--emit") for word in words)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_cells_of_a_tutorial_run_and_print_what_it_shows(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells, 1):
        tree = ast.parse("".join(cell["source"]))
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), namespace)
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        printed = capsys.readouterr().out
        # Numbers differ between machines and versions; the words do not.
        assert words_of(printed) == words_of(shown), f"{path.name}, cell {number}"


def words_of(text):
    return re.findall(r"[A-Za-z_]+", re.sub(r"\S*img/s.*", "", text))


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
