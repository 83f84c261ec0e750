"""The files that a study leaves: raw tables, claims with their verdicts, figures and the page."""

import csv
import dataclasses
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from kernsym_jax import json_file, report, run_directory
from kernsym_jax.studies import figures, page, verdict
from kernsym_jax.studies.results import Results, Test
from kernsym_jax.studies.study import Study

RESULTS, LAYERS, CLAIMS, PAGE = "results.csv", "layers.csv", "claims.json", "study.html"


def write_outcome(
    results: Results, workdir: pathlib.Path, command: Sequence[str], changed: Sequence[str]
) -> None:
    """Writes ``results.csv``, ``layers.csv``, ``claims.json``, ``figures/`` and ``study.html``.

    The same runs give the same files, whenever and however often they were trained.

    Args:
      results: of the study.
      workdir: of the study.
      command: that conducts it: the arguments after the interpreter.
      changed: parts of the plan that are not as they were before the first run.
    """
    columns = ("variant", results.study.unit, "measure", "value")
    rows = [
        dict(zip(columns, (variant, seed, name, value), strict=True))
        for (variant, seed), found in results.values.items()
        for name, value in found.items()
    ]
    _write_csv(workdir / RESULTS, columns, rows)
    layer_columns = (*columns[:2], *(c for c in report.COLUMNS if c != "source"))
    _write_csv(workdir / LAYERS, layer_columns, results.layers())
    claims = _claims(results, workdir, shlex.join(["python", *command]), changed)
    json_file.write_json(workdir / CLAIMS, claims)
    drawn = figures.draw(results)
    figures.write(drawn, workdir / "figures")
    (workdir / PAGE).write_text(page.render(results, claims, drawn), encoding="utf-8")


def _claims(
    results: Results, workdir: pathlib.Path, command: str, changed: Sequence[str]
) -> dict[str, Any]:
    study = results.study
    return json_file.finite(
        {
            "study": study.name,
            "size": study.size,
            "title": study.title,
            "data": study.data,
            f"{study.unit}s": list(study.units),
            "runs": len(results.finished),
            "missing": list(results.missing),
            "level": study.level,
            "coverage": study.coverage,
            "claim_rule": verdict.CLAIM_RULE,
            "plan_changed": list(changed),
            "command": command,
            "provenance": _provenance(results, workdir),
            "claims": [
                {
                    "claim": key,
                    "of": claim.of,
                    "text": claim.text,
                    "verdict": results.verdicts[key],
                    "tests": [
                        _test(test, study) for test in results.tests if test.test.claim == key
                    ],
                }
                for key, claim in study.claims.items()
            ],
        }
    )


def _test(test: Test, study: Study) -> dict[str, Any]:
    estimate = dataclasses.asdict(test.estimate)
    return {
        "test": test.name,
        "meaning": test.test.meaning,
        "expected": test.test.expected,
        "smallest": test.test.smallest,
        **estimate,
        "p_holm": test.p_holm,
        "verdict": test.verdict,
        "rule": verdict.rule(test.test, study.level, study.coverage),
        f"by_{study.unit}": {str(unit): value for unit, value in test.differences.items()},
        **({"by_family": study.independent(test.differences)} if study.networks else {}),
        "other_methods": {name: dataclasses.asdict(e) for name, e in test.others.items()},
    }


def _provenance(results: Results, workdir: pathlib.Path) -> dict[str, list[Any]]:
    """What the runs were computed with, without what differs from one start to another; of networks
    that were read, what measured them last."""
    if results.study.networks:
        sessions = run_directory.read_provenance(workdir)[-1:]
    else:
        sessions = [session for run in results.finished for session in run.sessions]
    facts = ("git_revision", "python", "platform")
    found: dict[str, list[Any]] = {
        fact: sorted({str(session[fact]) for session in sessions}) for fact in facts
    }
    found["devices"] = sorted({device for session in sessions for device in session["devices"]})
    found["versions"] = sorted(
        {
            f"{library} {version}"
            for session in sessions
            for library, version in session["versions"].items()
        }
    )
    return found


def _write_csv(path: pathlib.Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    fresh = path.with_name(f".{path.name}.fresh")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)
