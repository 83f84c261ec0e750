"""Studies: each claim as runs, measures, one primary test and a rule, fixed before the runs."""

from kernsym_jax.studies.claims_page import keep, write_claims_page
from kernsym_jax.studies.conduct import conduct, dry_run, gather, pilot_table, train_one
from kernsym_jax.studies.measures import Measure
from kernsym_jax.studies.results import FinishedRun
from kernsym_jax.studies.runs import emit, load_study, pick_size
from kernsym_jax.studies.statistics import Pilot
from kernsym_jax.studies.study import (
    Claim,
    Consistency,
    Contrast,
    Correlation,
    Network,
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
    "Pilot",
    "Study",
    "conduct",
    "dry_run",
    "emit",
    "gather",
    "keep",
    "load_study",
    "pick_size",
    "pilot_table",
    "train_one",
    "write_claims_page",
]
