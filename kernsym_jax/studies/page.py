"""A study as one HTML file that needs nothing else."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from kernsym_jax.evaluation.figures import svg
from kernsym_jax.studies import statistics
from kernsym_jax.studies.results import Results, accuracy_difference
from kernsym_jax.studies.statistics import Estimate

_LAYER_FIGURES = ("score", "score_centered", "E", "skew_x", "skew_y", "dc_share")
_CAPTIONS = {
    "effects": "Every test: the effect in units of the smallest that matters.",
    "layers": "Layer by layer: the mean over the seeds and its interval.",
    "networks": "The square kernels of every network above random ones of their size, in order: "
    "circles are ordinary layers, crosses depthwise ones, and stars the first.",
    "scatter": "The two measures that are correlated, a point for each run.",
    "steps": "On the way: the mean over the layers and seeds, and the range of the seeds.",
}


def render(results: Results, claims: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """The page as text: no request leaves it, and all names in it are text.

    Args:
      results: of the study.
      claims: what ``claims.json`` holds.
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
    environment.filters |= {"figure": figure, "p_value": p_value}
    study = results.study
    return environment.from_string(read("kernsym_jax.studies", "study.jinja")).render(
        study=study,
        claims=claims,
        measures=_measures(results),
        networks=_networks(results),
        layers=_layers(results),
        layer_figures=_LAYER_FIGURES,
        figures=[
            (_CAPTIONS[name.split("_")[0]], svg(drawing, page=True))
            for name, drawing in drawn.items()
        ],
        confounds=[
            (text, [m for m in _measures(results) if m["name"] in names])
            for text, names in study.confounds.items()
        ],
        accuracies=[
            (test.name, found)
            for test in results.tests
            if test.name in study.contrasts
            and (found := accuracy_difference(study.contrasts[test.name], results)) is not None
        ],
        nulls=_nulls(results),
        rules=_rules(claims),
        cover=f"{100 * study.coverage:g} %",
        style=read("kernsym_jax.report", "page.css") + read("kernsym_jax.studies", "study.css"),
    )


def _rules(claims: Mapping[str, Any]) -> dict[str, list[str]]:
    """Rule -> the tests that it is the rule of."""
    found: dict[str, list[str]] = {}
    for test in (test for claim in claims["claims"] for test in claim["tests"]):
        found.setdefault(test["rule"], []).append(test["test"])
    return found


def _measures(results: Results) -> list[dict[str, Any]]:
    study = results.study
    return [
        {
            "name": name,
            "meaning": measure.meaning,
            "variants": [
                _estimate(results.of(variant, name), study.coverage) for variant in study.variants
            ],
        }
        for name, measure in study.measures.items()
    ]


def _networks(results: Results) -> list[dict[str, Any]]:
    """One entry per network that was read, family by family as the study has them."""
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
    """One entry per layer and variant, of the roles that the study tables."""
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
                _estimate([row[name] for row in rows if row[name] is not None], study.coverage)
                for name in _LAYER_FIGURES
            ],
        }
        for (_, layer, variant), rows in sorted(found.items(), key=lambda item: item[0][0] or 0)
    ]


def _nulls(results: Results) -> list[tuple[str, float, float, int]]:
    """Kernel size, mean and 95 % point of chance, and how many layers have that size."""
    counts: dict[tuple[str, float, float], int] = {}
    for row in results.layers():
        size = "×".join(row["shape"].split("×")[:2])
        key = (size, row["null_mean"], row["null_q95"])
        counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in sorted(counts.items())]


def _estimate(values: Sequence[float], coverage: float) -> Estimate:
    return statistics.paired(values, coverage)


def figure(value: float | None) -> str:
    """A number with three decimals, or more where it would vanish."""
    if value is None:
        return ""
    text = f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"
    return text.replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value with two significant digits."""
    return "" if value is None else f"{value:.2g}"
