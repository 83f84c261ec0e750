"""Measures what only an accelerator can tell, part by part, and writes every figure at once.

launch/accelerator.sh --only=bench,parity,population,study --budget=660 --out=runs/accelerator

The parts:
  parity      losses of 20 steps, and symmetry figures, against those of a CPU;
  bench       our step beside PyTorch's, our loop beside a step by hand, what measuring costs, a
              grid of shifts beside plain passes, and several steps per dispatch;
  population  8 and 32 small networks at once, in five ways;
  study       the downsampling study at size gpu, as far as the time allows; with --full_data also
              the time to 94 % on CIFAR-10.

A measurement that no longer fits into the budget is left out, and one that fails is noted; the
others go on. The folder of results keeps the parts of earlier calls.
"""

import csv
import importlib.util
import json
import os
import pathlib
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

PARTS = ("parity", "bench", "population", "study")
# Distribution -> a module of it. The machine has the first group; a folder of wheels may bring the
# second.
MACHINE = {
    "jax": "jax", "flax": "flax", "optax": "optax", "orbax-checkpoint": "orbax.checkpoint",
    "numpy": "numpy", "scipy": "scipy", "h5py": "h5py", "matplotlib": "matplotlib",
}  # fmt: skip
WHEELS = {
    "ml_collections": "ml_collections", "PyYAML": "yaml", "tensorboardX": "tensorboardX",
    "protobuf": "google.protobuf", "packaging": "packaging", "jinja2": "jinja2",
    "markupsafe": "markupsafe", "Pillow": "PIL", "msgpack": "msgpack",
}  # fmt: skip
_FOR_TFDS = {"tensorflow-datasets": "tensorflow_datasets", "grain": "grain"}

_ONLY = flags.DEFINE_list("only", list(PARTS), f"Some of {', '.join(PARTS)}.")
_BUDGET = flags.DEFINE_float("budget", 660.0, "Seconds for everything.", lower_bound=1.0)
_OUT = flags.DEFINE_string("out", "runs/accelerator", "Folder of the results.")
_TINY = flags.DEFINE_bool("tiny", False, "Sizes of a test, on any machine; the same code.")
_DATA = flags.DEFINE_string("data", None, "Source of the JPEG copy of CIFAR-10, for study.")
_FULL_DATA = flags.DEFINE_string("full_data", None, "Source of CIFAR-10 itself, for study.")


def missing(distributions: dict[str, str]) -> list[str]:
    """Returns the distributions of which this Python lacks the module."""

    def found(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the package that should hold it
            return False

    return [name for name, module in distributions.items() if not found(module)]


def fetch_command(names: Sequence[str]) -> str:
    """Returns the command that fetches wheels for this Python, on a machine with a network."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    machine = platform.machine()
    return (
        f"pip download --no-deps --only-binary=:all: --python-version={version} "
        f"--platform=manylinux2014_{machine} --platform=manylinux_2_28_{machine} --dest=wheels "
        f"{' '.join(names)}"
    )


class Report:
    """The results so far, on disk after every row.

    Args:
      folder: folder of the results; parts of earlier calls that are in it stay.
      parts: the parts of this call, whose earlier results are replaced.
    """

    def __init__(self, folder: pathlib.Path, parts: Sequence[str]) -> None:
        self._folder, self._path = folder, folder / "accelerator.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.parts: dict[str, Any] = {}
        if self._path.exists():
            self.parts = json.loads(self._path.read_text("utf-8"))["parts"]
        for part in parts:
            self.parts[part] = {"machine": machine(), "tables": {}, "left out": [], "failed": []}

    def add(self, part: str, table: str, row: dict[str, Any]) -> None:
        """Adds a row to a table of a part."""
        plain = {name: _plain(value) for name, value in row.items()}
        self.parts[part]["tables"].setdefault(table, []).append(plain)
        print(f"{part}, {table}: " + "  ".join(f"{k} {_shown(v)}" for k, v in plain.items()))
        self.write()

    def note(self, part: str, kind: str, text: str) -> None:
        """Notes a measurement that was left out, or failed."""
        self.parts[part][kind].append(text)
        print(f"{part}, {kind}: {text}")
        self.write()

    def write(self) -> None:
        """Writes all files."""
        text = json.dumps({"parts": self.parts}, indent=1, ensure_ascii=False)
        self._path.write_text(text + "\n", "utf-8")
        pages = ["# What an accelerator told\n"]
        for part in (name for name in PARTS if name in self.parts):
            found = self.parts[part]
            pages.append(f"## {part}\n\n{_paragraph(found)}\n")
            for table, rows in found["tables"].items():
                self._write_csv(self._folder / f"{table}.csv", rows)
                pages.append(_markdown(rows))
        (self._folder / "README.md").write_text("\n".join(pages), "utf-8")

    def _write_csv(self, path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def machine() -> dict[str, Any]:
    """Returns what figures depend on: the devices, versions, command and date."""
    import jax
    import jaxlib

    return {
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "platform": jax.default_backend(),
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"jaxlib {jaxlib.__version__}",
        "command": shlex.join(["launch/accelerator.sh", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


def chosen_items(part: str, deadline: float) -> Sequence[Any]:
    """Returns the measurements of a part: name, seconds, and a function that yields rows."""
    tiny = _TINY.value
    if part == "parity":
        import accelerator_parity

        return accelerator_parity.items(tiny=tiny)
    if part == "bench":
        import accelerator_bench

        return accelerator_bench.items(tiny=tiny)
    if part == "population":
        import accelerator_population

        return accelerator_population.items(tiny=tiny)
    import accelerator_study

    return accelerator_study.items(
        tiny=tiny,
        out=pathlib.Path(_OUT.value),
        data=_DATA.value,
        full_data=_FULL_DATA.value,
        deadline=deadline,
    )


def conduct(part: str, deadline: float, report: Report) -> None:
    """Takes the measurements of one part that fit into the time."""
    for name, seconds, measured in chosen_items(part, deadline):
        left = deadline - time.monotonic()
        if seconds > left:
            text = f"{name}: takes {seconds:.0f} s, {max(left, 0):.0f} s are left"
            report.note(part, "left out", text)
            continue
        started = time.monotonic()
        try:
            for table, row in measured():
                report.add(part, table, row)
        # The others are worth having whatever one of them raises.
        except Exception as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            report.note(part, "failed", f"{name}: {type(error).__name__}: {lines[0][:300]}")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if part == "population":
        _tell_fastest(report)
    report.write()


def main(argv: Sequence[str]) -> int:
    """Runs the parts; the exit status is 1 if a measurement failed or a figure is out of band."""
    if len(argv) > 1 or set(_ONLY.value) - set(PARTS):
        raise app.UsageError(f"--only takes some of {', '.join(PARTS)}")
    wanted = WHEELS | (_FOR_TFDS if (_FULL_DATA.value or "").startswith("tfds") else {})
    if lacking := missing(MACHINE):
        print(f"this Python lacks {', '.join(lacking)}; PYTHON=… names another", file=sys.stderr)
        return 2
    if lacking := missing(wanted):
        print(
            f"this Python lacks {', '.join(lacking)}. Where there is a network:\n"
            f"  {fetch_command(lacking)}\nand here WHEELS=wheels launch/accelerator.sh …",
            file=sys.stderr,
        )
        return 2
    logging.set_verbosity(logging.WARNING)
    # A test runs everything, however slow its machine is.
    deadline = time.monotonic() + (1e5 if _TINY.value else _BUDGET.value)
    parts = [part for part in PARTS if part in _ONLY.value]
    report = Report(pathlib.Path(_OUT.value), parts)
    for part in parts:
        conduct(part, deadline, report)
    print(f"results: {_OUT.value}")
    return 1 if any(_is_bad(report.parts[part]) for part in parts) else 0


def _is_bad(found: dict[str, Any]) -> bool:
    rows = [row for table in found["tables"].values() for row in table]
    return bool(found["failed"]) or any(row.get("holds") is False for row in rows)


def _tell_fastest(report: Report) -> None:
    """Adds the row for the table from which ``config.population=auto`` takes its way."""
    import accelerator_population

    found = report.parts["population"]
    best = accelerator_population.fastest(found["tables"].get("population", []))
    if best is None:
        return
    device = found["machine"]["devices"].split(" × ", 1)[1]
    source = f"launch/accelerator.sh, {found['machine']['versions']}, {found['machine']['date']}"
    report.add("population", "fastest", {"device": device, "way": best, "provenance": source})


def _paragraph(found: dict[str, Any]) -> str:
    told = found["machine"]
    text = (
        f"{told['devices']}, {told['host']}, {told['versions']}, {told['date']}. Medians.\n\n"
        f"    {told['command']}\n"
    )
    for kind in ("left out", "failed"):
        if found[kind]:
            text += f"\n{kind.capitalize()}: {'; '.join(found[kind])}.\n"
    return text


def _markdown(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_line(names), "|---" * len(names) + "|"]
    lines += [_line([_shown(row.get(name)) for name in names]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> Any:
    """Returns the value as a type of JSON."""
    return value.item() if hasattr(value, "item") else value


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    app.run(main)
