"""How often a network's answer survives shifts, flips and rotations of the image."""

from kernsym_jax.evaluation.console import print_consistency
from kernsym_jax.evaluation.figure import write_map
from kernsym_jax.evaluation.files import read_run, write_results
from kernsym_jax.evaluation.flip import flip
from kernsym_jax.evaluation.interval import Estimate, bootstrap, share, wilson
from kernsym_jax.evaluation.measure import Answers, Flips, measure
from kernsym_jax.evaluation.shift import Shifts, parse_shifts, shift
from kernsym_jax.evaluation.subject import Subject, evaluate, open_subject
from kernsym_jax.evaluation.summary import (
    accuracy,
    agreement_map,
    flip_consistency,
    shift_consistency,
    summarize,
)

__all__ = [
    "Answers",
    "Estimate",
    "Flips",
    "Shifts",
    "Subject",
    "accuracy",
    "agreement_map",
    "bootstrap",
    "evaluate",
    "flip",
    "flip_consistency",
    "measure",
    "open_subject",
    "parse_shifts",
    "print_consistency",
    "read_run",
    "share",
    "shift",
    "shift_consistency",
    "summarize",
    "wilson",
    "write_map",
    "write_results",
]
