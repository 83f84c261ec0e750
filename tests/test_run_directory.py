"""A run directory is told from others, and each damage of its files is one error that names it."""

import json
import pathlib

import pytest

from kernsym_jax import run_directory

CONFIG = {
    "seed": 0,
    "model": {"name": "small_cnn", "num_classes": 10},
    "data": {"source": "digits", "mean": [0.5], "std": [0.25]},
    "class_weights": [],
}
SESSION = {
    "python": "3.11.7",
    "versions": {"jax": "0.10.2"},
    "git_revision": None,
    "platform": "cpu",
    "devices": ["cpu"],
}
LINES = [
    {"step": 0, "split": "symmetry", "layers": {"conv1": {"score": 0.5}, "conv2": {"score": None}}},
    {"step": 3, "split": "train", "loss": 2.0},
    {"step": 6, "split": "train", "loss": None},
]
FILES = {
    run_directory.CONFIG: CONFIG,
    run_directory.PROVENANCE: {"sessions": [SESSION]},
    run_directory.LAYERS: [{"layer": "conv1"}],
    run_directory.SUMMARY: {"step": 6, "eval_accuracy": 0.5},
    run_directory.CONSISTENCY: {"settings": {"weights": "runs/a"}, "images": 10},
}
READERS = {
    run_directory.CONFIG: lambda folder: run_directory.read_config(folder, "data.mean"),
    run_directory.PROVENANCE: run_directory.read_provenance,
    run_directory.LAYERS: run_directory.read_layers,
    run_directory.SUMMARY: run_directory.read_summary,
    run_directory.CONSISTENCY: run_directory.read_consistency,
    run_directory.METRICS: run_directory.read_metrics,
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / run_directory.METRICS).write_text(lines)
    return tmp_path


def changed(content, key, value):
    """The content with another value under a dotted key; the key is removed for ``...``."""
    content = json.loads(json.dumps(content))
    node = content
    *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    for part in path:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return content


def test_whole_files_are_read_as_they_are(folder):
    assert run_directory.read_config(folder, "data.mean", "data.std") == CONFIG
    assert run_directory.read_provenance(folder) == [SESSION]
    assert run_directory.read_layers(folder) == FILES[run_directory.LAYERS]
    assert run_directory.read_summary(folder) == FILES[run_directory.SUMMARY]
    assert run_directory.read_consistency(folder) == FILES[run_directory.CONSISTENCY]
    assert run_directory.read_metrics(folder) == LINES


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b'"text"', b"3", b"\xff\xfe", b"[" * 100_000, b'[{"a": [1]}, 2]'],
    ids=["empty", "cut", "null", "text", "number", "no UTF-8", "deep", "list"],
)
def test_other_content_is_one_error_that_names_the_file(folder, name, content):
    (folder / name).write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=rf"{name}(: |, line 1: )not? [^\n]*$") as error:
        READERS[name](folder)
    assert len(str(error.value)) < 300 + len(str(folder))


@pytest.mark.parametrize("name", READERS)
def test_a_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}: .*directory"):
        READERS[name](folder)


@pytest.mark.parametrize("name", [name for name in READERS if name != run_directory.METRICS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} there"):
        READERS[name](folder)


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("config.json", "model", [], r"model is \[\], wanted an object"),
        ("config.json", "model.name", ..., "model.name is missing"),
        ("config.json", "model.name", 3, "model.name is 3, wanted text"),
        ("config.json", "model.num_classes", "ten", 'model.num_classes is "ten", wanted a whole'),
        ("config.json", "data", None, "data.mean is missing"),
        ("config.json", "data.mean", ..., "data.mean is missing"),
        ("config.json", "data.mean", ["a"], r'data.mean is \["a"\], wanted a list of numbers'),
        ("config.json", "class_weights", True, "class_weights is true, wanted a list of numbers"),
        ("provenance.json", "sessions", ..., "sessions is missing"),
        ("provenance.json", "sessions", {}, "sessions is {}, wanted a list of objects"),
        ("provenance.json", "sessions.0.devices", ..., r"sessions\[0\].devices is missing"),
        (
            "provenance.json",
            "sessions.0.python",
            3.11,
            r"sessions\[0\].python is 3.11, wanted text",
        ),
        ("layers.json", "0", None, r"\[0\] is null, wanted an object"),
        ("layers.json", "0.layer", 1, r"\[0\].layer is 1, wanted text"),
        ("summary.json", "step", "6", 'step is "6", wanted a whole number or null'),
        ("consistency.json", "settings", ..., "settings is missing"),
        ("consistency.json", "images", 1.5, "images is 1.5, wanted a whole number"),
        ("consistency.json", "settings", "x" * 1000, "settings is .{80}…, wanted an object"),
    ],
)
def test_a_key_that_is_missing_or_of_another_kind_is_named(folder, name, key, value, says):
    (folder / name).write_text(json.dumps(changed(FILES[name], key, value)))
    with pytest.raises(ValueError, match=f"{name}: .*{says}"):
        READERS[name](folder)


@pytest.mark.parametrize(
    ("line", "key", "value", "says"),
    [
        (0, "layers", ..., "line 1: .*layers is missing"),
        (0, "layers.conv2", 3, "line 1: .*layers.conv2 is 3, wanted an object"),
        (0, "layers.conv2.score", "x", 'line 1: .*layers.conv2.score is "x", wanted a number'),
        (1, "step", 3.5, "line 2: .*step is 3.5, wanted a whole number"),
        (2, "split", ..., "line 3: .*split is missing"),
    ],
)
def test_a_damaged_line_of_the_metrics_is_named(folder, line, key, value, says):
    lines = list(LINES)
    lines[line] = changed(lines[line], key, value)
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"metrics.jsonl, {says}"):
        run_directory.read_metrics(folder)


def test_half_a_last_line_of_the_metrics_is_left_out(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    assert run_directory.read_metrics(folder) == LINES
    assert run_directory.cut_metrics(folder, 3) == LINES[:2]
    assert run_directory.read_metrics(folder) == LINES[:2]


def test_a_run_without_metrics_has_no_lines(tmp_path):
    assert run_directory.read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    ("entries", "answer"),
    [
        ((), False),
        (("config.json",), False),
        (("config.json", "model.safetensors"), False),
        (("layers.json", "checkpoints"), False),
        (("config.json", "checkpoints"), True),
        (("config.json", "layers.json"), True),
        (("config.json", "provenance.json"), True),
    ],
)
def test_a_run_directory_has_a_config_and_another_of_its_files(tmp_path, entries, answer):
    for name in entries:
        (tmp_path / name).touch()
    assert run_directory.is_run(tmp_path) is answer


def test_what_does_not_exist_is_no_run(tmp_path):
    (tmp_path / "file").touch()
    for path in ("missing", "file", "file/below"):
        assert not run_directory.is_run(tmp_path / path)


def test_only_finished_runs_are_found_below_a_folder(tmp_path):
    for name, files in {
        "b/run": ("config.json", "layers.json", "summary.json"),
        "a": ("config.json", "layers.json", "summary.json"),
        "started": ("config.json", "layers.json"),
        "population": ("population.json", "summary.json"),
    }.items():
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            (tmp_path / name / file).touch()
    found = run_directory.runs_below(tmp_path)
    assert found == [tmp_path / "a", tmp_path / pathlib.Path("b", "run")]


def test_every_session_is_kept_with_its_facts(tmp_path):
    run_directory.add_session(tmp_path, seed=3)
    run_directory.add_session(tmp_path, seed=4)
    sessions = run_directory.read_provenance(tmp_path)
    assert [session["seed"] for session in sessions] == [3, 4]
    assert sessions[0]["devices"]
