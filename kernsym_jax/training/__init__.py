"""Training: a config and a directory in, a run directory with checkpoints and metrics out."""

from kernsym_jax.training.config import default, resolve
from kernsym_jax.training.loop import Preempted, train_and_evaluate

__all__ = ["Preempted", "default", "resolve", "train_and_evaluate"]
