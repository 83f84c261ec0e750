"""A damaged run goes on where its files can be written again; else one line names the file."""

import json
import shutil

import pytest

from kernsym_jax import run_directory, studies

pytestmark = pytest.mark.filterwarnings(
    # Of ml_collections, while it loads the config.
    "ignore:the load_module:DeprecationWarning"
)

STUDY = """
import dataclasses, importlib.util, pathlib
from kernsym_jax import evaluation, studies

def get_study(size):
    spec = importlib.util.spec_from_file_location("micro_study", {path!r})
    micro = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(micro)
    shifts = evaluation.Shifts("circular", 0, 1)
    consistency = studies.Consistency(shifts, limit=20)
    return dataclasses.replace(micro.get_study("cpu"), consistency=consistency)
"""
CONTENTS = {
    "empty": b"",
    "null": b"null\n",
    "list": b'[{"a": [1]}, 2]\n',
    "text": b'"text"\n',
    "deep": b"[" * 100_000 + b"\n",
    "no UTF-8": b"\xff\xfe\n",
    "a bit of another file": b"\x7fELF\0\0\n{}\n",
}
FILES = ("config.json", "provenance.json", "layers.json", "summary.json", "consistency.json")
# For each file: the binaries that refuse the run if the file is damaged. The others do not read
# it, or write it again.
REFUSED_BY = {
    "config.json": ("train", "analyze", "evaluate", "study"),
    "provenance.json": ("study",),
    "layers.json": ("analyze", "study"),
    "summary.json": ("study",),
    "consistency.json": ("analyze", "study"),
    "study.json": ("study",),
}
KEYS = [
    ("config.json", ("model",), []),
    ("config.json", ("model", "name"), 3),
    ("config.json", ("model", "name"), ...),
    ("config.json", ("data", "mean"), "grey"),
    ("config.json", ("data", "crop_size"), "x"),
    ("config.json", ("data", "void"), [None]),
    ("provenance.json", ("sessions",), {"a": 1}),
    ("provenance.json", ("sessions", 0, "devices"), None),
    ("provenance.json", ("sessions", 0, "versions"), ...),
    ("layers.json", (0,), None),
    ("layers.json", (1, "layer"), 7),
    ("summary.json", ("step",), "4"),
    ("summary.json", ("eval_accuracy",), [1]),
    ("consistency.json", ("settings",), ...),
    ("consistency.json", ("images",), 1.5),
    ("consistency.json", ("shift_consistency",), None),
    ("study.json", (), None),
]


@pytest.fixture(scope="module")
def conducted(request, tmp_path_factory):
    """A study of two runs, and its file."""
    folder = tmp_path_factory.mktemp("damaged")
    micro = request.path.parent / "studies" / "micro_study.py"
    (folder / "study.py").write_text(STUDY.format(path=str(micro)))
    study = studies.load_study(folder / "study.py", "cpu")
    studies.conduct(study, folder / "whole", ["study"])
    (folder / "config.py").write_text(
        f"import pathlib\nfrom kernsym_jax import studies\ndef get_config():\n"
        f"    study = studies.load_study({str(folder / 'study.py')!r}, 'cpu')\n"
        "    return study.config('even', 0)\n"
    )
    return folder


@pytest.fixture
def copy(conducted, tmp_path, monkeypatch):
    monkeypatch.setenv("KERNSYM_JAX_CACHE", "")
    shutil.copytree(conducted / "whole", tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def binaries(copy, conducted, tmp_path, run_binary):
    """Name -> a function that runs the binary on the run (of a study, on all): status, errors."""
    run = copy / "runs" / "even" / "seed_000"
    arguments = {
        "train": [f"--config={conducted / 'config.py'}", f"--workdir={run}"],
        "analyze": [run, f"--out={tmp_path / 'report'}"],
        "evaluate": [f"--workdir={run}", "--limit=20", f"--out={tmp_path / 'consistency.json'}"],
        "study": [
            f"--study={conducted / 'study.py'}", "--size=cpu", f"--workdir={copy}", "--gather",
        ],
    }  # fmt: skip

    def bind(name):
        def call():
            status, _, errors = run_binary(name, *arguments[name])
            return status, errors

        return call

    return run, {name: bind(name) for name in arguments}


def require(binaries, damaged, going_on=()):
    """Fails unless each binary ends as it should, and a refusal names the file in one line.

    Args:
      binaries: the fixture.
      damaged: the file.
      going_on: the binaries that are run although they go on; those that refuse all are.
    """
    run, calls = binaries
    refusing = REFUSED_BY[damaged.name]
    # Training is the last, because it writes damaged files again.
    for binary in ("study", "analyze", "evaluate", "train"):
        if binary not in (*refusing, *going_on):
            continue
        if binary == "train" and damaged.name != "summary.json":
            # Unfinished, so that it goes on.
            (run / "summary.json").unlink()
        status, errors = calls[binary]()
        if binary in refusing:
            assert (status, errors.count("\n")) == (2, 1), (binary, errors)
            assert f"{damaged.parent.name}/{damaged.name}" in errors, (binary, errors)
            assert len(errors) < 300 + len(str(run))
        else:
            assert status == 0, (binary, errors)
    if "train" in going_on:
        assert run_directory.read_summary(run)["step"] == 4
        run_directory.read_layers(run)
        run_directory.read_provenance(run)


def put_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("content", [*CONTENTS, "half", "folder"])
@pytest.mark.parametrize("name", FILES)
def test_other_content(binaries, name, content):
    path = binaries[0] / name
    if content == "folder":
        put_folder(path)
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(CONTENTS[content])
    # What is not JSON and what is no file take two ways. All contents of each reader are tested
    # with it, in test_run_directory.
    going_on = {"deep": ("analyze", "evaluate", "train"), "folder": ("train",)}
    require(binaries, path, set(going_on.get(content, ())) - set(REFUSED_BY[name]))


@pytest.mark.parametrize(("name", "key", "value"), KEYS)
def test_a_key_that_is_missing_or_of_another_kind(binaries, name, key, value):
    run = binaries[0]
    path = (run.parents[2] if name == "study.json" else run) / name
    content = json.loads(path.read_text())
    if key:
        node = content
        for part in key[:-1]:
            node = node[part]
        if value is ...:
            del node[key[-1]]
        else:
            node[key[-1]] = value
    else:
        content = value
    path.write_text(json.dumps(content))
    require(binaries, path, ("train",) if name == "summary.json" else ())


def damage_line(number, content):
    """Replaces a line, counted from 1 or from the end, and removes nothing else."""

    def damage(run):
        path = run / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[number - 1 if number > 0 else number] = content
        path.write_bytes(b"".join(lines))

    return damage


def append(content):
    def damage(run):
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(content)

    return damage


def cut_lines(count):
    """Removes the last lines and half of the line before them."""

    def damage(run):
        path = run / "metrics.jsonl"
        *lines, last = path.read_bytes().splitlines(keepends=True)[:-count]
        path.write_bytes(b"".join(lines) + last[: len(last) // 2])

    return damage


def change_manifest(**changes):
    def damage(run):
        path = run / "checkpoints" / "4" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def write(name, content=b"null"):
    def damage(run):
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content)

    return damage


# The lines are those of the symmetry at step 0, and of training, symmetry, evaluation and
# consistency at steps 2 and 4. There are checkpoints of both.
@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (append(b'{"step": 5, "spl'), 4),
        (append(b"null\n"), 4),
        (append(b"\0" * 500), 4),
        (append(b"[" * 100_000 + b"\n"), 4),
        (damage_line(-1, b"\xff\n"), 4),
        (damage_line(-2, b'{"step": 4, "split": "eval", "accuracy": "x"}\n'), 4),
        (damage_line(-3, b'{"step": 4, "split": "symmetry", "layers": {"conv1": 3}}\n'), 2),
        (damage_line(-4, b"\n"), 2),
        (cut_lines(1), 4),
        (cut_lines(2), 2),
        (write("checkpoints/4"), 2),
        (write("checkpoints/4/manifest.json"), 2),
        (write("checkpoints/4/manifest.json", b"[" * 100_000), 2),
        (change_manifest(sha256=None), 2),
        (change_manifest(sha256={"default/_METADATA": 3}), 2),
        (change_manifest(step=3), 2),
        (change_manifest(accuracy=["a"]), 4),
        (write("checkpoints/007"), 4),
        (write("checkpoints/6.orbax-checkpoint-tmp"), 4),
        (write("tensorboard"), 4),
    ],
)
def test_training_goes_on_and_ends_with_the_same_lines(binaries, damage, resumed):
    run, calls = binaries
    before = (run / "metrics.jsonl").read_bytes()
    damage(run)
    (run / "summary.json").unlink()
    status, errors = calls["train"]()
    assert status == 0, errors
    assert (run / "metrics.jsonl").read_bytes() == before
    assert run_directory.read_provenance(run)[-1]["resumed_at_step"] == resumed


@pytest.mark.parametrize(
    ("damage", "named", "refusing"),
    [
        (damage_line(1, b"null\n"), "metrics.jsonl, line 1", ("train", "analyze", "study")),
        (damage_line(3, b"{}\n"), "metrics.jsonl, line 3", ("train", "analyze", "study")),
        (damage_line(-1, b'{"step": 4}\n'), "metrics.jsonl, line 9", ("analyze", "study")),
        (write("checkpoints"), "checkpoints", ("train", "analyze", "evaluate", "study")),
    ],
)
def test_what_cannot_be_written_again_is_named(binaries, damage, named, refusing):
    run, calls = binaries
    damage(run)
    for binary in refusing:
        if binary == "train":
            (run / "summary.json").unlink()
        status, errors = calls[binary]()
        assert (status, errors.count("\n")) == (2, 1), (binary, errors)
        assert f"{run.name}/{named}" in errors, (binary, errors)
        if binary == "train":
            shutil.copy(run.parents[1] / "odd" / "seed_000" / "summary.json", run)
