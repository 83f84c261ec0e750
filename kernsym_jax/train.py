"""Trains a network and follows the symmetry of its mean kernels.

kernsym-train --config=digits --workdir=runs/digits
"""

import pathlib
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import config_flags

from kernsym_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The run's config: a name (--config=list shows them) or a Python file.",
    # `training.config` validates the keys, and the model those under config.model.
    accept_new_attributes=True,
    lock_config=False,
)
# Names stand for the configs in the package.
flags.FLAGS["config"].parser = cli.ConfigFile()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory; it is made if it does not exist."
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run although its config has changed.")
_PREPARE = flags.DEFINE_bool(
    "prepare", False, "Download and prepare the data of the config, and stop."
)
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a profile of steps 6 to 10.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"],
    "Whether this process is one of several. auto: yes in a step of Slurm or Open MPI with several "
    "tasks, on a Cloud TPU, or with --coordinator.",
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; by default JAX detects it."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes; by default JAX detects it.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", None, "Index of this process from 0.", lower_bound=0)


def _config_keys() -> Iterable[str]:
    """Returns every key of a config as a flag."""
    from flax.traverse_util import flatten_dict

    from kernsym_jax import training

    return [f"config.{key}" for key in flatten_dict(training.default().to_dict(), sep=".")]


COMMAND = cli.Command(
    name="train",
    summary="Trains a network and follows the symmetry of its mean kernels. Stopped, it goes on "
    "where it was.",
    usage=("--config=NAME|FILE --workdir=DIR [--config.KEY=VALUE ...] [flags]",),
    groups={
        "The run": "config=NAME|FILE workdir=DIR resume",
        "Other work": "prepare profile=DIR",
        "Several processes": "distributed coordinator=HOST:PORT processes process",
    },
    examples={
        "--config=digits --workdir=runs/digits": "A small network on handwritten digits, a minute",
        "--config=digits --workdir=runs/reflect --config.model.padding=reflect": (
            "The same with another padding; any key of the config is a flag"
        ),
        "--config=cifar10_resnet20 --prepare": "Only download and prepare the images",
    },
    choices=lambda: {"config": cli.list_shipped(cli.CONFIGS)},
    more_flags=_config_keys,
)


def main(argv: Sequence[str]) -> int:
    """Trains, and returns the exit status: 75 if a signal stopped the run, else 0."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        raise ValueError("--config is missing: a name (--config=list shows them) or a file")
    from kernsym_jax import data, training
    from kernsym_jax.training import processes

    if _PREPARE.value:
        data.prepare(training.resolve(_CONFIG.value).data.source)
        return 0
    workdir = cli.folder("workdir", _WORKDIR.value, _default_workdir())
    processes.start(_DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with processes.leaving_on_failure():
        try:
            summary = training.train_and_evaluate(
                _CONFIG.value, workdir, resume=_RESUME.value, profile=_PROFILE.value
            )
        except training.Preempted as stopped:
            if processes.is_first():
                print(stopped)
            return cli.PREEMPTED
    if processes.is_first():
        parts = [f"{workdir}: step {summary['step']}"]
        for name, key in (("accuracy", "eval_accuracy"), ("mean IoU", "eval_mean_iou")):
            if summary.get(key) is not None:
                parts.append(f"{name} {summary[key]:.4f}")
        print(", ".join(parts))
    return 0


def _default_workdir() -> str:
    name = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    return f"runs/{pathlib.Path(name).stem}"


def run() -> None:
    """The console script."""
    cli.run(main, COMMAND)


if __name__ == "__main__":
    run()
