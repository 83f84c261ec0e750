"""The scripts of launch/, run where Google Cloud and Slurm are stood in for by small recorders."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import pytest

STAND_INS = pathlib.Path(__file__).parent / "stand_ins"
INSTALLED = pathlib.Path(sys.executable).parent


class Workplace:
    """An account with nothing in it, and a home folder.

    Attributes:
      cloud: the folder in which the stand-ins keep what they are told.
      home: the home folder.
    """

    def __init__(self, repository: pathlib.Path, folder: pathlib.Path) -> None:
        self._repository = repository
        self.cloud, self.home = folder / "cloud", folder / "home"
        self.cloud.mkdir()
        self.home.mkdir()

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the tests' own environment but what Python needs, and the stand-ins first."""
        return {
            "PATH": os.pathsep.join([str(STAND_INS), str(INSTALLED), os.environ["PATH"]]),
            "HOME": str(self.home),
            "CLOUD": str(self.cloud),
            "POLL_SECONDS": "0",
            **{name: os.environ[name] for name in os.environ if name.startswith(("JAX_", "XLA_"))},
            **variables,
        }

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a script of launch/."""
        return subprocess.Popen(
            ["bash", f"launch/{script}", *arguments],
            cwd=self._repository, env=self.environment(variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, script: str, *arguments: str, status: int = 0, **variables: str) -> str:
        """What a script prints, which has to end with a status."""
        process = self.start(script, *arguments, **variables)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == status, output
        return output

    def calls(self) -> list[list[str]]:
        """The arguments of every call of gcloud so far."""
        path = self.cloud / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def changes(self) -> list[str]:
        """What was created and deleted so far, in order: ``create group``, …"""
        verbs = {"create", "delete"}
        return [
            f"{verb} {call[call.index(verb) - 1]}"
            for call in self.calls()
            for verb in verbs.intersection(call)
        ]

    def resources(self) -> set[str]:
        """The kinds of what there is."""
        return {path.parent.name for path in self.cloud.glob("resources/*/*.json")}

    def set(self, kind: str, **fields: str) -> None:
        """Changes the only resource of a kind."""
        (path,) = self.cloud.glob(f"resources/{kind}/*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """The linter that the extra `test` installs."""
    return str(INSTALLED / "shellcheck")


@pytest.fixture
def workplace(repository, tmp_path) -> Workplace:
    return Workplace(repository, tmp_path)
