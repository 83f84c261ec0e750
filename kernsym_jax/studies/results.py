"""What the finished runs of a study say: raw rows, measures, and the verdicts they lead to."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax import report, run_directory
from kernsym_jax.studies import runs as planned
from kernsym_jax.studies import statistics, verdict
from kernsym_jax.studies.statistics import Estimate
from kernsym_jax.studies.study import Contrast, Correlation, Study


class FinishedRun:
    """A finished run or a trained network, read when it is asked.

    Args:
      variant: of the study.
      seed: of the run; the name of a network.
      path: its run directory; the file of a network, which has a table and nothing else.
      options: how its table is read.
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
        """Its layer table, at the end."""
        return report.read_table(self.path, self.options)

    @functools.cached_property
    def folded(self) -> report.NetworkTable:
        """The same with every BatchNorm folded into the kernels before it."""
        options = dataclasses.replace(self.options, fold_batchnorm=True)
        return report.read_table(self.path, options)

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """The ``symmetry`` lines of its ``metrics.jsonl``, the initialisation's first."""
        lines = run_directory.read_metrics(self.path)
        return [line for line in lines if line["split"] == "symmetry"]

    @functools.cached_property
    def answers(self) -> list[dict[str, Any]]:
        """The ``consistency`` lines of its ``metrics.jsonl``, one for each evaluation."""
        lines = run_directory.read_metrics(self.path)
        return [line for line in lines if line["split"] == "consistency"]

    @functools.cached_property
    def consistency(self) -> dict[str, Any]:
        """Its shift and flip consistency, with intervals over images.

        Raises:
          ValueError: if the study does not ask for it.
        """
        path = self.path / run_directory.CONSISTENCY
        if not path.exists():
            raise ValueError(f"{path} is missing: the study has a measure of it, but asks for none")
        return run_directory.read_consistency(self.path)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """Its final numbers."""
        return run_directory.read_summary(self.path)

    @functools.cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """Who computed it, with what and where."""
        return run_directory.read_provenance(self.path)


@dataclasses.dataclass(frozen=True)
class Test:
    """A test with its outcome.

    Attributes:
      name: of the test.
      test: as the study has it.
      estimate: of its effect.
      p_holm: corrected for all tests of the study.
      verdict: by the rule.
      differences: seed or network -> contrast, of a contrast.
      others: what else is worth knowing: of a correlation, that by the other method; of a contrast
        over families of networks, that over the networks.
    """

    name: str
    test: Contrast | Correlation
    estimate: Estimate
    p_holm: float | None
    verdict: str
    differences: Mapping[int | str, float]
    others: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a study has found out so far.

    Attributes:
      study: the study.
      finished: the runs that are.
      missing: names of the others.
      values: (variant, seed or network) -> measure -> number.
      tests: with their outcomes.
      verdicts: claim -> verdict.
    """

    study: Study
    finished: Sequence[FinishedRun]
    missing: Sequence[str]
    values: Mapping[tuple[str, int | str], Mapping[str, float | None]]
    tests: Sequence[Test]
    verdicts: Mapping[str, str]

    def of(self, variant: str, measure: str) -> list[float]:
        """A measure over the seeds of a variant, or the families of networks, where it has a
        value."""
        found = {
            seed: value
            for (name, seed), row in self.values.items()
            if name == variant and (value := row[measure]) is not None
        }
        return list(self.study.independent(found).values())

    def layers(self) -> list[dict[str, Any]]:
        """One row per run and layer, with the columns of ``layers.csv`` but for the source."""
        return [
            {"variant": run.variant, self.study.unit: run.seed, **row}
            for run in self.finished
            for row in run.table.rows
        ]


def collect(study: Study, workdir: pathlib.Path) -> Results:
    """Reads what is finished, and decides.

    Args:
      study: the study.
      workdir: of the study.

    Returns:
      The results.

    Raises:
      ValueError: if no run is finished, or a directory holds something else.
    """
    wanted = planned.plan_runs(study, workdir)
    done = [run for run in wanted if planned.state(run) == planned.FINISHED]
    if not done:
        raise ValueError(_nothing(study, workdir, len(wanted)))
    finished = [
        FinishedRun(run.variant, run.seed, run.path, run.network.options if run.network else None)
        for run in done
    ]
    values = {(run.variant, run.seed): _measure(study, run) for run in finished}
    missing = [run.name for run in wanted if run not in done]
    return decide(study, values, finished, missing)


def decide(
    study: Study,
    values: Mapping[tuple[str, int | str], Mapping[str, float | None]],
    finished: Sequence[FinishedRun] = (),
    missing: Sequence[str] = (),
) -> Results:
    """Makes all tests of a study on the measures of its runs.

    Args:
      study: the study.
      values: (variant, seed or network) -> measure -> number.
      finished: the runs they are of.
      missing: names of the runs that are not finished.

    Returns:
      The results.
    """
    differences = {name: _differences(study, c, values) for name, c in study.contrasts.items()}
    estimates = {
        name: statistics.paired(list(study.independent(found).values()), study.coverage)
        for name, found in differences.items()
    }
    others: dict[str, dict[str, Estimate]] = {}
    if study.networks:
        for name, each_network in differences.items():
            each = statistics.paired(list(each_network.values()), study.coverage)
            others[name] = {f"each of {each.n} networks by itself": each}
    for name, test in study.correlations.items():
        for method in ("pearson", "spearman"):
            found = _correlation(study, test, method, values)
            if method == test.method:
                estimates[name] = found
            else:
                others[name] = {method: found}
    corrected = statistics.holm([estimates[name].p for name in study.tests])
    tests = [
        Test(
            name,
            test,
            estimates[name],
            p,
            verdict.decide(test, estimates[name], p, study.level),
            differences.get(name, {}),
            others.get(name, {}),
        )
        for (name, test), p in zip(study.tests.items(), corrected, strict=True)
    ]
    verdicts = {
        claim: verdict.combine([test.verdict for test in tests if test.test.claim == claim])
        for claim in study.claims
    }
    return Results(study, finished, missing, values, tests, verdicts)


def accuracy_difference(contrast: Contrast, results: Results) -> Estimate | None:
    """The same contrast of the evaluation accuracy; None where it compares no two variants."""
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


def _nothing(study: Study, workdir: pathlib.Path, wanted: int) -> str:
    if study.networks:
        return (
            f"{study.files}: none of the {wanted} networks of {study.name} is there; --dry_run "
            "tells where to get them"
        )
    return f"{workdir}: none of the {wanted} runs of {study.name} is finished"


def _measure(study: Study, run: FinishedRun) -> dict[str, float | None]:
    found = {name: measure.of(run) for name, measure in study.measures.items()}
    return {
        name: None if value is None or not np.isfinite(value) else float(value)
        for name, value in found.items()
    }


def _differences(
    study: Study,
    contrast: Contrast,
    values: Mapping[tuple[str, int | str], Mapping[str, float | None]],
) -> dict[int | str, float]:
    """Over the seeds or networks of which all variants in the contrast have the measure."""
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


def _correlation(
    study: Study,
    test: Correlation,
    method: str,
    values: Mapping[tuple[str, int | str], Mapping[str, float | None]],
) -> Estimate:
    wanted = (test.x, test.y, *test.given)
    rows: list[tuple[str, int | str, list[float]]] = []
    for (variant, seed), row in values.items():
        found = [value for value in map(row.get, wanted) if value is not None]
        if len(found) == len(wanted) and variant in (test.variants or (variant,)):
            rows.append((variant, seed, found))
    columns = [[row[index] for *_, row in rows] for index in range(len(wanted))]
    if study.networks:
        by_name = [{seed: row[index] for _, seed, row in rows} for index in range(len(wanted))]
        columns = [list(study.independent(column).values()) for column in by_name]
    x, y, *given = columns
    if test.within:
        names = sorted({variant for variant, *_ in rows})
        given += [[float(variant == name) for variant, *_ in rows] for name in names[1:]]
    return statistics.correlation(x, y, given, method, study.coverage)
