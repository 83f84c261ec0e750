"""slurm.sbatch as Slurm runs it: a copy, in a job's environment, with srun stood in for."""

import os
import shutil
import signal
import time

import pytest


@pytest.fixture
def job(repository, workplace, tmp_path):
    """Starts the job as Slurm does: from a copy, with the folder in which sbatch was called."""
    copy = tmp_path / "slurm_script"
    shutil.copyfile(repository / "launch" / "slurm.sbatch", copy)

    def start(*arguments, srun_status="0", **variables):
        return workplace.start(
            os.path.relpath(copy, repository / "launch"), *arguments,
            SLURM_JOB_ID="41", SLURM_SUBMIT_DIR=str(repository), PYTHON="/opt/python",
            SRUN_STATUS=srun_status, **variables,
        )  # fmt: skip

    return start


def finished(process, status):
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    return output


def test_the_tasks_get_the_config_the_run_directory_and_the_flags(job, workplace):
    flags = ("--config.seed=1", "--profile=a folder")
    finished(job("--", *flags, NAME="resnet", EXTRA="--resume --config.epochs=2"), 0)
    words = (workplace.cloud / "srun").read_text().splitlines()
    assert words[words.index("/opt/python") :] == [
        "/opt/python", "-m", "kernsym_jax.train", "--config=configs/cifar10_resnet20.py",
        "--workdir=runs/resnet", "--resume", "--config.epochs=2", *flags,
    ]  # fmt: skip


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_job_that_was_not_preempted_is_not_queued_again(job, workplace, status):
    finished(job(srun_status=str(status)), status)
    assert not (workplace.cloud / "scontrol").exists()


def test_a_preempted_job_is_queued_again(job, workplace):
    assert "queued again" in finished(job(srun_status="75"), 75)
    assert (workplace.cloud / "scontrol").read_text() == "requeue 41\n"


def test_a_signal_reaches_the_tasks_and_their_saving_is_waited_for(job, workplace):
    process = job(srun_status="at SIGTERM")
    deadline = time.monotonic() + 30
    while not (workplace.cloud / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    finished(process, 75)
    assert (workplace.cloud / "scontrol").read_text() == "requeue 41\n"


def test_several_nodes_need_a_task_for_each_gpu(job, workplace):
    variables = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"}
    assert "need --ntasks-per-node=8" in finished(job(**variables), 2)
    finished(job(**variables | {"SLURM_NTASKS_PER_NODE": "8"}), 0)


def test_outside_of_a_job_only_the_dry_run_works(workplace):
    assert "--dry_run shows" in workplace.run("slurm.sbatch", status=2)
