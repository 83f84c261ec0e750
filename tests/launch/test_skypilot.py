"""skypilot.yaml loads, has the variables of the other scripts, and its scripts do what they say."""

import subprocess

import pytest
import yaml


@pytest.fixture
def task(repository):
    return yaml.safe_load((repository / "launch" / "skypilot.yaml").read_text())


def test_its_variables_are_those_of_the_other_scripts(task, repository):
    described = (repository / "launch" / "variables.sh").read_text()
    for name in task["envs"]:
        assert f"#   {name} " in described
    assert task["envs"]["CONFIG"] == "configs/cifar10_resnet20.py"


def test_a_run_that_was_stopped_by_a_signal_is_recovered(task):
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"]


def test_runs_are_kept_in_the_bucket(task):
    (mount,) = (each for each in task["file_mounts"].values())
    assert mount == {"source": "${BUCKET}", "mode": "MOUNT"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_every_node_trains_and_several_name_the_first_as_coordinator(task, workplace, nodes):
    variables = {
        **{name: value or "" for name, value in task["envs"].items()},
        "EXTRA": "--config.seed=1 --resume", "NAME": "resnet", "PYTHON": "recorder",
        "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_RANK": str(nodes - 1),
        "SKYPILOT_NODE_IPS": "\n".join(["10.0.0.7", "10.0.0.8"][:nodes]),
    }  # fmt: skip
    subprocess.run(["bash", "-c", task["run"]], env=workplace.environment(variables), check=True)
    several = [
        "--distributed=on", "--coordinator=10.0.0.7:8476", "--processes=2", "--process=1"
    ]  # fmt: skip
    (mount,) = task["file_mounts"]
    assert (workplace.cloud / "python").read_text().splitlines() == [
        "-m", "kernsym_jax.train", "--config=configs/cifar10_resnet20.py",
        f"--workdir={mount}/resnet", *(several if nodes == 2 else ["--distributed=off"]),
        "--config.seed=1", "--resume",
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_scripts_pass_shellcheck(task, part, repository, shellcheck):
    declared = "".join(f"{name}=given\n" for name in task["envs"])
    subprocess.run(
        [shellcheck, "--shell=bash", "--external-sources", "--exclude=SC2034", "-"],
        input=declared + "SKYPILOT_NUM_NODES=1\n" + task[part],
        text=True, check=True, cwd=repository,
    )  # fmt: skip
