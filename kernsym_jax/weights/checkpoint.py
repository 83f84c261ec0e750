"""Finds the network in a checkpoint that also holds an optimizer's state or a moving average."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from kernsym_jax.formats.arrays import Path, StoredArray
from kernsym_jax.formats.copies import (
    AVERAGE,
    BOXES,
    CANONICAL,
    OPTIMIZER,
    Named,
    Prefix,
    find_copies,
    is_average_name,
    is_original_name,
    is_slot_word,
    weight_of_average,
    weight_of_slot,
)

EMA, RAW = "ema", "raw"
CHOICES = (EMA, RAW)
"""Which of two copies of the same layers is read: the moving average, or the weights."""

_STATE_NAMES = re.compile(
    r"(opt|optim|optimizer)s?([_-]?states?([_-]?dicts?)?|[_-]?weights|[_-]?vars)?|slots|"
    r".*_optim(izer)?s?([_-]?states?([_-]?dicts?)?)?",
    re.IGNORECASE,
)
_WRAPPERS = CANONICAL | {
    "state", "default", "item", "items", "train_state", "params_ema", "ema", "ema_params",
    "ema_state_dict", "state_dict_ema", "model_ema", "blobs", "model_weights", "checkpoint",
    "optimizer",
}  # fmt: skip
_NETWORK_KEYS = ("params", "state_dict", "model_state_dict")
# In files with more tokens of names than this, only kernels are sorted out.
_MOST_TOKENS = 5_000_000
# Every beginning of a name is looked up, which takes the square of its length.
_MOST_PARTS = 200


@dataclasses.dataclass(frozen=True)
class ModelArrays:
    """The arrays of a checkpoint that belong to the network.

    Attributes:
      arrays: path -> array, without wrapping containers such as ``params`` or ``state_dict``.
      skipped: name of a group of other arrays -> the reasons why it is left out.
      notes: remarks, such as that the file holds only a moving average.
    """

    arrays: dict[Path, StoredArray]
    skipped: dict[str, str]
    notes: tuple[str, ...]


def check_choice(which: str | None) -> None:
    """Raises a ValueError unless the choice is one of `CHOICES`, or None."""
    if which is not None and which not in CHOICES:
        raise ValueError(f"unknown choice {which!r}; wanted one of {', '.join(CHOICES)}")


def model_arrays(
    arrays: Mapping[Path, StoredArray],
    optimizers: Iterable[Path] = (),
    which: str | None = None,
    *,
    unwrap: bool = True,
) -> ModelArrays:
    """Finds the network in a checkpoint that may hold more.

    Args:
      arrays: path -> array, of a state dict, a TrainState or a training script's own dictionary.
      optimizers: paths of the containers that are known to be an optimizer's state.
      which: ``ema`` for the moving average of the weights, ``raw`` for the weights themselves;
        None for the weights, or for the average if the file has nothing else.
      unwrap: whether the names of wrapping containers are taken off the paths.

    Raises:
      ValueError: if the file has no weights of the kind that is asked for, or if a name has more
        than 200 parts between dots and slashes.
    """
    for path in arrays:
        parts = len(re.split(r"[./]", _joined(path)))
        if parts > _MOST_PARTS:
            raise ValueError(f"a name of {parts} parts: {_joined(path)[:40]!r}…")
    kinds, beside = _state_of_optimizers(arrays, tuple(optimizers))
    kernels = [(path, a) for path, a in arrays.items() if path not in kinds and _is_4d(a)]
    copies = find_copies([Named(path, array) for path, array in kernels])
    kinds |= copies.kinds
    _follow_kernels(arrays, kinds)
    chosen = {path: array for path, array in arrays.items() if path not in kinds}
    left: list[tuple[str, Path]] = [(kind, path) for path, kind in kinds.items()]
    notes: tuple[str, ...] = ()
    has_average = bool(copies.averages or copies.renamed or beside)
    if which == EMA and has_average:
        renamed = beside | copies.renamed
        chosen, left = _averaged(arrays, kinds, copies.averages, renamed)
    skipped = _summarize(left, chosen)
    unwrapped, dropped = _without_wrappers(chosen)
    # PyTorch's AveragedModel counts in ``n_averaged``.
    counted = any(path[-1] == "n_averaged" for path in chosen)
    only_average = counted or any(map(is_average_name, dropped))
    if only_average:
        notes = ("the weights are a moving average: the file has no others",)
    if which == EMA and not has_average and not only_average:
        raise ValueError("no moving average in it: no layers are there twice")
    if which == RAW and only_average:
        raise ValueError("the weights are a moving average: the file has no others")
    return ModelArrays(unwrapped if unwrap else chosen, skipped, notes)


def is_needed(path: Path) -> bool:
    """Returns whether the array at a path is read: every array but those of an optimizer."""
    return _state_head(path) is None


def kernel_leaves(arrays: Mapping[Path, StoredArray]) -> set[str]:
    """Returns the last names of the arrays of four axes, such as ``kernel``."""
    names = set()
    for path, array in arrays.items():
        if _is_4d(array):
            inner = [key for key in path if key not in BOXES] or [path[-1]]
            names.add(inner[-1].rpartition(".")[2])
    return names


def _is_4d(array: StoredArray) -> bool:
    return len(array.shape) == 4


def _state_head(path: Path) -> int | None:
    """Returns the index of the first name of an optimizer's state in a path; None without one."""
    for index, key in enumerate(path[:-1]):
        if key in _NETWORK_KEYS:
            return None
        if _STATE_NAMES.fullmatch(key):
            # The optimizer of old Flax holds the network, as its target.
            return None if "target" in path[index + 1 : index + 2] else index
    return None


def _state_of_optimizers(
    arrays: Mapping[Path, StoredArray], optimizers: Sequence[Path]
) -> tuple[dict[Path, str], dict[Path, Path]]:
    """Returns the arrays whose place, or whose name behind a weight's, tells that they are copies.

    Returns:
      path -> kind, and path of a weight -> path of its average.
    """
    depths = {len(path) for path in optimizers}
    marked = set(optimizers)
    paths = {_joined(path): path for path, array in arrays.items() if array.shape}
    kinds: dict[Path, str] = {}
    averages: dict[Path, Path] = {}
    for path, array in arrays.items():
        if any(path[:depth] in marked for depth in depths) or _state_head(path) is not None:
            kinds[path] = OPTIMIZER
            continue
        name = _joined(path)
        if _is_flat_state(name):
            kinds[path] = OPTIMIZER
            continue
        for weight, kind in ((weight_of_slot(name), OPTIMIZER), (weight_of_average(name), AVERAGE)):
            place = None if weight is None else paths.get(weight)
            if place is not None and arrays[place].shape == array.shape:
                kinds[path] = kind
                averages |= {place: path} if kind == AVERAGE else {}
    return kinds, averages


def _is_flat_state(name: str) -> bool:
    """Returns whether a name is like ``optimizer.state.0.exp_avg``."""
    tokens = re.split(r"[./]", name)
    heads = [index for index, token in enumerate(tokens) if _STATE_NAMES.fullmatch(token)]
    return bool(heads) and any(map(is_slot_word, tokens[heads[0] + 1 :]))


def _joined(path: Path) -> str:
    return "/".join(path)


def _follow_kernels(arrays: Mapping[Path, StoredArray], kinds: dict[Path, str]) -> None:
    """Gives every other array the kind of the kernels beside it, if they are all of one kind."""
    beside: dict[Prefix, set[str]] = {}
    names = {path: tuple(re.split(r"[./]", _joined(path))) for path in arrays}
    if sum(map(len, names.values())) > _MOST_TOKENS:
        return
    for path, array in arrays.items():
        if _is_4d(array):
            for end in range(len(names[path])):
                beside.setdefault(names[path][:end], set()).add(kinds.get(path, ""))
    for path, array in arrays.items():
        if path in kinds or _is_4d(array):
            continue
        for end in range(len(names[path]) - 1, 0, -1):
            found = beside.get(names[path][:end])
            if found is not None:
                if len(found) == 1 and "" not in found:
                    kinds[path] = next(iter(found))
                break


def _averaged(
    arrays: Mapping[Path, StoredArray],
    kinds: Mapping[Path, str],
    averages: Sequence[tuple[Prefix, Prefix]],
    renamed: Mapping[Path, Path],
) -> tuple[dict[Path, StoredArray], list[tuple[str, Path]]]:
    """Returns the arrays of moving averages under the names of the weights, and what is left."""
    named = [Named(path, array) for path, array in arrays.items()]
    chosen = {place: arrays[path] for place, path in renamed.items()}
    taken = set(renamed.values())
    # Of several copies, prefer one whose name does not mark it as the original of an average.
    for prefix, original in sorted(averages, key=lambda pair: is_original_name(pair[0][-1])):
        average, weights = _under(named, prefix), _under(named, original)
        for rest, each in average.items():
            place = weights[rest].path if rest in weights else None
            if place is not None and place not in chosen and place not in kinds:
                chosen[place] = each.array
                taken.add(each.path)
    left = [(kind, path) for path, kind in kinds.items() if path not in taken]
    left += [("raw weights, of which there is a moving average", path) for path in chosen]
    for path, array in arrays.items():
        if path not in kinds and path not in chosen:
            if _is_4d(array):
                left.append(("raw weights without a moving average", path))
            else:
                chosen[path] = array
    return {path: chosen[path] for path in arrays if path in chosen}, left


def _under(arrays: Sequence[Named], prefix: Prefix) -> dict[str, Named]:
    """Returns the arrays whose names start with a prefix, by the rest of their names."""
    depth = len(prefix)
    return {
        each.rests[depth]: each
        for each in arrays
        if each.tokens[:depth] == prefix and len(each.rests) > depth
    }


def _summarize(left: Sequence[tuple[str, Path]], chosen: Iterable[Path]) -> dict[str, str]:
    """Returns the name of each group that is left out -> why, and how many arrays it has."""
    shared = {path[:end] for path in chosen for end in range(1, len(path) + 1)}
    counts: dict[str, dict[str, int]] = {}
    for reason, path in left:
        ends = range(1, len(path) + 1)
        name = _joined(next((path[:end] for end in ends if path[:end] not in shared), path))
        reasons = counts.setdefault(name, {})
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        name: "; ".join(
            f"{reason}: {count} array{'s' if count > 1 else ''}" for reason, count in each.items()
        )
        for name, each in counts.items()
    }


def _without_wrappers(
    arrays: dict[Path, StoredArray],
) -> tuple[dict[Path, StoredArray], list[str]]:
    """Drops boxes at the end of paths, and the wrapping containers of all kernels.

    Returns:
      The arrays, and the names of the containers.
    """
    arrays = {
        (path[:-1] if len(path) > 1 and path[-1] in BOXES else path): array
        for path, array in arrays.items()
    }
    dropped: list[str] = []
    while True:
        # Haiku's statistics have as many axes as kernels.
        kernels = [
            path for path, a in arrays.items() if _is_4d(a) and max(a.shape) < math.prod(a.shape)
        ]
        heads = {path[0] for path in kernels}
        if len(heads) != 1 or not _is_wrapper(kernels):
            return arrays, dropped
        dropped += heads
        arrays = {
            (path[1:] if path[0] in heads and len(path) > 1 else path): array
            for path, array in arrays.items()
        }


def _is_wrapper(kernels: Sequence[Path]) -> bool:
    """Returns whether the first name of all kernels is not one of the network's own."""
    head = kernels[0][0]
    if head.isdigit():
        # The parameters in (parameters, state), but not the first of a list of layers.
        return all(
            len(path) > 1 and (len(path) > 2 or "." in path[1]) and not path[1].isdigit()
            for path in kernels
        )
    return head in _WRAPPERS and min(map(len, kernels)) > 1
