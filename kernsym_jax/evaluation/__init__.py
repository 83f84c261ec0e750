"""Accuracy of a network's answers, and their consistency under shifts, flips and rotations."""

from kernsym_jax.evaluation.answers import (
    Answers,
    Flips,
    MaskAnswers,
    MaskFlips,
    confusion_matrix,
)
from kernsym_jax.evaluation.estimates import (
    Estimate,
    accuracy,
    agreement_map,
    bootstrap,
    flip_consistency,
    mean_iou,
    share,
    shift_consistency,
    summarize,
    wilson,
)
from kernsym_jax.evaluation.figures import (
    example,
    print_consistency,
    write_map,
    write_picture,
    write_results,
)
from kernsym_jax.evaluation.measure import HostFunction, class_iou, margins, measure
from kernsym_jax.evaluation.onnx_network import OnnxNetwork
from kernsym_jax.evaluation.subject import (
    Subject,
    evaluate,
    open_onnx,
    open_subject,
    predictor,
    read_run,
)
from kernsym_jax.evaluation.transforms import Shifts, flip, parse_shifts, shift, unflip

__all__ = [
    "Answers",
    "Estimate",
    "Flips",
    "HostFunction",
    "MaskAnswers",
    "MaskFlips",
    "OnnxNetwork",
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
    "open_onnx",
    "open_subject",
    "parse_shifts",
    "predictor",
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
