"""Every shell script of the project passes shellcheck, and none evaluates what a user has given."""

import pathlib
import re
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = [
    path.relative_to(_ROOT)
    for path in (*sorted((_ROOT / "launch").iterdir()), _ROOT / ".ci" / "run")
    if path.suffix in {".sh", ".sbatch"} or path.name == "run"
]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_passes_shellcheck(script, repository, shellcheck):
    subprocess.run([shellcheck, "--external-sources", script], cwd=repository, check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_evaluates_no_text(script, repository):
    assert not re.search(r"^\s*eval\b|[;&|]\s*eval\b", (repository / script).read_text(), re.M)
