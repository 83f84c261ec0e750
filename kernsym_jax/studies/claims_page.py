"""The results of studies that are kept, and the page of all claims that is made from them.

Beside that page, in the folder ``claims``, each claim of the paper may have a page of its own,
written by hand. Its results are generated: they fill the space between two marks.
"""

import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernsym_jax import json_file
from kernsym_jax.studies.page import CLAIMS, LAYERS, PLAN, RESULTS, figure, p_text
from kernsym_jax.studies.results import VERDICTS
from kernsym_jax.studies.runs import SIZES, UnknownSize, load_study
from kernsym_jax.studies.statistics import Effect
from kernsym_jax.studies.study import Study

PAPER = {
    "E1": "AlexNet's mean kernels look alike and symmetric whatever the data set.",
    "E2": "So do those of VGG, ResNet and Inception variants on several data sets.",
    "E3": "The score rises with depth.",
    "E4": "Strided layers show an asymmetry that comes from uneven padding.",
    "E5": "Other paddings, anti-aliasing and SBPool reduce it.",
    "E6": "Symmetry goes along with shift consistency.",
    "E7": "Symmetry goes along with flip consistency.",
    "E8": "Symmetry emerges in training, and the data's own symmetry shapes it.",
    "E9": "Architectural choices matter.",
    "E10": "Removing the skew makes segmentation more robust.",
    "E11": "Individual kernels are directional, their mean is not.",
    "E12": "Symmetry might be an inductive bias.",
}
"""Alsallakh, Wroge, Miglani and Kokhlikyan, "On Symmetries in Convolutional Weights", 2025."""

BEGIN, END = "<!-- results: generated, do not edit -->", "<!-- end of the results -->"

_HEADING = """# The claims, and what came of them

`python -m kernsym_jax.study --report={path}` generates this page from `claims.json` files; do not
edit it. The claims are those of "On Symmetries in Convolutional Weights" (Alsallakh et al., 2025);
the data, networks and sizes are ours, so a verdict is about what was run here.

Every claim has one primary test, chosen before the runs. Intervals hold for all primary tests of a
study together (Holm, family-wise error 5 %). Cases (n) are seeds, architectures, or families of
networks. "Detectable" is the smallest effect that the study finds with 80 % power, computed before
the runs. The spread that it needs comes from pilot seeds that do not count. Families of networks
cannot be drawn again: there it comes from those of the first round, which count here too. It is
empty where nothing was measured before.

"""


def keep(study: Study, workdir: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
    """Copies the tables, claims and figures of a gathered study to a folder of results.

    Args:
      study: the study.
      workdir: its folder.
      folder: the folder of results.

    Returns:
      The copy's folder, ``name/size`` below it.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import studies
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    >>> np.savez(folder / "net.npz", **{"conv.weight": weight})
    >>> score = studies.Measure("score", lambda run: run.table.rows[0]["score"])
    >>> study = studies.Study(
    ...     name="mine", size="cpu", title="How symmetric is it?", data="one file", files=folder,
    ...     variants={"read": {}}, networks={"net": studies.Network("net.npz", "mine", "my disk")},
    ...     measures={"score": score}, claims={}, contrasts={},
    ... )
    >>> results = studies.conduct(study, folder / "mine", command=[])
    mine: 1 of 1 networks are there
    >>> kept = studies.keep(study, folder / "mine", folder / "results")
    >>> sorted(path.name for path in kept.iterdir())
    ['claims.json', 'figures', 'layers.csv', 'results.csv', 'study.json']
    """
    target = pathlib.Path(folder) / study.name / study.size
    (target / "figures").mkdir(parents=True, exist_ok=True)
    figures = [f"figures/{one.name}" for one in pathlib.Path(workdir).glob("figures/*.svg")]
    for name in (PLAN, RESULTS, LAYERS, CLAIMS, *figures):
        shutil.copyfile(pathlib.Path(workdir) / name, target / name)
    return target


def write_claims_page(
    path: str | pathlib.Path,
    results: str | pathlib.Path | None = None,
    studies: str | pathlib.Path = "configs/studies",
) -> int:
    """Writes the page of claims: one table of verdicts, then the details of every study.

    Every page ``claims/<number>.md`` beside it gets its results, too.

    Args:
      path: the Markdown file.
      results: folder with the ``claims.json`` files; None for ``results`` beside the page.
      studies: folder of the study files, for the commands of what was not run.

    Returns:
      The number of studies on the page.

    Raises:
      FileNotFoundError: if there is no ``claims.json``.
      ValueError: if one of them, a study file, or the page of a claim cannot be used.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import studies
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    >>> np.savez(folder / "net.npz", **{"conv.weight": weight})
    >>> score = studies.Measure("score", lambda run: run.table.rows[0]["score"])
    >>> study = studies.Study(
    ...     name="mine", size="cpu", title="How symmetric is it?", data="one file", files=folder,
    ...     variants={"read": {}}, networks={"net": studies.Network("net.npz", "mine", "my disk")},
    ...     measures={"score": score}, claims={}, contrasts={},
    ... )
    >>> results = studies.conduct(study, folder / "mine", command=[])
    mine: 1 of 1 networks are there
    >>> kept = studies.keep(study, folder / "mine", folder / "results")
    >>> studies.write_claims_page(folder / "claims.md", studies=folder)
    1
    >>> "mine, cpu" in (folder / "claims.md").read_text()
    True
    """
    path = pathlib.Path(path)
    folder = path.parent / "results" if results is None else pathlib.Path(results)
    files = sorted(folder.glob(f"**/{CLAIMS}"))
    if not files:
        raise FileNotFoundError(f"{folder}: no {CLAIMS} below it")
    found = [json_file.read_json(file) for file in files]
    found.sort(key=lambda one: (one["study"], _rank(one["size"])))
    pages = [number for number in PAPER if _own_page(path, number).exists()]
    text = _HEADING.format(path=path) + _verdicts(found, pages) + _meanings()
    text += "".join(map(_details, found)) + _not_run(found, pathlib.Path(studies))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    for number in pages:
        _fill(_own_page(path, number), number, found)
    return len(found)


def _own_page(path: pathlib.Path, number: str) -> pathlib.Path:
    return path.parent / "claims" / f"{number}.md"


def _fill(page: pathlib.Path, number: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the results on the page of one claim."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no space for the results between {BEGIN!r} and {END!r}")
    lines = ""
    for one in found:
        claims = [claim for claim in one["claims"] if claim["of"] == number]
        if claims:
            link = f"../claims.md#{_anchor(one)}"
            lines += f"\n[{_title(one)}]({link}): {one['data']}, {one['runs']} runs.\n"
            lines += _tests(claims)
    page.write_text(f"{before}{begin}\n{lines or 'Not run.'}\n{end}{after}", encoding="utf-8")


def _verdicts(found: Sequence[Mapping[str, Any]], pages: Sequence[str]) -> str:
    rows: list[tuple[Any, ...]] = []
    for number, text in PAPER.items():
        name = f"[{number}](claims/{number}.md)" if number in pages else number
        parts = [(one, claim) for one in found for claim in one["claims"] if claim["of"] == number]
        if not parts:
            rows.append((name, text, "", "", "", "", "not run"))
        for one, claim in parts:
            test = _primary(claim)
            rows.append(
                (
                    name,
                    claim["text"],
                    _effect(test, "corrected_low", "corrected_high"),
                    _detectable(test),
                    test["n"],
                    f"[{_title(one)}](#{_anchor(one)})",
                    f"**{claim['verdict']}**",
                )
            )
    columns = ("", "claim", "effect", "detectable", "n", "study", "verdict")
    return _table(columns, rows)


def _meanings() -> str:
    lines = [f"- **{verdict}**: {meaning}.\n" for verdict, meaning in VERDICTS.items()]
    return "\nThe first of these that holds is the verdict:\n\n" + "".join(lines)


def _details(one: Mapping[str, Any]) -> str:
    """Returns the section of one study: where it ran, and all of its tests."""
    lines = [f"\n## {_title(one)}\n\n{one['title']} On {one['data']}, {one['runs']} runs, "]
    lines.append(f"{', '.join(one['provenance']['devices'])}. `{one['command']}`\n")
    if one["missing"]:
        lines.append(f"\nIncomplete: {len(one['missing'])} runs are missing.\n")
    if one["plan_changed"]:
        lines.append(f"\nChanged after the first run: {', '.join(one['plan_changed'])}.\n")
    lines.append(_tests(one["claims"]))
    return "".join(lines)


def _tests(claims: Iterable[Mapping[str, Any]]) -> str:
    """Returns the primary tests of claims as a table, and the secondary ones as another."""
    primary, secondary = [], []
    for claim in claims:
        for test in claim["tests"]:
            if test is _primary(claim):
                ends = "corrected_low", "corrected_high"
                row = (claim["claim"], test["meaning"], _effect(test, *ends), test["smallest"])
                p = p_text(test["p_holm"])
                primary.append((*row, _detectable(test), p, test["n"], claim["verdict"]))
            else:
                effect = _effect(test, "low", "high")
                row = (claim["claim"], test["meaning"], effect, test["n"])
                secondary.append((*row, _equivalence(test)))
    columns = ("claim", "primary test", "effect", "matters from", "detectable", "p (Holm)", "n")
    text = "\n" + _table((*columns, "verdict"), primary)
    if secondary:
        text += "\nSecondary, uncorrected; these describe and decide nothing:\n\n"
        shown = 5 if any(row[-1] for row in secondary) else 4
        names = ("claim", "test", "effect", "n", "no difference")
        text += _table(names[:shown], (row[:shown] for row in secondary))
    return text


def _equivalence(test: Mapping[str, Any]) -> str:
    """Returns whether two one-sided tests show a secondary effect to be too small to matter."""
    if test["expected"] != "zero" or test["effect"] is None:
        return ""
    effect = Effect(test["effect"], error=test.get("error"), freedom=test.get("freedom"))
    p = effect.equivalence_p(test["smallest"])
    shown = "shown" if p is not None and p <= 0.05 else "not shown"
    return f"{shown} within ±{test['smallest']:g}" + ("" if p is None else f", p = {p_text(p)}")


def _primary(claim: Mapping[str, Any]) -> Mapping[str, Any]:
    # Files of earlier versions have no primary tests; there the first one stands for the claim.
    return next((t for t in claim["tests"] if t.get("primary")), claim["tests"][0])


def _effect(test: Mapping[str, Any], low: str, high: str) -> str:
    if test["effect"] is None:
        return "unknown"
    if test.get(low) is None:
        return figure(test["effect"])
    return f"{figure(test['effect'])} [{figure(test[low])}, {figure(test[high])}]"


def _detectable(test: Mapping[str, Any]) -> str:
    planned = test.get("planned")
    return "" if planned is None else figure(planned["detectable"])


def _title(one: Mapping[str, Any]) -> str:
    return f"{one['study']}, {one['size']}"


def _anchor(one: Mapping[str, Any]) -> str:
    return f"{one['study']}-{one['size']}"


def _not_run(found: Iterable[Mapping[str, Any]], studies: pathlib.Path) -> str:
    ran = {(one["study"], one["size"]) for one in found}
    rows = []
    for file in sorted(studies.glob("*.py")):
        for size in SIZES:
            try:
                study = load_study(file, size)
            except UnknownSize:
                continue
            if (study.name, size) in ran:
                continue
            command = (
                f"`python -m kernsym_jax.study --study={file} --size={size} "
                f"--workdir=runs/{study.name}_{size}`"
            )
            count = len(study.variants) * len(study.units)
            rows.append((_numbers(study), f"{study.name}, {size}", study.data, count, command))
    if not rows:
        return ""
    heading = "\n## Not run here\n\n"
    return heading + _table(("claims", "study", "data", "runs or files", "command"), rows)


def _numbers(study: Study) -> str:
    return ", ".join(dict.fromkeys(claim.of for claim in study.claims.values()))


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [tuple(columns)]
    lines.append(("---",) * len(lines[0]))
    lines += [tuple(str(cell).replace("|", r"\|").replace("\n", " ") for cell in r) for r in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rank(size: str) -> int:
    return SIZES.index(size) if size in SIZES else len(SIZES)
