"""Studies: every claim as runs, measures, tests and a rule, written down before the runs."""

from kernsym_jax.studies.claims_page import write_claims_page
from kernsym_jax.studies.conduct import conduct, gather, keep, train_one
from kernsym_jax.studies.cost import dry_run
from kernsym_jax.studies.jobs import emit
from kernsym_jax.studies.load import load_study, pick_size
from kernsym_jax.studies.network import Network
from kernsym_jax.studies.results import FinishedRun
from kernsym_jax.studies.study import (
    Claim,
    Consistency,
    Contrast,
    Correlation,
    Measure,
    Study,
)

__all__ = [
    "Claim",
    "Consistency",
    "Contrast",
    "Correlation",
    "FinishedRun",
    "Measure",
    "Network",
    "Study",
    "conduct",
    "dry_run",
    "emit",
    "gather",
    "keep",
    "load_study",
    "pick_size",
    "train_one",
    "write_claims_page",
]
