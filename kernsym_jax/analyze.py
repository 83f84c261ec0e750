"""Measures the kernels of trained networks and writes a report.

python -m kernsym_jax.analyze runs/digits --out=report
"""

from collections.abc import Sequence

from absl import flags

from kernsym_jax import command_line

_OUT = flags.DEFINE_string("out", "report", "The folder for the report; made if it is not there.")


def main(argv: Sequence[str]) -> int:
    """Analyzes every source named on the command line."""
    if len(argv) < 2:
        raise ValueError("name at least one run directory or file of weights")
    from kernsym_jax import report

    report.analyze(argv[1:], _OUT.value)
    print(f"report: {_OUT.value}/report.html")
    return 0


def run() -> None:
    """The console script."""
    command_line.run(main)


if __name__ == "__main__":
    run()
