"""Training: a config and a directory in, a run directory with checkpoints and metrics out."""

from kernsym_jax.training.config import default, resolve
from kernsym_jax.training.session import train_and_evaluate
from kernsym_jax.training.stop import Preempted

__all__ = ["Preempted", "default", "resolve", "train_and_evaluate"]
