"""A study: runs, measures, claims and tests with their rules, all fixed before the runs."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from kernsym_jax import report, run_directory, training
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies import statistics
from kernsym_jax.studies.measures import Measure
from kernsym_jax.studies.statistics import Pilot, Power
from kernsym_jax.training import config as configuration

DIRECTIONS = ("above", "below", "zero")
_CHECKSUM_DIGITS = 8
_FIRST_PILOT_SEED = 100


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that the study decides.

    Attributes:
      text: the claim in one sentence.
      of: number of the paper's claim that this is a part of, such as ``E4``.
      primary: name of the test that decides; may be empty if the claim has one test only. Its other
        tests are secondary: they describe, uncorrected, and decide nothing.

    >>> from kernsym_jax import studies
    >>> studies.Claim("Uneven padding skews kernels.", of="E4", primary="odd_part").of
    'E4'
    """

    text: str
    of: str
    primary: str = ""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of measures of variants, computed per seed and tested against 0.

    Attributes:
      claim: key of the claim that it is about.
      meaning: what it is, in a few words.
      terms: (weight, variant, measure) of each summand.
      expected: ``above`` or ``below`` 0, or ``zero`` if the effect should be too small to matter.
      smallest: the smallest effect that matters, above 0.

    >>> from kernsym_jax import studies
    >>> terms = ((1.0, "even", "E"), (-1.0, "odd", "E"))
    >>> test = studies.Contrast("E4", "odd part, even − odd size", terms, "above", smallest=0.02)
    >>> [variant for weight, variant, measure in test.terms]
    ['even', 'odd']
    """

    claim: str
    meaning: str
    terms: tuple[tuple[float, str, str], ...]
    expected: str
    smallest: float


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation of two measures over the variants, tested against 0.

    Seeds of one variant are no independent cases: a variant counts once, by the mean of its seeds.

    Attributes:
      claim: key of the claim that it is about.
      meaning: what it is, in a few words.
      x: name of a measure.
      y: name of another measure.
      expected: ``above`` or ``below`` 0, or ``zero``.
      smallest: the smallest correlation that matters, above 0.
      method: ``pearson`` or ``spearman``; the page shows both.
      given: measures that are held fixed (a partial correlation).
      within: compares seeds within their variants instead: every run counts, variants are held
        fixed.
      variants: the variants that count; empty for all.

    >>> from kernsym_jax import studies
    >>> studies.Correlation("E6", "score and accuracy", "score", "accuracy", "above", 0.3).method
    'spearman'
    """

    claim: str
    meaning: str
    x: str
    y: str
    expected: str
    smallest: float
    method: str = "spearman"
    given: tuple[str, ...] = ()
    within: bool = False
    variants: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Consistency:
    """How every finished run of a study is evaluated.

    Attributes:
      shifts: the shifts that are compared; the elements of D4 are compared too.
      limit: number of test images, evenly spread; None for all.

    >>> from kernsym_jax import evaluation, studies
    >>> studies.Consistency(evaluation.Shifts("circular", -2, 2), limit=1000).shifts.differences
    range(-2, 3)
    """

    shifts: Shifts
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network in a file, or in a run directory.

    Attributes:
      file: path below the study's folder of files, or of a run below the folder of runs.
      family: networks of one family are no independent cases and count once.
      origin: where to get the file, in one line.
      sha256: hexadecimal checksum of the file, at least its first eight digits; empty if unknown.
      model: name of the registry model that the weights belong to, which tells their strides.
      input_size: (height, width) of the images, for a graph that leaves their size open.
      is_run: whether it is a run directory.

    Raises:
      ValueError: if the checksum is malformed.

    >>> from kernsym_jax import studies
    >>> studies.Network("net.npz", family="mine", origin="my disk", sha256="c0ffee")
    Traceback (most recent call last):
        ...
    ValueError: net.npz: sha256 is 8 to 64 hexadecimal digits, got 'c0ffee'
    """

    file: str
    family: str
    origin: str
    sha256: str = ""
    model: str | None = None
    input_size: tuple[int, int] | None = None
    is_run: bool = False

    def __post_init__(self) -> None:
        if self.sha256 and not re.fullmatch(rf"[0-9a-f]{{{_CHECKSUM_DIGITS},64}}", self.sha256):
            raise ValueError(
                f"{self.file}: sha256 is 8 to 64 hexadecimal digits, got {self.sha256!r}"
            )

    @property
    def options(self) -> report.Options:
        """How the file is read."""
        return report.Options(model=self.model, input_size=self.input_size)

    def is_at(self, path: pathlib.Path) -> bool:
        """Returns whether a path holds the network.

        Args:
          path: where it should be.

        Raises:
          ValueError: if it is another file.
        """
        if self.is_run:
            return run_directory.has_ended(path)
        if not path.is_file():
            return False
        found = _sha256(path, path.stat().st_mtime_ns)
        if not found.startswith(self.sha256):
            raise ValueError(
                f"{path} is another file: its SHA-256 is {found}, wanted {self.sha256}; "
                f"get it from {self.origin}"
            )
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study in one size, of runs that it trains or of networks that it reads.

    Attributes:
      name: in file names.
      size: ``smoke``, ``cpu``, ``gpu`` or ``full``.
      title: the question.
      data: the training data, in words.
      base: the config that all runs share; empty for networks.
      variants: name -> keys that differ from the base, ``{"data.image_size": 17}``.
      seeds: seeds of each variant; tests are paired over them.
      networks: name -> a trained network, in place of seeds. There is one variant then, and tests
        are over families.
      files: folder of the networks' files.
      measures: name -> number of a run.
      claims: key -> claim.
      contrasts: name -> test.
      pilots: contrast -> its mean and spread in earlier runs, from which the power is computed.
      correlations: name -> test.
      consistency: how every finished run is evaluated; None for not at all.
      confounds: another explanation of the outcome -> the measures that test it.
      level: chance that the study supports or contradicts any claim if nothing differs
        (family-wise error over the primary tests).
      coverage: coverage of the intervals that describe.
      layer_figures: figures of `report.COLUMNS` that are drawn layer by layer.
      roles: roles of the layers whose figures are tabled one by one.
      layer_columns: columns of ``layers.csv``; empty for all.
      trajectories: figures of `symmetry.FIELDS` that are drawn over the steps.
      cost: seconds per run, and where that was measured; None if unknown.
      runs: folder of the run directories, for example of another study with the same runs; None for
        ``runs`` in the study's own folder.

    Raises:
      ValueError: if a test names something that the study does not have, a claim has no primary
        test, or a threshold is out of range.

    >>> from kernsym_jax import studies
    >>> from kernsym_jax.studies import measures
    >>> terms = ((1.0, "reflect", "accuracy"), (-1.0, "zero", "accuracy"))
    >>> better = studies.Contrast("better", "accuracy, reflect − zero", terms, "above", 0.01)
    >>> study = studies.Study(
    ...     name="padding", size="cpu", title="Is reflection better?", data="digits", seeds=(0, 1),
    ...     variants={"zero": {}, "reflect": {"model.padding": "reflect"}},
    ...     measures={"accuracy": measures.accuracy()},
    ...     claims={"better": studies.Claim("It is.", of="mine")}, contrasts={"better": better},
    ... )
    >>> study.config("reflect", seed=1).model.padding
    'reflect'
    """

    name: str
    size: str
    title: str
    data: str
    base: ml_collections.ConfigDict = dataclasses.field(default_factory=ml_collections.ConfigDict)
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = ()
    networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    files: pathlib.Path = pathlib.Path("data/weights")
    measures: Mapping[str, Measure]
    claims: Mapping[str, Claim]
    contrasts: Mapping[str, Contrast]
    pilots: Mapping[str, Pilot] = dataclasses.field(default_factory=dict)
    correlations: Mapping[str, Correlation] = dataclasses.field(default_factory=dict)
    consistency: Consistency | None = None
    confounds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    level: float = 0.05
    coverage: float = 0.95
    layer_figures: tuple[str, ...] = ("score", "E")
    roles: tuple[str, ...] = ("strided",)
    layer_columns: tuple[str, ...] = ()
    trajectories: tuple[str, ...] = ()
    cost: tuple[float, str] | None = None
    runs: pathlib.Path | None = None

    def __post_init__(self) -> None:
        for name in (self.name, self.size, *self.variants, *self.networks):
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"study {self.name}: names are letters, digits, - and _, got {name!r}"
                )
        if self.networks and (self.seeds or len(self.variants) != 1):
            raise ValueError(f"study {self.name}: networks have one variant and no seeds")
        if not self.units or len(set(self.units)) < len(self.units):
            raise ValueError(f"study {self.name}: seeds must be distinct, got {self.seeds}")
        for name in ("level", "coverage"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"study {self.name}: {name} lies between 0 and 1, got {getattr(self, name)}"
                )
        self._check_tests()
        self._check_claims()

    @property
    def tests(self) -> dict[str, Contrast | Correlation]:
        """All tests by name, contrasts first."""
        return {**self.contrasts, **self.correlations}

    @property
    def primaries(self) -> dict[str, Contrast | Correlation]:
        """The tests that decide, one per claim by name: the family of Holm's correction."""
        names = {self._primary(key) for key in self.claims}
        return {name: test for name, test in self.tests.items() if name in names}

    @property
    def units(self) -> tuple[int | str, ...]:
        """The seeds or names of networks over which tests are paired."""
        return tuple(self.networks) or self.seeds

    @property
    def unit(self) -> str:
        """``seed`` or ``network``."""
        return "network" if self.networks else "seed"

    @property
    def fewest(self) -> int:
        """Number of seeds or families below which nothing is decided."""
        return 3 if self.networks else 2

    def independent(self, found: Mapping[int | str, float]) -> dict[int | str, float]:
        """Averages numbers of networks over each family; returns those of seeds as they are."""
        if not self.networks:
            return dict(found)
        families: dict[int | str, list[float]] = {}
        for name, value in found.items():
            families.setdefault(self.networks[str(name)].family, []).append(value)
        return {family: sum(values) / len(values) for family, values in families.items()}

    def power(self) -> dict[str, Power]:
        """Computes, before the runs, what each primary test can find.

        Every test is taken at its strictest level, ``level`` over the number of primary tests.

        Returns:
          Test -> power; primary contrasts without a pilot are missing.
        """
        level = self.level / max(len(self.primaries), 1)
        cases = len(self.independent(dict.fromkeys(self.units, 0.0)))
        found = {}
        for name, test in self.primaries.items():
            if isinstance(test, Correlation):
                n = cases if self.networks else len(test.variants or self.variants)
                freedom = n - 2 - len(test.given)
                if test.within:
                    freedom = len(self.seeds) * n - 1 - n - len(test.given)
                found[name] = statistics.correlation_power(
                    freedom, level, test.expected, test.smallest, rank=test.method == "spearman"
                )
            elif name in self.pilots:
                found[name] = statistics.contrast_power(
                    self.pilots[name], cases, level, test.expected, test.smallest
                )
        return found

    def as_pilot(self, count: int) -> "Study":
        """Returns the same study with seeds that do not count in it, 100, 101 and so on.

        Args:
          count: number of seeds; two at least give a standard deviation.

        Raises:
          ValueError: if the study reads networks, has one of these seeds, or ``count`` is below 2.
        """
        if self.networks:
            raise ValueError(f"study {self.name} reads trained networks: it has no pilot")
        if count < 2:
            raise ValueError(f"a pilot needs two seeds or more; got {count}")
        seeds = tuple(range(_FIRST_PILOT_SEED, _FIRST_PILOT_SEED + count))
        if set(seeds) & set(self.seeds):
            raise ValueError(f"study {self.name} counts seeds from {_FIRST_PILOT_SEED} on itself")
        return dataclasses.replace(self, seeds=seeds)

    def config(self, variant: str, seed: int) -> ml_collections.ConfigDict:
        """Returns the resolved config of one run.

        Raises:
          ValueError: if a run has no such key, or not with this value.
        """
        config = self.base.to_dict()
        for key, value in self.variants[variant].items():
            *path, name = key.split(".")
            node = config
            for part in path:
                node = node.setdefault(part, {})
            node[name] = value
        return training.resolve({**config, "seed": seed})

    def plan(self) -> dict[str, Any]:
        """Returns everything that is fixed before the runs, as JSON types."""
        plan = {
            "study": self.name,
            "size": self.size,
            "title": self.title,
            "data": self.data,
            "base": configuration.to_json(self.base),
            "variants": {name: dict(changes) for name, changes in self.variants.items()},
            "seeds": self.seeds,
            "networks": {name: dataclasses.asdict(one) for name, one in self.networks.items()},
            "measures": {name: measure.meaning for name, measure in self.measures.items()},
            "claims": {key: dataclasses.asdict(claim) for key, claim in self.claims.items()},
            "tests": {name: dataclasses.asdict(test) for name, test in self.tests.items()},
            "consistency": dataclasses.asdict(self.consistency) if self.consistency else None,
            "level": self.level,
            "coverage": self.coverage,
        }
        return configuration.to_json(plan)

    def _primary(self, key: str) -> str:
        named = self.claims[key].primary
        own = [name for name, test in self.tests.items() if test.claim == key]
        return named or (own[0] if len(own) == 1 else "")

    def _check_tests(self) -> None:
        shared = sorted(self.contrasts.keys() & self.correlations.keys())
        if shared:
            raise ValueError(f"study {self.name}: two tests have the name {shared[0]}")
        for name, contrast in self.contrasts.items():
            self._require_known(name, "variant", [v for _, v, _ in contrast.terms], self.variants)
            self._require_known(name, "measure", [m for *_, m in contrast.terms], self.measures)
        for name, correlation in self.correlations.items():
            named = (correlation.x, correlation.y, *correlation.given)
            self._require_known(name, "variant", correlation.variants, self.variants)
            self._require_known(name, "measure", named, self.measures)
            self._require_known(name, "method", [correlation.method], ("pearson", "spearman"))
        for name, test in self.tests.items():
            self._require_known(name, "claim", [test.claim], self.claims)
            self._require_known(name, "direction", [test.expected], DIRECTIONS)
            if not test.smallest > 0:
                raise ValueError(
                    f"study {self.name}, {name}: the smallest effect that matters is above 0, got "
                    f"{test.smallest}"
                )

    def _check_claims(self) -> None:
        tested = [test.claim for test in self.tests.values()]
        for key in self.claims:
            self._require_known(key, "claim without a test", [key], tested)
            own = [name for name, test in self.tests.items() if test.claim == key]
            if self._primary(key) not in own:
                raise ValueError(
                    f"study {self.name}, {key}: primary names the test that decides, one of "
                    f"{', '.join(own)}; got {self.claims[key].primary!r}"
                )
        shown = list(itertools.chain.from_iterable(self.confounds.values()))
        self._require_known("confounds", "measure", shown, self.measures)

    def _require_known(
        self, where: str, kind: str, names: Sequence[str], known: Mapping[str, Any] | Sequence[str]
    ) -> None:
        for name in names:
            if name not in known:
                raise ValueError(
                    f"study {self.name}, {where}: unknown {kind} {name!r}; known are "
                    f"{', '.join(known)}"
                )


@functools.lru_cache(maxsize=1024)
def _sha256(path: pathlib.Path, changed: int) -> str:
    """Returns the checksum of a file; the time of its last change keys the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
