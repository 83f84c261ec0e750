"""Training: from a config and a directory to a run directory with checkpoints and metrics."""

from kernsym_jax.training.config import default, resolve
from kernsym_jax.training.loop import train_and_evaluate
from kernsym_jax.training.processes import Preempted

__all__ = ["Preempted", "default", "resolve", "train_and_evaluate"]
