"""The `study` part: the downsampling study at size gpu, and the time to 94 % on CIFAR-10."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from kernsym_jax import studies, training
from kernsym_jax.training import Preempted

Row = tuple[str, dict[str, Any]]
Item = tuple[str, float, Callable[[], Iterator[Row]]]

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_STUDY = "configs/studies/downsampling.py"
_WANTED = 0.94
_LEAST_SECONDS = 20.0


def items(
    *, tiny: bool, out: pathlib.Path, data: str | None, full_data: str | None, deadline: float
) -> list[Item]:
    """The measurements: name, seconds that they take at least, and the function.

    Args:
      tiny: whether sizes are those of a test.
      out: folder of the results; run directories go to ``runs`` below it.
      data: source of the JPEG copy of CIFAR-10; None for that of the study.
      full_data: source of the full-quality set; None to leave its part out.
      deadline: `time.monotonic` at which everything ends.
    """
    chosen = []
    if full_data is not None:
        run = functools.partial(_time_to_accuracy, tiny, out / "runs", full_data, deadline)
        chosen.append(("time to 94 %", 0.0 if tiny else 90.0, run))
    study = functools.partial(_downsampling, tiny, out, data, deadline)
    return [*chosen, ("downsampling, size gpu", 0.0 if tiny else 60.0, study)]


def _downsampling(
    tiny: bool, out: pathlib.Path, data: str | None, deadline: float
) -> Iterator[Row]:
    workdir = out / "runs" / "downsampling"
    study = studies.load_study(_ROOT / _STUDY, "gpu", data)
    if tiny:
        base = ml_collections.ConfigDict(study.base)
        base.epochs, base.batch_size = 1.0, 8
        base.data.source = data or "textures:size=32,n=16,test=8"
        # The same small network in both places, which compiles once.
        narrow = {"model.blocks": (1, 1, 1), "model.width": 4, "model.dtype": "float32"}
        variants = {name: {**changes, **narrow} for name, changes in study.variants.items()}
        study = dataclasses.replace(study, base=base, variants=variants, seeds=study.seeds[:2])
    command = ["-m", "kernsym_jax.study", f"--study={_STUDY}", "--size=gpu"]
    # Seed by seed, so that all variants have the same seeds whenever the time is over.
    names = [f"{v}/seed_{seed:03d}" for seed, v in itertools.product(study.seeds, study.variants)]
    for name in names:
        started = time.monotonic()
        if started > deadline - _LEAST_SECONDS:
            break
        with _ended_at(deadline - _LEAST_SECONDS / 2):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    summary = studies.train_one(study, workdir, name)
            except Preempted:
                break
        row = {
            "run": name,
            "accuracy": summary["eval_accuracy"],
            "img/s": summary["images_per_second"],
            "seconds": time.monotonic() - started,
        }
        yield "study", row
    with contextlib.redirect_stdout(io.StringIO()):
        results = studies.gather(study, workdir, command)
    studies.keep(study, workdir, out)
    for claim, verdict in results.verdicts.items():
        yield "claims", {"claim": claim, "verdict": str(verdict), "text": study.claims[claim].text}


def _time_to_accuracy(
    tiny: bool, runs: pathlib.Path, source: str, deadline: float
) -> Iterator[Row]:
    spec = importlib.util.spec_from_file_location("resnet18", _ROOT / "configs/cifar10_resnet18.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.source, config.consistency.images = source, 0
    config.epochs, config.eval_every_epochs, config.checkpoint_every_epochs = 30.0, 1.0, 30.0
    if tiny:
        config.model.width, config.epochs, config.batch_size = 4, 2.0, 8
        config.model.blocks = (1, 1)
    workdir = runs / "time_to_94"
    clock, started = _Evaluations(), time.monotonic()
    with (
        _ended_at(deadline - _LEAST_SECONDS / 2),
        contextlib.redirect_stdout(clock),
        # A request to stop ends the run; what it has reached by then counts.
        contextlib.suppress(Preempted),
    ):
        training.train_and_evaluate(config, workdir)
    reached = [seconds for seconds, accuracy in clock.found if accuracy >= _WANTED]
    yield (
        "time_to_94",
        {
            "network": "ResNet-18, bfloat16, 30 epochs",
            "s to 94 %, all included": reached[0] - started if reached else None,
            "best accuracy": max((accuracy for _, accuracy in clock.found), default=None),
            "seconds": time.monotonic() - started,
        },
    )


class _Evaluations(io.TextIOBase):
    """An output that notes when a line about an evaluation was printed."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def write(self, text: str) -> int:
        """Notes the accuracy in the text, if there is one."""
        accuracy = re.search(r"^evaluation after step \d+: accuracy ([\d.]+)", text)
        if accuracy:
            self.found.append((time.monotonic(), float(accuracy[1])))
        return len(text)


@contextlib.contextmanager
def _ended_at(deadline: float) -> Iterator[None]:
    """Asks a training to save and stop once the time is over, as a scheduler would."""
    left = max(0.0, deadline - time.monotonic())
    # Before and after the training, which has a handler of its own, the signal means nothing.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
