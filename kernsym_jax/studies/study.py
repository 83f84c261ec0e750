"""What a study is: runs, measures, tests and the rule that decides, fixed before the runs."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from kernsym_jax import training
from kernsym_jax.evaluation import Shifts
from kernsym_jax.studies.network import Network
from kernsym_jax.training import config as configuration

if TYPE_CHECKING:
    from kernsym_jax.studies.results import FinishedRun

DIRECTIONS = ("above", "below", "zero")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim to be decided.

    Attributes:
      text: in one sentence.
      of: the number of the paper's claim that it is a part of, such as ``E4``.
    """

    text: str
    of: str


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a finished run.

    Attributes:
      meaning: in a few words.
      of: takes the run and gives the number, ``None`` where it has none.
    """

    meaning: str
    of: "Callable[[FinishedRun], float | None]"


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of measures of variants, taken seed by seed and tested against 0.

    Attributes:
      claim: key of the claim that it helps to decide.
      meaning: in a few words.
      terms: (weight, variant, measure) of each summand.
      expected: ``above`` or ``below`` 0, or ``zero`` for an effect that should be too small to
        matter.
      smallest: the smallest effect that would matter, above 0.
    """

    claim: str
    meaning: str
    terms: tuple[tuple[float, str, str], ...]
    expected: str
    smallest: float


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation of two measures over the runs, tested against 0.

    Attributes:
      claim: key of the claim that it helps to decide.
      meaning: in a few words.
      x: a measure.
      y: another.
      expected: ``above`` or ``below`` 0, or ``zero``.
      smallest: the smallest correlation that would matter, above 0.
      method: ``pearson`` or ``spearman``; the page shows both.
      given: measures that are held fixed (a partial correlation).
      within: variants are held fixed too, so that only seeds are compared.
      variants: whose runs count; empty for all.
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
      shifts: that are compared; the elements of D4 are too.
      limit: at most so many test images, evenly spread; ``None`` for all.
    """

    shifts: Shifts
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study in one size: of runs that it trains, or of networks that it reads.

    Attributes:
      name: in file names.
      size: ``smoke``, ``cpu`` or ``full``.
      title: what is asked.
      data: what the runs are trained on, as tables say it.
      base: the config that all runs share; empty for networks.
      variants: name -> what differs, ``{"data.image_size": 17}``.
      seeds: of the runs of each variant; tests are paired over them.
      networks: name -> a trained network, in place of seeds; then there is one variant, and tests
        are over families.
      files: the folder of their files.
      measures: name -> number of a run.
      claims: key -> claim.
      contrasts: name -> test.
      correlations: name -> test.
      consistency: how every finished run is evaluated; ``None`` for not at all.
      confounds: what else could explain the outcome -> the measures that tell.
      level: of the family-wise error. At 0.05 one study of noise in twenty would find something.
      coverage: of the intervals.
      layer_figures: figures of `report.COLUMNS` that are drawn layer by layer.
      roles: of the layers whose figures are tabled one by one.
      trajectories: figures of `symmetry.FIELDS` that are drawn over the steps.
      cost: seconds a run takes, and where that was recorded; ``None`` if unknown.
      runs: the folder of the run directories, such as that of another study with the same runs;
        ``None`` for ``runs`` in the study's own.

    Raises:
      ValueError: for a test that names what the study does not have, and for bad thresholds.
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
    correlations: Mapping[str, Correlation] = dataclasses.field(default_factory=dict)
    consistency: Consistency | None = None
    confounds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    level: float = 0.02
    coverage: float = 0.95
    layer_figures: tuple[str, ...] = ("score", "E")
    roles: tuple[str, ...] = ("strided",)
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
            raise ValueError(f"study {self.name}: seeds must be some different ones: {self.seeds}")
        if shared := self.contrasts.keys() & self.correlations.keys():
            raise ValueError(f"study {self.name}: two tests have the name {min(shared)}")
        for name in ("level", "coverage"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"study {self.name}: {name} lies between 0 and 1, got {getattr(self, name)}"
                )
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
        tested = [test.claim for test in self.tests.values()]
        for claim in self.claims:
            self._require_known(claim, "claim without a test", [claim], tested)
        shown = list(itertools.chain.from_iterable(self.confounds.values()))
        self._require_known("confounds", "measure", shown, self.measures)

    @property
    def tests(self) -> dict[str, Contrast | Correlation]:
        """All tests by name, contrasts first: the family that Holm's correction is over."""
        return {**self.contrasts, **self.correlations}

    @property
    def units(self) -> tuple[int | str, ...]:
        """What tests are paired over: seeds, or names of networks."""
        return tuple(self.networks) or self.seeds

    @property
    def unit(self) -> str:
        """What one of them is called: ``seed`` or ``network``."""
        return "network" if self.networks else "seed"

    def independent(self, found: Mapping[int | str, float]) -> dict[int | str, float]:
        """Numbers of networks as means over each family; those of seeds as they are."""
        if not self.networks:
            return dict(found)
        families: dict[int | str, list[float]] = {}
        for name, value in found.items():
            families.setdefault(self.networks[str(name)].family, []).append(value)
        return {family: sum(values) / len(values) for family, values in families.items()}

    def config(self, variant: str, seed: int) -> ml_collections.ConfigDict:
        """The resolved config of one run.

        Raises:
          ValueError: if a key or value is none that a run knows.
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
        """All that is written down before the runs, of JSON types."""
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

    def _require_known(
        self, where: str, kind: str, names: Sequence[str], known: Mapping[str, Any] | Sequence[str]
    ) -> None:
        for name in names:
            if name not in known:
                raise ValueError(
                    f"study {self.name}, {where}: unknown {kind} {name!r}; known are "
                    f"{', '.join(known)}"
                )
