"""Tells copies of a network's weights from its layers: moving averages and trees of moments.

Names alone decide little: a network may have a layer called ``shadow_encoder`` or ``opt_flow``. A
copy repeats the names and shapes of other arrays; its name, its place in the file and its values
then tell its purpose.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from kernsym_jax.formats.arrays import Path, StoredArray

OPTIMIZER, AVERAGE = "optimizer state", "moving average"
REPEATED = "a second copy of the weights"
"""The kinds of arrays that do not belong to the network."""

BOXES = ("value", "raw_value")
"""Names at the end of a path that say nothing about the array."""

CANONICAL = frozenset((
    "params", "target", "state_dict", "model_state_dict", "model_state", "model", "net", "network",
    "weights", "module", "variables",
))  # fmt: skip
"""The names under which a checkpoint keeps its network."""

# Beside these, a checkpoint keeps nothing else of the network.
_ONLY = frozenset(("params", "target", "state_dict", "model_state_dict", "model_state"))
_SLOT = re.compile(
    r"[._/]((nesterov_)?momentum(_buffer)?|velocity|moment\d?(_\d)?|(max_)?exp_(avg|inf)(_sq)?|"
    r"adam(w|ax|_\d)*|rmsprop(_\d)?|adagrad|adadelta|ftrl|accum(ulator)?|square_avg|grad_avg|"
    r"grad_ema|grad_sq_ema|slot\d?)(_\d+)?\Z",
    re.IGNORECASE,
)
_AVERAGED = re.compile(r"[._/](ema|exponentialmovingaverage|swa)\Z", re.IGNORECASE)
_AVERAGE_WORDS = frozenset((
    "ema", "averaged", "average", "avg", "shadow", "swa", "polyak", "smoothed", "smooth",
))  # fmt: skip
# Words for an average that may as well mean something else.
_WEAK_WORDS = frozenset(("teacher", "target", "momentum", "slow", "mean", "k"))
_ORIGINAL_WORDS = frozenset(("online", "student", "raw", "q"))
_NETWORK_WORDS = frozenset((
    "model", "models", "net", "network", "module", "state", "dict", "params", "parameters",
    "weights", "variables", "generator", "unet", "g",
))  # fmt: skip
_STATE_WORDS = frozenset((
    "opt", "optim", "optimizer", "optimizers", "mu", "nu", "m", "v", "trace", "momentum",
    "velocity", "slots", "adam", "sgd", "tx", "moments", "moment", "grad", "grads", "gradients",
))  # fmt: skip
# The search for copies ends after this much work.
_MOST_CHARACTERS = 50_000_000
_MOST_COMPARISONS = 100
_LONGEST_NAME = 1000
# Of the names of moments and averages, with their numbers.
_LONGEST_END = 50
_SAMPLED = 3
_ALIKE = 0.5

Prefix = tuple[str, ...]
"""The first tokens of a name."""


class Named:
    """An array with the tokens of its name.

    Attributes:
      path: its path.
      array: the array.
      tokens: the parts of its name, which containers, slashes and dots separate.
      containers: how many of the first tokens are names of containers.
      slot: whether the name ends in that of an optimizer's moment.
      rests: for each token the name from there on, without separators and such an ending.
    """

    def __init__(self, path: Path, array: StoredArray):
        self.path, self.array = path, array
        inner = path[:-1] if len(path) > 1 and path[-1] in BOXES else path
        self.tokens = tuple(part for key in inner for part in re.split(r"[./]", key))
        self.containers = sum(len(re.split(r"[./]", key)) for key in inner[:-1])
        stem = weight_of_slot("/".join(self.tokens))
        self.slot = stem is not None
        compact = [token.replace("_", "") for token in (stem.split("/") if stem else self.tokens)]
        self.rests = ["".join(compact[index:]) for index in range(len(compact))]

    def rest(self, start: int) -> tuple[str, tuple[int, ...]]:
        """Returns the name behind its first tokens, and the shape."""
        return self.rests[start], self.array.shape


def weight_of_slot(name: str) -> str | None:
    """Returns ``conv/kernel`` of ``conv/kernel/momentum``; None for a name of another kind."""
    return _without_end(name, _SLOT)


def is_slot_word(token: str) -> bool:
    """Returns whether a part of a name is that of an optimizer's moment, such as ``exp_avg``."""
    return len(token) < _LONGEST_NAME and _SLOT.match(f".{token}") is not None


def weight_of_average(name: str) -> str | None:
    """Returns ``conv/kernel`` of ``conv/kernel/ema``; None for a name of another kind."""
    return _without_end(name, _AVERAGED)


def _without_end(name: str, end: re.Pattern[str]) -> str | None:
    if len(name) >= _LONGEST_NAME:
        return None
    # A search from the start would try every underscore of the name.
    match = end.search(name, max(len(name) - _LONGEST_END, 0))
    return name[: match.start()] if match and match.start() else None


def is_average_name(name: str) -> bool:
    """Returns whether a name has a word for moving averages."""
    return bool(_AVERAGE_WORDS & set(_words(name)))


def is_original_name(name: str) -> bool:
    """Returns whether a name marks the weights that an average is taken of."""
    return bool(_ORIGINAL_WORDS & set(_words(name)))


@dataclasses.dataclass
class Copies:
    """The arrays that are second copies of others.

    Attributes:
      kinds: path of an array -> the kind of copy that it belongs to.
      averages: the prefix of each moving average, and that of the arrays it is an average of.
      renamed: path of a single array -> path of its average.
    """

    kinds: dict[Path, str] = dataclasses.field(default_factory=dict)
    averages: list[tuple[Prefix, Prefix]] = dataclasses.field(default_factory=list)
    renamed: dict[Path, Path] = dataclasses.field(default_factory=dict)


_Group = dict[tuple[str, tuple[int, ...]], Named]


def find_copies(arrays: Sequence[Named]) -> Copies:
    """Finds the groups of arrays that repeat the names and shapes of other arrays.

    Args:
      arrays: the arrays that tell networks apart: their kernels.
    """
    if sum(len(named.tokens) * len(named.rests[0]) for named in arrays) > _MOST_CHARACTERS:
        return Copies()
    return _Search(arrays).copies()


class _Search:
    """The arrays by the starts of their names, and a budget of comparisons of values."""

    def __init__(self, arrays: Sequence[Named]):
        self.arrays = arrays
        self.found = Copies()
        self.comparisons = 0
        self.groups: dict[Prefix, _Group] = {}
        self.places: dict[tuple[str, tuple[int, ...]], dict[Prefix, None]] = {}
        for named in arrays:
            for start in range(len(named.rests)):
                prefix = named.tokens[:start]
                self.groups.setdefault(prefix, {})[named.rest(start)] = named
                self.places.setdefault(named.rest(start), {})[prefix] = None
        canonical = {_canonical(named) for named in arrays} - {None}
        # An average may lie in a container of its own that is called a state dict.
        of_averages = {
            prefix for prefix in canonical if prefix and _may_average(prefix[:-1], weak=False)
        }
        canonical = canonical - of_averages or canonical
        certain = {prefix for prefix in canonical if prefix and prefix[-1] in _ONLY}
        self.canonical: set[Prefix] = {prefix for prefix in certain or canonical if prefix}

    def copies(self) -> Copies:
        for prefix in sorted((prefix for prefix in self.groups if prefix), key=len):
            known = _may_average(prefix) or _has_state_word(prefix) or self.is_outside(prefix)
            if not known:
                continue
            group = self.groups[prefix]
            if any(named.path in self.found.kinds for named in group.values()):
                continue
            for original in self.originals(prefix):
                kind = self.kind(prefix, original)
                if kind is not None:
                    self.found.kinds |= {named.path: kind for named in group.values()}
                    if kind in (AVERAGE, REPEATED):
                        self.found.averages.append((prefix, original))
                    break
        self.find_lists()
        self.find_renamed()
        return self.found

    def is_outside(self, prefix: Prefix) -> bool:
        """Returns whether a prefix neither leads to the checkpoint's network nor lies in it."""
        ends = ((each, min(len(each), len(prefix))) for each in self.canonical)
        return bool(self.canonical) and not any(each[:n] == prefix[:n] for each, n in ends)

    def originals(self, prefix: Prefix) -> list[Prefix]:
        """Returns the prefixes whose arrays a group may repeat."""
        group = self.groups[prefix]
        found = []
        for other in self.places[max(group, key=lambda rest: len(rest[0]))]:
            arrays = self.groups[other]
            if other[: len(prefix)] == prefix or not group.keys() <= arrays.keys():
                continue
            others = [arrays[rest] for rest in group]
            known = any(each.path in self.found.kinds for each in others)
            if not known and not any(
                each is group[each_rest] for each, each_rest in zip(others, group, strict=True)
            ):
                found.append(other)
        return found

    def kind(self, prefix: Prefix, original: Prefix) -> str | None:
        """Returns the kind of copy that a group is; None for layers of the network itself."""
        pairs = [
            (named, self.groups[original][rest]) for rest, named in self.groups[prefix].items()
        ]
        if all(copy.slot for copy, _ in pairs):
            return OPTIMIZER
        average = REPEATED if is_original_name(prefix[-1]) else AVERAGE
        inside = next((c for c in self.canonical if original[: len(c)] == c), None)
        if inside is not None and self.is_outside(prefix):
            return self.kind_beside(prefix, inside, pairs, average)
        if self.is_beside_all(prefix, original, pairs):
            return OPTIMIZER
        of_average = original and _may_average(original, weak=False)
        if not _may_average(prefix) or (of_average and not is_original_name(original[-1])):
            return None
        by_name = (
            inside is None
            and all(copy.containers >= len(prefix) for copy, _ in pairs)
            and _names_a_network(prefix, original, pairs)
        )
        return average if by_name or self.alike(pairs) else None

    def is_beside_all(
        self, prefix: Prefix, original: Prefix, pairs: Sequence[tuple[Named, Named]]
    ) -> bool:
        """Returns whether a group named as a state repeats all arrays outside its container.

        Examples are ``training/Adam/m/conv`` beside ``conv``, and the second of the pair
        (parameters, state of the optimizer).
        """
        if not _has_state_word(prefix) or _may_average(prefix, weak=False):
            return False
        in_pair = all(part and part[0].isdigit() for part in (prefix, original)) and all(
            copy.containers >= len(prefix) for copy, _ in pairs
        )
        outside = [named for named in self.arrays if named.tokens[:1] != prefix[:1]]
        if not outside or not (in_pair or not original):
            return False
        start = len(original)
        return all(
            named.tokens[:start] == original and named.rest(start) in self.groups[prefix]
            for named in outside
        )

    def kind_beside(
        self, prefix: Prefix, network: Prefix, pairs: Sequence[tuple[Named, Named]], average: str
    ) -> str | None:
        """Does the same for a group beside the container that a checkpoint calls its network."""
        words = {word for name in prefix for word in _words(name)}
        if re.fullmatch(rf"{re.escape(network[-1])}[_-]?\w{{1,2}}", prefix[-1]):
            return None  # ``model2`` is another network
        if words & _STATE_WORDS and not words & _AVERAGE_WORDS:
            return OPTIMIZER
        if words & _AVERAGE_WORDS or self.alike(pairs):
            return average
        return OPTIMIZER if network[-1] in _ONLY else None

    def find_lists(self) -> None:
        """Finds copies that are lists without names, in the order of the network's arrays."""
        for prefix, group in self.groups.items():
            numbered = self.is_outside(prefix) and all(rest.isdigit() for rest, _ in group)
            if not numbered or any(named.path in self.found.kinds for named in group.values()):
                continue
            copies = list(group.values())
            shapes = [copy.array.shape for copy in copies]
            for network in self.canonical:
                originals = list(self.groups[network].values())
                if [original.array.shape for original in originals] != shapes:
                    continue
                pairs = list(zip(copies, originals, strict=True))
                kind = self.kind_beside(prefix, network, pairs, AVERAGE)
                if kind is not None:
                    self.found.kinds |= {copy.path: kind for copy in copies}
                if kind == AVERAGE:
                    for copy, original in pairs:
                        self.found.renamed.setdefault(original.path, copy.path)

    def find_renamed(self) -> None:
        """Finds averages that stand beside the weights as ``ema_`` and the weight's whole name."""
        names = {
            named: (named.tokens[: named.containers], *named.rest(named.containers))
            for named in self.arrays
            if named.containers < len(named.rests)
        }
        whole = {name: named for named, name in names.items()}
        for named, (container, name, shape) in names.items():
            for word in ("ema", "averaged", "avg", "shadow"):
                other = whole.get((container, name.removeprefix(word), shape))
                if named.path in self.found.kinds or other is None or other is named:
                    continue
                if self.alike([(named, other)]):
                    self.found.kinds[named.path] = AVERAGE
                    self.found.renamed[other.path] = named.path

    def alike(self, pairs: Sequence[tuple[Named, Named]]) -> bool:
        """Returns whether the values of two copies are correlated, as those of an average are."""
        usual = sorted(pairs, key=lambda pair: abs(math.prod(pair[0].array.shape) - 10_000))
        sampled = [pair for pair in usual if 0 not in pair[0].array.shape][:_SAMPLED]
        self.comparisons += 1
        if not sampled or self.comparisons > _MOST_COMPARISONS:
            return False
        one = np.concatenate([_centred(copy.array.read()) for copy, _ in sampled])
        other = np.concatenate([_centred(original.array.read()) for _, original in sampled])
        length = np.linalg.norm(one) * np.linalg.norm(other)
        return bool(length > 0 and one @ other > _ALIKE * length)


def _canonical(named: Named) -> Prefix | None:
    """Returns the tokens of a name up to the one that means a network; None without one."""
    for index, token in enumerate(named.tokens[: named.containers]):
        if token in CANONICAL:
            return named.tokens[: index + 1]
    return None


def _may_average(prefix: Prefix, *, weak: bool = True) -> bool:
    """Returns whether one of the last two tokens has a word for averages."""
    words = {word for token in prefix[-2:] for word in _words(token)}
    return bool(words & (_AVERAGE_WORDS | _WEAK_WORDS if weak else _AVERAGE_WORDS))


def _has_state_word(prefix: Prefix) -> bool:
    return any(_STATE_WORDS & set(_words(token)) for token in prefix)


def _names_a_network(
    prefix: Prefix, original: Prefix, pairs: Sequence[tuple[Named, Named]]
) -> bool:
    """Returns whether a container's name, apart from a word for averages, is that of a network."""
    words = _words(prefix[-1])
    rest = [word for word in words if word not in _AVERAGE_WORDS]
    if set(rest) <= _NETWORK_WORDS and len(rest) < len(words):
        return True
    holds_names = all(copy.containers == len(prefix) for copy, _ in pairs)
    return holds_names and bool(original) and rest == _words(original[-1])


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name[:_LONGEST_NAME])
    return [word for word in re.split(r"[^a-z]+", spaced.lower()) if word]


def _centred(values: np.ndarray) -> np.ndarray:
    """Returns the values as a vector of mean 0, with zeros for values that are not finite."""
    values = np.nan_to_num(values.astype(np.float64).reshape(-1), posinf=0, neginf=0)
    return values - values.mean() if values.size > 1 else values
