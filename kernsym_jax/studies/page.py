"""The files that a study leaves: raw tables, claims with verdicts, figures, and one HTML page."""

import csv
import dataclasses
import importlib.resources
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from kernsym_jax import json_file, report, run_directory
from kernsym_jax.evaluation.figures import svg
from kernsym_jax.report.page import csv_link
from kernsym_jax.studies import figures, statistics
from kernsym_jax.studies import results as outcomes
from kernsym_jax.studies.results import Results, Test, accuracy_difference
from kernsym_jax.studies.statistics import Effect, Power
from kernsym_jax.studies.study import Study

PLAN, RESULTS, LAYERS, CLAIMS = "study.json", "results.csv", "layers.csv", "claims.json"
PAGE = "study.html"
_LAYER_FIGURES = (
    "score", "score_centered", "E", "sig_x", "sig_y", "skew_x", "skew_y", "dc_share",
)  # fmt: skip
# Figures of more inches are as wide as the page.
_WIDE = 8
_CAPTIONS = {
    "effects": "Every test: the effect in units of the smallest effect that matters. Primary tests "
    "have their corrected interval and their verdict.",
    "kernels": "Size of the weights per tap (root mean square), averaged over the seeds: red is "
    "larger than the kernel's mean, blue smaller. Arrows show the padding signature, 20 times as "
    "long as it is; the numbers are its x (to the right) and y (down), in cells.",
    "layers": "{figure}, layer by layer: the mean over the seeds and its interval.",
    "networks": "The square kernels of every network, in order: the score minus that of random "
    "kernels of their size. Circles are ordinary layers, crosses depthwise ones, stars the first.",
    "scatter": "The two measures that are correlated, one point per run.",
    "steps": "{figure} during training: the mean over the layers and seeds, and the range of the "
    "seeds.",
}


def write_outcome(
    results: Results, workdir: pathlib.Path, command: Sequence[str], changed: Sequence[str]
) -> None:
    """Writes ``results.csv``, ``layers.csv``, ``claims.json``, ``figures/`` and ``study.html``.

    The same runs give the same files, no matter when and how often they were trained.

    Args:
      results: the results.
      workdir: folder of the study.
      command: the command line of the study, after the interpreter.
      changed: parts of the plan that differ from the plan before the first run.
    """
    columns = ("variant", results.study.unit, "measure", "value")
    rows = [
        dict(zip(columns, (variant, seed, name, value), strict=True))
        for (variant, seed), found in results.values.items()
        for name, value in found.items()
    ]
    _write_csv(workdir / RESULTS, columns, rows)
    layer_columns = results.study.layer_columns or [c for c in report.COLUMNS if c != "source"]
    layers = [_shortened(row) for row in results.layers()]
    _write_csv(workdir / LAYERS, (*columns[:2], *layer_columns), layers)
    claims = _claims(results, workdir, shlex.join(["python", *command]), changed)
    json_file.write_json(workdir / CLAIMS, claims)
    drawn = figures.draw(results)
    figures.write(drawn, workdir / "figures")
    (workdir / PAGE).write_text(render(results, claims, drawn), encoding="utf-8")


def render(results: Results, claims: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """Renders the page: it loads nothing from elsewhere, and every name in it is text.

    Args:
      results: the results.
      claims: the content of ``claims.json``.
      drawn: name -> matplotlib figure.

    Returns:
      An HTML document.
    """
    import jinja2

    def read(package: str, name: str) -> str:
        return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": figure, "p_value": p_text}
    study = results.study
    differences = {
        test.name: accuracy_difference(study.contrasts[test.name], results)
        for test in results.tests
        if test.name in study.contrasts
    }
    tests = [(claim, test) for claim in claims["claims"] for test in claim["tests"]]
    return environment.from_string(read("kernsym_jax.studies", "study.jinja")).render(
        study=study,
        claims=claims,
        primaries=[(claim, test) for claim, test in tests if test["primary"]],
        secondaries=[(claim, test) for claim, test in tests if not test["primary"]],
        measures=_measures(results),
        everything=len(study.independent(dict.fromkeys(study.units, 0.0))),
        networks=_networks(results),
        layers=_layers(results),
        layer_figures=_LAYER_FIGURES,
        figures=_figures(results, drawn),
        confounds=[
            (text, [m for m in _measures(results) if m["name"] in names])
            for text, names in study.confounds.items()
        ],
        accuracies=[(name, found) for name, found in differences.items() if found is not None],
        nulls=_nulls(results),
        rules=_rules(claims),
        cover=f"{100 * study.coverage:g} %",
        style=read("kernsym_jax.report", "page.css") + read("kernsym_jax.studies", "study.css"),
    )


def _figures(results: Results, drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the figures of the page with their captions and their data."""
    data = figures.data(results)
    found = []
    for name, drawing in drawn.items():
        kind, _, shown = name.partition("_")
        columns = list(dict.fromkeys(key for row in data[name] for key in row))
        found.append(
            {
                "name": name,
                "caption": _CAPTIONS[kind].format(figure=shown),
                "svg": svg(drawing, page=True),
                "wide": drawing.get_figwidth() > _WIDE,
                "data": csv_link(columns, [_shortened(row) for row in data[name]]),
            }
        )
    return found


def _shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _short(value) for key, value in row.items()}


def figure(value: float | None) -> str:
    """Formats a number with three decimals, or more if it would vanish."""
    if value is None:
        return ""
    text = f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"
    return text.replace("-", "−")


def p_text(value: float | None) -> str:
    """Formats a p-value with two significant digits."""
    return "" if value is None else f"{value:.2g}"


def _claims(
    results: Results, workdir: pathlib.Path, command: str, changed: Sequence[str]
) -> dict[str, Any]:
    study, power = results.study, results.study.power()
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
            "verdicts": outcomes.VERDICTS,
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
                        _test(test, study, power.get(test.name))
                        for test in results.tests
                        if test.test.claim == key
                    ],
                }
                for key, claim in study.claims.items()
            ],
        }
    )


def _test(test: Test, study: Study, power: Power | None) -> dict[str, Any]:
    expected, smallest = test.test.expected, test.test.smallest
    return {
        "test": test.name,
        "primary": test.primary,
        "meaning": test.test.meaning,
        "expected": expected,
        "smallest": smallest,
        **dataclasses.asdict(test.effect),
        "p_holm": test.p_holm,
        "corrected_low": test.interval[0],
        "corrected_high": test.interval[1],
        "verdict": test.verdict,
        "rule": outcomes.rule(expected, smallest, study.level) if test.primary else "",
        "planned": dataclasses.asdict(power) if power else None,
        f"by_{study.unit}": {str(unit): value for unit, value in test.differences.items()},
        **({"by_family": study.independent(test.differences)} if study.networks else {}),
        "other_methods": {name: dataclasses.asdict(e) for name, e in test.others.items()},
    }


def _provenance(results: Results, workdir: pathlib.Path) -> dict[str, list[Any]]:
    """Returns commands, versions and devices of the runs, without facts that differ at each start.

    For networks that were read, it is what measured them last.
    """
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


def _short(value: Any) -> Any:
    """Shortens a figure to the nine digits that tell single-precision numbers apart."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _rules(claims: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns rule -> names of the primary tests that it decides."""
    found: dict[str, list[str]] = {}
    for test in (test for claim in claims["claims"] for test in claim["tests"]):
        if test["primary"]:
            found.setdefault(test["rule"], []).append(test["test"])
    return found


def _measures(results: Results) -> list[dict[str, Any]]:
    study = results.study
    return [
        {
            "name": name,
            "meaning": measure.meaning,
            "variants": [
                _mean(results.of(variant, name), study.coverage) for variant in study.variants
            ],
        }
        for name, measure in study.measures.items()
    ]


def _networks(results: Results) -> list[dict[str, Any]]:
    """Returns one entry per network that was read, in the order of the study."""
    networks = results.study.networks
    return [
        {
            "name": run.seed,
            "layers": len(run.table.rows),
            "network": networks[str(run.seed)],
            "values": results.values[run.variant, run.seed],
        }
        for run in results.finished
        if networks
    ]


def _layers(results: Results) -> list[dict[str, Any]]:
    """Returns one entry per layer and variant, for the roles that the study tables."""
    study = results.study
    found: dict[tuple[Any, str, str], list[dict[str, Any]]] = {}
    for row in results.layers():
        if row["role"] in study.roles:
            found.setdefault((row["order"], row["layer"], row["variant"]), []).append(row)
    return [
        {
            "layer": layer,
            "variant": variant,
            "uneven": list(dict.fromkeys((row["uneven_h"], row["uneven_w"]) for row in rows)),
            "figures": [
                _mean([row[name] for row in rows if row[name] is not None], study.coverage)
                for name in _LAYER_FIGURES
            ],
        }
        for (_, layer, variant), rows in sorted(found.items(), key=lambda item: item[0][0] or 0)
    ]


def _nulls(results: Results) -> list[tuple[str, float, float, int]]:
    """Returns kernel size, mean and 95 % point of its null, and the number of its layers."""
    counts: dict[tuple[str, float, float], int] = {}
    for row in results.layers():
        size = "×".join(row["shape"].split("×")[:2])
        key = (size, row["null_mean"], row["null_q95"])
        counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in sorted(counts.items())]


def _mean(values: Sequence[float], coverage: float) -> Effect:
    return statistics.paired(values, coverage)
