"""The results of a study's finished runs: measures, effects of the tests, and verdicts."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax import report, run_directory
from kernsym_jax.studies import runs as planned
from kernsym_jax.studies import statistics
from kernsym_jax.studies.statistics import Effect
from kernsym_jax.studies.study import Contrast, Correlation, Study

SUPPORTED, NOT_SUPPORTED, DIFFERS, TOO_FEW, UNDECIDED = (
    "supported", "not supported", "differs", "too few seeds", "undecided",
)  # fmt: skip
VERDICTS = {
    SUPPORTED: "the interval excludes 0, and the effect is as expected and at least as large as "
    "the smallest that matters; where none is expected, two one-sided tests show it to be smaller",
    DIFFERS: "the same in the other direction, or where no effect was expected",
    NOT_SUPPORTED: "the interval excludes every effect that matters in the expected direction",
    TOO_FEW: "half the interval is wider than the smallest effect that matters",
    UNDECIDED: "none of these: the interval holds effects that matter and others",
}
"""The verdicts with their conditions in words; the first condition that holds counts."""

Values = Mapping[tuple[str, int | str], Mapping[str, float | None]]
"""(variant, seed or network) -> measure -> number."""


class FinishedRun:
    """A finished run or a trained network; its files are read when they are asked for.

    Args:
      variant: the variant.
      seed: the seed, or the name of a network.
      path: the run directory, or the file of a network, which has a table and nothing else.
      options: how the table is read.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import studies
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    >>> np.savez(file, **{"conv.weight": weight})
    >>> run = studies.FinishedRun("read", "net", file)
    >>> run.weights["conv"].shape, round(run.table.rows[0]["score"], 2)
    ((3, 3, 1, 4), 0.91)
    """

    def __init__(
        self,
        variant: str,
        seed: int | str,
        path: pathlib.Path,
        options: report.Options | None = None,
    ) -> None:
        self.variant, self.seed, self.path = variant, seed, path
        self.options = options or report.Options()

    @functools.cached_property
    def table(self) -> report.NetworkTable:
        """The layer table at the end."""
        return report.read_table(self.path, self.options)

    @functools.cached_property
    def folded(self) -> report.NetworkTable:
        """The layer table with every BatchNorm folded into the kernels before it."""
        options = dataclasses.replace(self.options, fold_batchnorm=True)
        return report.read_table(self.path, options)

    @functools.cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The final kernels, layer -> (kh, kw, in, out)."""
        return {name: kernel.weight for name, kernel in self.table.weights.kernels.items()}

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """The ``symmetry`` lines of ``metrics.jsonl``, starting at the initialisation."""
        lines = run_directory.read_metrics(self.path)
        return [line for line in lines if line["split"] == "symmetry"]

    @functools.cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The ``eval`` lines of ``metrics.jsonl``."""
        lines = run_directory.read_metrics(self.path)
        return [line for line in lines if line["split"] == "eval"]

    @functools.cached_property
    def answers(self) -> list[dict[str, Any]]:
        """The ``consistency`` lines of ``metrics.jsonl``, one per evaluation."""
        lines = run_directory.read_metrics(self.path)
        return [line for line in lines if line["split"] == "consistency"]

    @functools.cached_property
    def consistency(self) -> dict[str, Any]:
        """The shift and flip consistency at the end, with intervals over images.

        Raises:
          ValueError: if the study does not evaluate its runs.
        """
        path = self.path / run_directory.CONSISTENCY
        if not path.exists():
            raise ValueError(
                f"{path} is missing: a measure needs it, but the study has no `consistency`"
            )
        return run_directory.read_consistency(self.path)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The final numbers of the run."""
        return run_directory.read_summary(self.path)

    @functools.cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that computed the run: commands, versions, devices."""
        return run_directory.read_provenance(self.path)


@dataclasses.dataclass(frozen=True)
class Test:
    """A test with its outcome.

    Attributes:
      name: name of the test.
      test: the test as the study has it.
      effect: its effect; its interval describes, uncorrected.
      primary: whether it decides its claim.
      p_holm: p-value corrected for the other primary tests; None for a secondary test.
      interval: corrected interval of a primary test.
      verdict: one of `VERDICTS`; empty for a secondary test.
      differences: seed or network -> value of a contrast.
      others: further effects to show: of a correlation, the other method; of a contrast over
        families, the one over networks.
    """

    name: str
    test: Contrast | Correlation
    effect: Effect
    primary: bool
    p_holm: float | None
    interval: tuple[float | None, float | None]
    verdict: str
    differences: Mapping[int | str, float]
    others: Mapping[str, Effect]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that a study has found so far.

    Attributes:
      study: the study.
      finished: the finished runs.
      missing: names of the other runs.
      values: the measures of the finished runs.
      tests: the tests with their outcomes, primary ones first.
      verdicts: claim -> verdict of its primary test.
    """

    study: Study
    finished: Sequence[FinishedRun]
    missing: Sequence[str]
    values: Values
    tests: Sequence[Test]
    verdicts: Mapping[str, str]

    def of(self, variant: str, measure: str) -> list[float]:
        """Returns a measure over the seeds of a variant, or families of networks, if known."""
        found = {
            seed: value
            for (name, seed), row in self.values.items()
            if name == variant and (value := row[measure]) is not None
        }
        return list(self.study.independent(found).values())

    def layers(self) -> list[dict[str, Any]]:
        """Returns one row per run and layer, with the columns of ``layers.csv`` but the source."""
        return [
            {"variant": run.variant, self.study.unit: run.seed, **row}
            for run in self.finished
            for row in run.table.rows
        ]


def collect(study: Study, workdir: pathlib.Path) -> Results:
    """Reads the finished runs of a study and decides its claims.

    Args:
      study: the study.
      workdir: its folder.

    Returns:
      The results.

    Raises:
      ValueError: if no run is finished, or a directory holds something else.
    """
    wanted = planned.plan_runs(study, workdir)
    done = [run for run in wanted if planned.state(run) == planned.FINISHED]
    if not done:
        raise ValueError(_nothing_finished(study, workdir, len(wanted)))
    finished = [
        FinishedRun(run.variant, run.seed, run.path, run.network.options if run.network else None)
        for run in done
    ]
    values = {(run.variant, run.seed): _measure(study, run) for run in finished}
    missing = [run.name for run in wanted if run not in done]
    return decide(study, values, finished, missing)


def decide(
    study: Study,
    values: Values,
    finished: Sequence[FinishedRun] = (),
    missing: Sequence[str] = (),
) -> Results:
    """Makes all tests of a study on the measures of its runs.

    Args:
      study: the study.
      values: the measures.
      finished: the runs that they belong to.
      missing: names of the runs that are not finished.

    Returns:
      The results.
    """
    effects, differences, others = _effects(study, values)
    p_values = [_p_value(test, effects[name]) for name, test in study.primaries.items()]
    corrected = statistics.holm(p_values)
    levels = statistics.holm_levels(p_values, study.level)
    tests = []
    for (name, test), p_holm, level in zip(study.primaries.items(), corrected, levels, strict=True):
        # Two one-sided tests at a level go with an interval of twice the error.
        sides = 2 if test.expected == "zero" else 1
        interval = effects[name].interval(1 - sides * level)
        verdict = verdict_of(
            effects[name],
            interval,
            p_holm,
            expected=test.expected,
            smallest=test.smallest,
            level=study.level,
            fewest=study.fewest,
        )
        tests.append((name, True, p_holm, interval, verdict))
    secondary = [name for name in study.tests if name not in study.primaries]
    tests += [(name, False, None, (None, None), "") for name in secondary]
    outcomes = [
        Test(
            name,
            study.tests[name],
            effects[name],
            primary,
            p_holm,
            interval,
            verdict,
            differences.get(name, {}),
            others.get(name, {}),
        )
        for name, primary, p_holm, interval, verdict in tests
    ]
    by_claim = {test.test.claim: test.verdict for test in outcomes if test.primary}
    verdicts = {claim: by_claim[claim] for claim in study.claims}
    return Results(study, finished, missing, values, outcomes, verdicts)


def verdict_of(
    effect: Effect,
    interval: tuple[float | None, float | None],
    p_holm: float | None,
    *,
    expected: str,
    smallest: float,
    level: float,
    fewest: int,
) -> str:
    """Returns the verdict of a primary test; `rule` says the same in words.

    Args:
      effect: the effect.
      interval: its corrected interval.
      p_holm: corrected p-value; of an equivalence claim, of its two one-sided tests.
      expected: ``above``, ``below`` or ``zero``.
      smallest: the smallest effect that matters.
      level: family-wise error.
      fewest: number of cases below which nothing is decided.

    Returns:
      One of `VERDICTS`.
    """
    value, (low, high) = effect.effect, interval
    if effect.n < fewest or value is None:
        return TOO_FEW
    if p_holm is None or low is None or high is None:
        return UNDECIDED
    sign = -1 if expected == "below" else 1
    away = (low > 0 or high < 0) and abs(value) >= smallest
    if expected == "zero":
        if p_holm <= level:
            return SUPPORTED
        if away:
            return DIFFERS
    else:
        if away:
            return SUPPORTED if sign * value > 0 else DIFFERS
        if max(sign * low, sign * high) < smallest:
            return NOT_SUPPORTED
    return TOO_FEW if (high - low) / 2 > smallest else UNDECIDED


def rule(expected: str, smallest: float, level: float) -> str:
    """Returns the rule of one primary test in words."""
    size, percent = f"{smallest:g}", f"{100 * level:g} %"
    if expected == "zero":
        return (
            f"supported if two one-sided tests show the effect within ±{size}; differs if the "
            f"corrected interval excludes 0 and the effect is at least {size} either way; too few "
            f"seeds if half the interval is wider than {size}; otherwise undecided "
            f"(family-wise error {percent})"
        )
    wanted, opposite = f"≥ {size}", f"≤ −{size}"
    if expected == "below":
        wanted, opposite = opposite, wanted
    return (
        f"supported if the corrected interval excludes 0 and the effect is {wanted}; differs if it "
        f"is {opposite} instead; not supported if the corrected interval excludes every effect "
        f"{wanted}; too few seeds if half the interval is wider than {size}; otherwise undecided "
        f"(family-wise error {percent})"
    )


def accuracy_difference(contrast: Contrast, results: Results) -> Effect | None:
    """Returns the same contrast of the test accuracy; None if it does not compare two variants."""
    weights: dict[str, float] = {}
    for weight, variant, _ in contrast.terms:
        weights.setdefault(variant, 1.0 if weight > 0 else -1.0)
    if sorted(weights.values()) != [-1.0, 1.0]:
        return None
    values = {
        (run.variant, run.seed): {"accuracy": run.summary["eval_accuracy"]}
        for run in results.finished
    }
    terms = tuple((weight, variant, "accuracy") for variant, weight in weights.items())
    found = _differences(results.study, dataclasses.replace(contrast, terms=terms), values)
    return statistics.paired(list(found.values()), results.study.coverage)


def _effects(
    study: Study, values: Values
) -> tuple[dict[str, Effect], dict[str, dict[int | str, float]], dict[str, dict[str, Effect]]]:
    """Returns the effect of every test, the differences of contrasts, and further effects."""
    differences = {name: _differences(study, c, values) for name, c in study.contrasts.items()}
    effects = {
        name: statistics.paired(list(study.independent(found).values()), study.coverage)
        for name, found in differences.items()
    }
    others: dict[str, dict[str, Effect]] = {}
    if study.networks:
        for name, each_network in differences.items():
            each = statistics.paired(list(each_network.values()), study.coverage)
            others[name] = {f"each of {each.n} networks by itself": each}
    for name, test in study.correlations.items():
        for method in ("pearson", "spearman"):
            found = _correlation(study, test, method, values)
            if method == test.method:
                effects[name] = found
            else:
                others[name] = {method: found}
    return effects, differences, others


def _p_value(test: Contrast | Correlation, effect: Effect) -> float | None:
    return effect.equivalence_p(test.smallest) if test.expected == "zero" else effect.p


def _nothing_finished(study: Study, workdir: pathlib.Path, wanted: int) -> str:
    if study.networks:
        return (
            f"{study.files}: none of the {wanted} networks of {study.name} is there; --dry_run "
            "tells where to get them"
        )
    return f"{workdir}: none of the {wanted} runs of {study.name} is finished"


def _measure(study: Study, run: FinishedRun) -> dict[str, float | None]:
    found = {}
    for name, measure in study.measures.items():
        try:
            found[name] = measure.of(run)
        # The files of the run have other keys than the measure, which may be the user's own.
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{run.path}: measure {name} failed: {type(error).__name__}: {error}"
            ) from error
    return {
        name: None if value is None or not np.isfinite(value) else float(value)
        for name, value in found.items()
    }


def _differences(study: Study, contrast: Contrast, values: Values) -> dict[int | str, float]:
    """Returns the contrast for each seed or network of which all its measures are known."""
    found: dict[int | str, float] = {}
    for seed in study.units:
        terms = [
            (weight, values.get((variant, seed), {}).get(measure))
            for weight, variant, measure in contrast.terms
        ]
        known = [(weight, value) for weight, value in terms if value is not None]
        if len(known) == len(terms):
            found[seed] = float(sum(weight * value for weight, value in known))
    return found


def _correlation(study: Study, test: Correlation, method: str, values: Values) -> Effect:
    wanted = (test.x, test.y, *test.given)
    rows: list[tuple[str, int | str, list[float]]] = []
    for (variant, seed), row in values.items():
        found = [value for value in map(row.get, wanted) if value is not None]
        if len(found) == len(wanted) and variant in (test.variants or (variant,)):
            rows.append((variant, seed, found))
    columns = [[row[index] for *_, row in rows] for index in range(len(wanted))]
    names = sorted({variant for variant, *_ in rows})
    extra: list[list[float]] = []
    if study.networks:
        by_name = [{seed: row[index] for _, seed, row in rows} for index in range(len(wanted))]
        columns = [list(study.independent(column).values()) for column in by_name]
    elif test.within:
        extra = [[float(variant == name) for variant, *_ in rows] for name in names[1:]]
    else:
        columns = [
            [float(np.mean([row[index] for v, _, row in rows if v == name])) for name in names]
            for index in range(len(wanted))
        ]
    x, y, *given = columns
    return statistics.correlation(x, y, [*given, *extra], method, study.coverage)
