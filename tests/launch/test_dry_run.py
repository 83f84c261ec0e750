"""--dry_run against stored text: what would be run, word for word, and nothing is run.

After an intended change: UPDATE_DRY_RUN=1 pytest tests/launch/test_dry_run.py, and read the diff.
"""

import os
import pathlib
import shlex
import subprocess

import pytest

STORED = pathlib.Path(__file__).parent / "dry_run"

ONE_HOST = {"PROJECT": "lab", "ZONE": "us-east5-b"}
SLICE = {
    **ONE_HOST, "NAME": "resnet-a", "ACCELERATOR": "tpu7x-standard-4t", "HOSTS": "2",
    "TOPOLOGY": "2x2x2", "SPOT": "1", "BUCKET": "gs://lab-runs/symmetry",
}  # fmt: skip
QUEUED = {**ONE_HOST, "TPU_API": "queued"}
QUEUED_SLICE = {
    **QUEUED, "ACCELERATOR": "v6e-16", "HOSTS": "4", "SPOT": "1", "BUCKET": "gs://lab-runs/",
    "CREATE_FLAGS": "--network=lab --internal-ips", "SSH_FLAGS": "--internal-ip",
}  # fmt: skip

CASES = {
    "compute_up": ("tpu_vm.sh", ["up", "--dry_run"], ONE_HOST),
    "compute_fetch": ("tpu_vm.sh", ["fetch", "--dry_run"], ONE_HOST),
    "compute_delete": ("tpu_vm.sh", ["delete", "--dry_run"], ONE_HOST),
    "slice_up": (
        "tpu_vm.sh",
        ["up", "--dry_run", "--", "--config.seed=3", "--profile=a folder; 'quoted' $HOME"],
        {**SLICE, "EXTRA": "--config.batch_size=1024 --resume"},
    ),
    "slice_status": ("tpu_vm.sh", ["status", "--dry_run"], SLICE),
    "slice_fetch": ("tpu_vm.sh", ["fetch", "--dry_run"], SLICE),
    "slice_delete": ("tpu_vm.sh", ["delete", "--dry_run"], SLICE),
    "queued_up": ("tpu_vm.sh", ["up", "--dry_run"], QUEUED),
    "queued_slice_up": ("tpu_vm.sh", ["up", "--dry_run"], QUEUED_SLICE),
    "queued_status": ("tpu_vm.sh", ["status", "--dry_run"], QUEUED),
    "queued_delete": ("tpu_vm.sh", ["delete", "--dry_run"], QUEUED),
    "slurm": ("slurm.sbatch", ["--dry_run"], {}),
    "slurm_flags": (
        "slurm.sbatch",
        ["--dry_run", "--", "--config.seed=3", "--profile=a folder"],
        {"NAME": "resnet-a", "CONFIG": "configs/digits.py", "EXTRA": "--resume"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_prints_what_is_stored_and_runs_nothing(case, workplace):
    script, arguments, variables = CASES[case]
    printed = workplace.run(script, *arguments, **variables)
    path = STORED / f"{case}.txt"
    if os.environ.get("UPDATE_DRY_RUN"):
        path.write_text(printed)
    assert printed == path.read_text()
    assert list(workplace.cloud.iterdir()) == []


def test_no_stored_text_is_left_over():
    assert {path.stem for path in STORED.iterdir()} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_is_a_program(case):
    path = STORED / f"{case}.txt"
    subprocess.run(["bash", "-n", path], check=True)


def test_flags_reach_the_training_as_they_were_given(workplace, tmp_path):
    arguments = ["--config.seed=3", "--profile=a folder; 'quoted' $HOME \\ \"twice\""]
    printed = workplace.run("tpu_vm.sh", "run", "--dry_run", "--", *arguments, **ONE_HOST)
    (command,) = (word[10:] for word in shlex.split(printed) if word.startswith("--command="))
    # What the remote shell would make of it, with the training's script replaced by a recorder.
    host = tmp_path / "host" / "kernsym-jax" / "launch"
    host.mkdir(parents=True)
    (host / "tpu_host.sh").write_text('printf "%s\\n" "$@"\n')
    subprocess.run(["bash", "-c", f"{command}; wait"], cwd=tmp_path / "host", check=True)
    log = (tmp_path / "host" / "kernsym.log").read_text().splitlines()
    assert log[-3:] == ["train", *arguments]
