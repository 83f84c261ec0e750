"""What runs on a TPU machine: trains, keeps the run in a bucket, and goes on after a preemption."""

import json
import os
import signal
import sys
import time

import pytest

TINY = (
    "--config.epochs=1 --config.model.depth=2 --config.model.width=4 --config.model.strided=() "
    "--config.batch_size=256 --config.log_every=1"
)


@pytest.fixture
def machine(workplace, tmp_path):
    """Variables of a new machine: its disk is empty, and the bucket is that of the others."""

    def new(name: str) -> dict[str, str]:
        home = tmp_path / name
        home.mkdir()
        return {
            "HOME": str(home), "WORKDIR": str(home / "runs" / "tiny"), "NAME": "tiny",
            "BUCKET": "gs://lab-runs/symmetry", "CONFIG": "configs/digits.py", "EXTRA": TINY,
            "PYTHON": sys.executable, "SYNC_SECONDS": "1",
        }  # fmt: skip

    return new


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_until(condition, process):
    """Until a condition holds while a process runs; no longer than two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.1)


def test_a_run_that_was_preempted_goes_on_on_a_new_machine(workplace, machine):
    bucket = workplace.cloud / "buckets" / "lab-runs" / "symmetry" / "tiny"
    long = ("--config.epochs=2000",)
    first = workplace.start("tpu_host.sh", "train", *long, **machine("first"))
    # A file of metrics in the bucket means that the training is under way.
    wait_until(lambda: (bucket / "metrics.jsonl").exists(), first)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output
    (saved,) = (int(path.name) for path in (bucket / "checkpoints").iterdir())
    assert metrics(bucket)[-1]["step"] <= saved

    variables = machine("second")
    second = workplace.start("tpu_host.sh", "train", *long, **variables)
    wait_until(lambda: os.path.exists(variables["WORKDIR"]), second)
    # Meanwhile another start finds this one at work, and leaves it alone.
    assert "running already" in workplace.run("tpu_host.sh", "train", *long, **variables)
    wait_until(lambda: metrics(bucket)[-1]["step"] > saved, second)
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 75, output
    sessions = json.loads((bucket / "provenance.json").read_text())["sessions"]
    assert [session["resumed_at_step"] for session in sessions] == [0, saved]
    steps = [line["step"] for line in metrics(bucket) if line["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    # What the machine no longer keeps is gone from the bucket too.
    local = os.listdir(os.path.join(variables["WORKDIR"], "checkpoints"))
    assert sorted(os.listdir(bucket / "checkpoints")) == sorted(local)


def test_nothing_starts_from_scratch_when_the_bucket_gives_no_answer(workplace, machine):
    variables = machine("first")
    output = workplace.run("tpu_host.sh", "train", status=1, CLOUD_REFUSES="1", **variables)
    assert "active account" in output
    assert not os.path.exists(variables["WORKDIR"])


def test_the_status_of_a_training_that_cannot_start_is_handed_on(workplace, machine):
    variables = machine("first") | {"CONFIG": "configs/absent.py", "BUCKET": ""}
    assert "exit status 2" in workplace.run("tpu_host.sh", "train", status=2, **variables)
