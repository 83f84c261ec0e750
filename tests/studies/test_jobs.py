import os
import subprocess
import sys

import pytest

from kernsym_jax.studies import emit, load_study

COMMAND = ["-m", "kernsym_jax.study", "--study=my study.py", "--size=smoke", "--workdir=runs/a"]

COMMANDS = """#!/usr/bin/env bash
# One line a run, in any order, on any machines that share the folder.
python -m kernsym_jax.study '--study=my study.py' --size=smoke --workdir=runs/a --only=even/seed_000
python -m kernsym_jax.study '--study=my study.py' --size=smoke --workdir=runs/a --only=even/seed_001
python -m kernsym_jax.study '--study=my study.py' --size=smoke --workdir=runs/a --only=odd/seed_000
python -m kernsym_jax.study '--study=my study.py' --size=smoke --workdir=runs/a --only=odd/seed_001
"""

SLURM = """#!/usr/bin/env bash
# sbatch this file from the repository's root; partition, account and GPUs as options of sbatch.
#SBATCH --job-name=micro-smoke
#SBATCH --array=0-3
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --output=runs/a/logs/slurm-%a.log
#SBATCH --open-mode=append
runs=(
  even/seed_000
  even/seed_001
  odd/seed_000
  odd/seed_001
)
python -m kernsym_jax.study '--study=my study.py' --size=smoke --workdir=runs/a \
--only="${runs[$SLURM_ARRAY_TASK_ID]}" &
child=$!
trap 'kill -TERM "$child"' TERM
status=0
wait "$child" || status=$?
# A signal ends the first wait before the run has saved itself.
if ((status > 128)); then
  status=0
  wait "$child" || status=$?
fi
if ((status == 75)); then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""

SKYPILOT = """# sky jobs launch --gpus=<kind> this file, from the repository's root.
name: micro-smoke-odd-seed-001
workdir: .
resources:
  use_spot: true
  job_recovery:
    max_restarts_on_errors: 3
file_mounts:
  /kernsym_runs:
    source: gs://mine
    mode: MOUNT
setup: python -m pip install --quiet --editable .
run: |
  python -m kernsym_jax.study --study=s.py --size=smoke --workdir=/kernsym_runs/a/b \
--only=odd/seed_001
"""


@pytest.fixture
def study(micro_study):
    return load_study(micro_study, "smoke")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "file", "text"), [("commands", "commands.sh", COMMANDS), ("slurm", "slurm.sh", SLURM)]
)
def test_jobs_are_written_as_they_are_stored_here(study, tmp_path, kind, file, text):
    (path,) = emit(study, "runs/a", COMMAND, kind)
    assert path.name == file
    assert (tmp_path / path).read_text() == text


def test_a_bucket_is_mounted_for_skypilot(study, tmp_path):
    command = ["-m", "kernsym_jax.study", "--study=s.py", "--size=smoke", "--workdir=gs://mine/a/b"]
    paths = emit(study, "gs://mine/a/b", command, "skypilot")
    assert [path.name for path in paths] == [
        "even-seed_000.yaml", "even-seed_001.yaml", "odd-seed_000.yaml", "odd-seed_001.yaml",
    ]  # fmt: skip
    assert paths[-1].read_text() == SKYPILOT
    assert not (tmp_path / "gs:").exists()


def test_other_schedulers_cannot_see_a_bucket(study):
    with pytest.raises(ValueError, match="slurm jobs need a folder"):
        emit(study, "gs://mine/a", COMMAND, "slurm")


def test_a_slurm_task_that_is_stopped_is_queued_again(study, tmp_path):
    (path,) = emit(study, "runs/a", COMMAND, "slurm")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python").write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2",
    }  # fmt: skip
    task = subprocess.Popen(["bash", path], env=environment, stdout=subprocess.PIPE, text=True)
    assert task.stdout.readline() == "up\n"
    task.terminate()
    out, _ = task.communicate(timeout=30)
    assert out == "requeue 7_2\n"
    assert task.returncode == 75
