"""How right a network's answers are, and how often they survive shifts, flips and rotations."""

from kernsym_jax.evaluation.classes import Answers, Flips
from kernsym_jax.evaluation.confusion import (
    class_iou,
    confusion_matrix,
    margins,
)
from kernsym_jax.evaluation.console import print_consistency
from kernsym_jax.evaluation.figure import write_map
from kernsym_jax.evaluation.files import read_run, write_results
from kernsym_jax.evaluation.flip import flip, unflip
from kernsym_jax.evaluation.interval import Estimate, bootstrap, share, wilson
from kernsym_jax.evaluation.mask_summary import mean_iou
from kernsym_jax.evaluation.masks import MaskAnswers, MaskFlips
from kernsym_jax.evaluation.measure import measure
from kernsym_jax.evaluation.picture import example, write_picture
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
    "MaskAnswers",
    "MaskFlips",
    "Shifts",
    "Subject",
    "accuracy",
    "agreement_map",
    "bootstrap",
    "class_iou",
    "confusion_matrix",
    "evaluate",
    "example",
    "flip",
    "flip_consistency",
    "margins",
    "mean_iou",
    "measure",
    "open_subject",
    "parse_shifts",
    "print_consistency",
    "read_run",
    "share",
    "shift",
    "shift_consistency",
    "summarize",
    "unflip",
    "wilson",
    "write_map",
    "write_picture",
    "write_results",
]
