"""From an estimate to a verdict, by a rule that is written down before the runs."""

from collections.abc import Sequence

from kernsym_jax.studies.statistics import Estimate
from kernsym_jax.studies.study import Contrast, Correlation

SUPPORTED, NOT_SUPPORTED, DIFFERS, UNDECIDED = (
    "supported", "not supported", "differs", "undecided",
)  # fmt: skip
FEWEST = 3
"""Seeds, runs or families of networks below which nothing is decided."""


def decide(test: Contrast | Correlation, estimate: Estimate, p: float | None, level: float) -> str:
    """The verdict of one test; `rule` says the same in words.

    Args:
      test: with the direction that is expected and the smallest effect that matters.
      estimate: of the effect.
      p: two-sided, corrected for the other tests of the study.
      level: of the family-wise error.

    Returns:
      ``supported``, ``not supported``, ``differs`` or ``undecided``.
    """
    effect, low, high = estimate.effect, estimate.low, estimate.high
    if estimate.n < FEWEST or effect is None or p is None or low is None or high is None:
        return UNDECIDED
    found = p <= level and abs(effect) >= test.smallest
    if test.expected == "zero":
        if found:
            return DIFFERS
        return SUPPORTED if -test.smallest < low and high < test.smallest else UNDECIDED
    sign = 1 if test.expected == "above" else -1
    if found:
        return SUPPORTED if sign * effect > 0 else DIFFERS
    furthest = max(sign * low, sign * high)
    return NOT_SUPPORTED if furthest < test.smallest else UNDECIDED


def combine(verdicts: Sequence[str]) -> str:
    """The verdict of a claim from those of its tests; `CLAIM_RULE` says the same in words."""
    if set(verdicts) == {SUPPORTED}:
        return SUPPORTED
    return next((v for v in (DIFFERS, NOT_SUPPORTED) if v in verdicts), UNDECIDED)


def rule(test: Contrast | Correlation, level: float, coverage: float) -> str:
    """The rule of one test in words."""
    size, cover = f"{test.smallest:g}", f"{100 * coverage:g} % interval"
    if test.expected == "zero":
        return (
            f"supported if the {cover} lies within ±{size}; differs if Holm's p ≤ {level:g} and "
            f"the effect is at least {size} either way; otherwise undecided"
        )
    low, high = (f"≥ {size}", f"≤ −{size}")
    if test.expected == "below":
        low, high = high, low
    return (
        f"supported if Holm's p ≤ {level:g} and the effect is {low}; differs if it is {high} "
        f"instead; not supported if the {cover} rules out an effect {low}; otherwise undecided"
    )


CLAIM_RULE = (
    "A claim is supported if all of its tests are; it differs if one of them does, and is not "
    "supported if one of them is not; otherwise it is undecided. Fewer than "
    f"{FEWEST} seeds, or families of networks, decide nothing."
)
