"""Trains a network and follows the symmetry of its mean kernels.

python -m kernsym_jax.train --config=configs/digits.py --workdir=runs/digits
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from kernsym_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The run's config, a Python file.",
    # Which keys there are is for the training to say, and under config.model for the model.
    accept_new_attributes=True,
    lock_config=False,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; made if it is not there.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with a run although its config was another.")
_PREPARE = flags.DEFINE_bool("prepare", False, "Only download and prepare the config's data.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a profile of a few steps.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"],
    "Whether this process is one of several; auto: in a step of Slurm or Open MPI, on a Cloud TPU, "
    "or with --coordinator.",
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0.", lower_bound=0)


def main(argv: Sequence[str]) -> int:
    """Trains; the exit status is 75 if a signal stopped the run after it was saved."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        raise ValueError("--config and --workdir are needed")
    from kernsym_jax import data, training
    from kernsym_jax.training import processes

    if _PREPARE.value:
        data.prepare(training.resolve(_CONFIG.value).data.source)
        return 0
    if _WORKDIR.value is None:
        raise ValueError("--config and --workdir are needed")
    processes.start(_DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with processes.leaving_on_failure():
        try:
            summary = training.train_and_evaluate(
                _CONFIG.value, _WORKDIR.value, resume=_RESUME.value, profile=_PROFILE.value
            )
        except training.Preempted as stopped:
            if processes.is_first():
                print(stopped)
            return cli.PREEMPTED
    if processes.is_first():
        shown = {"accuracy": "eval_accuracy", "mean IoU": "eval_mean_iou"}
        figures = (
            f", {name} {summary[key]:.4f}"
            for name, key in shown.items()
            if summary.get(key) is not None
        )
        print(f"{_WORKDIR.value}: step {summary['step']}{''.join(figures)}")
    return 0


def run() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    run()
