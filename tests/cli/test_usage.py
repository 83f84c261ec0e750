"""What every binary says about itself: its help, its version and its lists."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from absl import flags

from kernsym_jax import __version__, layers, models
from kernsym_jax.training import default

BINARIES = ("train", "evaluate", "analyze", "audit", "study")


def entries(text):
    """The flags that a help has a line for, without their values."""
    lines = (line.split() for line in text.splitlines() if line.startswith("  --"))
    return [words[0].partition("=")[0].removeprefix("--").rstrip(",") for words in lines]


@pytest.mark.parametrize("binary", BINARIES)
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["-help"], []])
def test_help_shows_the_usage_the_flags_and_three_examples(run_binary, binary, arguments):
    status, out, errors = run_binary(binary, *arguments)
    assert (status, errors) == (0, "")
    assert f"Usage: kernsym-{binary} " in out
    examples = out.split("\nExamples\n")[1].splitlines()
    assert len([line for line in examples if line.startswith(f"  kernsym-{binary} ")]) == 3
    assert len([line for line in examples if line.startswith("  # ")]) == 3
    assert all(len(line) <= 100 for line in out.split("\nExamples\n")[0].splitlines())


@pytest.mark.parametrize("binary", BINARIES)
def test_help_has_every_flag_of_the_binary_once_and_no_others(run_binary, binary):
    _, out, _ = run_binary(binary, "--help")
    own = flags.FLAGS.flags_by_module_dict()[f"kernsym_jax.{binary}"]
    shown = entries(out)
    general = ["help", "version", "completion", "verbosity"]
    assert sorted(shown) == sorted([flag.name for flag in own] + general)
    for flag in own:
        assert flag.help.split(": ")[-1].split()[0] in out


@pytest.mark.parametrize("binary", BINARIES)
def test_the_examples_of_help_have_flags_that_exist(run_binary, binary):
    _, out, _ = run_binary(binary, "--help")
    keys = default().to_dict()
    for line in out.split("\nExamples\n")[1].splitlines():
        for word in shlex.split(line, comments=True)[1:]:
            name = word.removeprefix("--").partition("=")[0]
            if name.startswith("config."):
                part = keys
                for key in name.split(".")[1:]:
                    part = part[key]
            elif word.startswith("--"):
                assert name in entries(out)


@pytest.mark.parametrize("binary", BINARIES)
def test_help_loads_nothing_heavy(repository, binary):
    code = (
        "import sys, json; sys.argv = ['kernsym-x', '--help']; "
        f"import kernsym_jax.{binary} as binary\n"
        "try: binary.run()\n"
        "except SystemExit: print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr))
    heavy = {"jax", "flax", "numpy", "scipy", "matplotlib", "orbax", "tensorflow_datasets", "rich"}
    assert not heavy & loaded


def test_help_names_the_module_if_that_was_called(repository):
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-m", "kernsym_jax.audit", "-h"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Usage: python -m kernsym_jax.audit FILE|DIR" in done.stdout
    assert done.stderr == ""


def test_helpfull_adds_the_flags_of_the_libraries(run_binary):
    status, out, _ = run_binary("audit", "--helpfull")
    assert status == 0
    assert out.startswith(run_binary("audit", "--help")[1].rstrip())
    assert "--stderrthreshold" in out


@pytest.mark.parametrize("binary", BINARIES)
def test_version(run_binary, binary):
    assert run_binary(binary, "--version") == (0, f"kernsym-jax {__version__}\n", "")


def test_a_word_behind_two_dashes_is_an_argument(run_binary):
    status, _, errors = run_binary("audit", "--", "--help")
    assert (status, "--help: no such file" in errors) == (2, True)


def test_lists_have_every_name_with_a_line_on_it(run_binary, repository):
    for flag, binary, folder in (
        ("config", "train", "configs"),
        ("study", "study", "configs/studies"),
    ):
        status, out, _ = run_binary(binary, f"--{flag}=list")
        assert status == 0
        names, lines = zip(*(line.split(maxsplit=1) for line in out.splitlines()), strict=True)
        assert sorted(names) == sorted(path.stem for path in (repository / folder).glob("*.py"))
        assert all(len(line) > 20 for line in lines)
    status, out, _ = run_binary("audit", "--model", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(models.NAMES)
    assert run_binary("analyze", "--downsample=list")[1].split() == list(layers.DOWNSAMPLINGS)


@pytest.mark.parametrize("command", [["analyze", "-h"], ["audit", "--model=resnet50"]])
def test_a_reader_of_the_output_may_leave(repository, command):
    name, *arguments = command
    process = subprocess.Popen(
        [sys.executable, "-m", f"kernsym_jax.{name}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    with process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (1, 128 + signal.SIGPIPE)
