"""Trained networks that a study reads, where other studies train theirs."""

import dataclasses
import functools
import hashlib
import pathlib
import re

from kernsym_jax import report, run_directory

_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network in a file, or in the directory of a run.

    Attributes:
      file: its path below the study's folder of files; of a run, below that of its runs.
      family: networks of one family are no independent cases, and count as one.
      origin: where to get it, in one line.
      sha256: of the file, in hexadecimal, its first eight digits at least; empty if not known.
      model: name of a registry model that the weights are of, which tells their strides.
      is_run: it is the directory of a run.

    Raises:
      ValueError: for a checksum that is none.
    """

    file: str
    family: str
    origin: str
    sha256: str = ""
    model: str | None = None
    is_run: bool = False

    def __post_init__(self) -> None:
        if self.sha256 and not re.fullmatch(rf"[0-9a-f]{{{_DIGITS},64}}", self.sha256):
            raise ValueError(
                f"{self.file}: sha256 is 8 to 64 hexadecimal digits, got {self.sha256!r}"
            )

    @property
    def options(self) -> report.Options:
        """How it is read."""
        return report.Options(model=self.model)

    def is_at(self, path: pathlib.Path) -> bool:
        """Whether the network is there.

        Args:
          path: where it should be.

        Returns:
          Whether there is something, and its checksum is right.

        Raises:
          ValueError: if it is another file.
        """
        if self.is_run:
            return run_directory.has_ended(path)
        if not path.is_file():
            return False
        found = _sha256(path, path.stat().st_mtime_ns)
        if not found.startswith(self.sha256):
            raise ValueError(
                f"{path} is another file: its SHA-256 is {found}, wanted {self.sha256}; "
                f"get it from {self.origin}"
            )
        return True


def runs_below(folder: pathlib.Path) -> dict[str, Network]:
    """The finished runs in a folder, as one family.

    Args:
      folder: of run directories, at any depth.

    Returns:
      Name -> network.

    Raises:
      FileNotFoundError: if there is none.
    """
    found = run_directory.runs_below(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no finished run in it")
    networks = {}
    for path in found:
        file = path.relative_to(folder).as_posix()
        name = re.sub(r"[^\w-]", "-", file, flags=re.ASCII)
        networks[f"run-{name}"] = Network(file, "own-runs", "trained here", is_run=True)
    return networks


@functools.lru_cache(maxsize=1024)
def _sha256(path: pathlib.Path, changed: int) -> str:
    """The checksum of a file as it was when it was last changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
