"""The package as its users get it: built, installed elsewhere, and called from an empty folder."""

import email
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import compiler
import pytest

BINARIES = ("train", "evaluate", "analyze", "audit", "study")
BUILD = (
    "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])('out'))"
)
# A user has no checkout on the path.
ENVIRONMENT = os.environ | {"PYTHONPATH": "", "XLA_FLAGS": compiler.one_device()}
COPIED = ("kernsym_jax", "configs", "*.py", "*.toml", "*.txt", "*.md", "*.in", "LICENSE")


def build(folder, what):
    """Builds in a folder with the setuptools at hand, and returns the file."""
    (folder / "out").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "out" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for path in itertools.chain.from_iterable(map(repository.glob, COPIED)):
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / path.name, ignore=ignored)
        else:
            shutil.copy(path, folder)
    return build(folder, "build_sdist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from nothing but the source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build(unpacked, "build_wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel, which borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps",
         "--no-index", "--disable-pip-version-check", wheel],
        env=ENVIRONMENT, check=True,
    )  # fmt: skip
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = pathlib.Path(found.stdout.strip())
    # Behind its own packages. An editable installation of this checkout stays out of it, since
    # Python reads .pth files in its own folder only.
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def call(installed, tmp_path):
    """Calls a console script from an empty folder: (exit status, standard output, errors)."""

    def call(script, *arguments):
        done = subprocess.run(
            [installed / "bin" / script, *arguments],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return call


def test_the_sdist_has_what_building_needs_and_every_config(sdist, repository):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    configs = (
        path for path in (repository / "configs").rglob("*") if path.suffix in (".py", ".csv")
    )
    wanted = {path.relative_to(repository).as_posix() for path in configs}
    assert len(wanted) > 20
    wanted |= {"setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"}
    assert wanted <= names


def test_the_wheel_has_every_file_of_the_package(wheel, repository):
    package = repository / "kernsym_jax"
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    wanted = {path.relative_to(repository).as_posix() for path in files}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - names == set()
    others = {name for name in names - wanted if ".dist-info/" not in name}
    assert others == {
        f"kernsym_jax/{path.relative_to(repository).as_posix()}"
        for path in (repository / "configs").rglob("*")
        if path.suffix in (".py", ".csv")
    }


def test_the_metadata_tell_what_an_index_shows(wheel, repository):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Author"]
    assert metadata["Summary"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Project-URL")
    classifiers = metadata.get_all("Classifier")
    for version in ("3.11", "3.12", "3.13", "3.14"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    text = metadata.get_payload()
    assert text.startswith("# kernsym_jax")
    # Pictures and pages of the checkout are not on the index.
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []
    # Some versions of setuptools write a name with hyphens in place of underscores.
    required = {
        line.replace(" ", "").replace("_", "-") for line in metadata.get_all("Requires-Dist")
    }
    text = (repository / "requirements.txt").read_text()
    lines = text.replace(" ", "").replace("_", "-").splitlines()
    assert len(lines) > 20
    assert set(lines) <= required
    # An extra must not allow a JAX that the package itself does not.
    (jax,) = [line for line in lines if line.startswith("jax>=")]
    bounds = [line for line in required if line.startswith("jax[")]
    assert len(bounds) == 2
    assert all(jax.removeprefix("jax") in line for line in bounds)


@pytest.mark.parametrize("binary", BINARIES)
def test_a_console_script_explains_itself_and_leaves_nothing_behind(call, tmp_path, binary):
    status, out, errors = call(f"kernsym-{binary}", "--help")
    assert (status, errors) == (0, "")
    assert f"Usage: kernsym-{binary} " in out
    assert call(f"kernsym-{binary}") == (0, out, "")
    assert call(f"kernsym-{binary}", "--version")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_the_modules_are_those_of_the_wheel(call, installed, tmp_path):
    status, out, _ = call("python", "-c", "import kernsym_jax; print(kernsym_jax.__file__)")
    assert status == 0
    assert pathlib.Path(out.strip()).is_relative_to(installed)


def test_configs_and_studies_come_with_the_wheel(call, repository):
    for script, flag, folder in (
        ("kernsym-train", "config", "configs"),
        ("kernsym-study", "study", "configs/studies"),
    ):
        status, out, _ = call(script, f"--{flag}=list")
        assert status == 0
        names = [line.split()[0] for line in out.splitlines()]
        assert names == sorted(path.stem for path in (repository / folder).glob("*.py"))
    status, out, _ = call("kernsym-study", "--study=architecture", "--workdir=study", "--dry_run")
    assert status == 0
    assert "seed_000" in out


def test_a_run_is_trained_measured_audited_and_evaluated(call, tmp_path):
    short = [
        "--config.epochs=0.2",
        "--config.log_every=2",
        "--config.consistency.images=0",
        "--config.model.width=4",
        "--config.model.depth=2",
        "--config.model.strided=(2,)",
    ]
    status, out, errors = call("kernsym-train", "--config=digits", "--workdir=runs/a", *short)
    assert status == 0, errors
    assert "runs/a: step 4" in out
    assert json.loads((tmp_path / "runs/a/config.json").read_text())["model"]["width"] == 4
    status, out, errors = call("kernsym-analyze", "runs/a", "--out=report")
    assert status == 0, errors
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    status, out, errors = call("kernsym-audit", "runs/a")
    assert status == 0, errors
    assert "uneven at 1 of 1 strided layer; 9 is the nearest size where none is" in out
    status, out, errors = call("kernsym-evaluate", "--workdir=runs/a", "--shift=1", "--limit=16")
    assert status == 0, errors
    assert (tmp_path / "runs/a/consistency.json").is_file()
