"""tpu_vm.sh against a stand-in for Google Cloud: safe to repeat, and deletes only what it made."""

import pytest

ONE_HOST = {"PROJECT": "lab", "ZONE": "us-east5-b"}
SLICE = {**ONE_HOST, "HOSTS": "4", "TOPOLOGY": "4x4", "BUCKET": "gs://lab-runs"}
QUEUED = {**ONE_HOST, "TPU_API": "queued"}
KINDS = {
    "one host": (ONE_HOST, {"instance"}),
    "slice": (SLICE, {"policy", "template", "group"}),
    "queued": (QUEUED, {"queued"}),
}
every_kind = pytest.mark.parametrize(("variables", "kinds"), KINDS.values(), ids=KINDS.keys())


@every_kind
def test_create_twice_makes_things_once(workplace, variables, kinds):
    workplace.run("tpu_vm.sh", "create", **variables)
    made = workplace.changes()
    assert len(made) == len(kinds)
    assert "there already" in workplace.run("tpu_vm.sh", "create", **variables)
    assert workplace.changes() == made
    assert workplace.resources() == kinds


@every_kind
def test_delete_leaves_nothing_and_may_be_repeated(workplace, variables, kinds):
    workplace.run("tpu_vm.sh", "create", **variables)
    workplace.run("tpu_vm.sh", "delete", **variables)
    assert workplace.resources() == set()
    done = workplace.changes()
    assert "is not there" in workplace.run("tpu_vm.sh", "delete", **variables)
    assert workplace.changes() == done


def test_a_slice_is_taken_apart_in_the_reverse_order_of_its_making(workplace):
    workplace.run("tpu_vm.sh", "create", **SLICE)
    workplace.run("tpu_vm.sh", "delete", **SLICE)
    made = ["create resource-policies", "create instance-templates", "create managed"]
    assert workplace.changes() == [
        *made, "delete managed", "delete instance-templates", "delete resource-policies"
    ]  # fmt: skip


@every_kind
def test_what_someone_else_made_is_neither_used_nor_deleted(workplace, variables, kinds):
    workplace.run("tpu_vm.sh", "create", **variables)
    for kind in kinds:
        workplace.set(kind, description="a colleague's")
    done = workplace.changes()
    for action in ("create", "delete"):
        output = workplace.run("tpu_vm.sh", action, status=1, **variables)
        assert "was not made by this script; it is left alone" in output
    assert workplace.changes() == done


def test_nothing_is_deleted_or_made_when_google_cloud_gives_no_answer(workplace):
    workplace.run("tpu_vm.sh", "create", **ONE_HOST)
    done = workplace.changes()
    for action in ("create", "delete"):
        output = workplace.run("tpu_vm.sh", action, status=1, CLOUD_REFUSES="1", **ONE_HOST)
        assert "active account" in output
    assert workplace.changes() == done


def test_other_names_projects_and_zones_stay_untouched(workplace):
    others = [
        ONE_HOST | {"NAME": "other"}, ONE_HOST | {"PROJECT": "other"},
        ONE_HOST | {"ZONE": "us-east5-a"},
    ]  # fmt: skip
    for each in (ONE_HOST, *others):
        workplace.run("tpu_vm.sh", "create", **each)
    workplace.run("tpu_vm.sh", "delete", **ONE_HOST)
    assert len(list(workplace.cloud.glob("resources/*/*.json"))) == len(others)


@pytest.mark.parametrize(
    ("kind", "state", "variables"),
    [
        ("instance", "TERMINATED", ONE_HOST | {"SPOT": "1", "BUCKET": "gs://lab-runs"}),
        ("queued", "SUSPENDED", QUEUED),
        ("group", "STOPPED", SLICE),
    ],
)
def test_preempted_machines_are_made_anew(workplace, kind, state, variables):
    workplace.run("tpu_vm.sh", "create", **variables)
    before = len(workplace.changes())
    workplace.set(kind, state=state)
    assert "making it anew" in workplace.run("tpu_vm.sh", "create", **variables)
    again = workplace.changes()[before:]
    assert [each.split()[0] for each in again] == sorted(
        (each.split()[0] for each in again), reverse=True
    )
    assert len(again) == 2 * before


def test_up_again_sends_the_code_and_starts_the_training_on_every_host(workplace):
    for _ in range(2):
        workplace.run("tpu_vm.sh", "up", "--", "--config.seed=3", **SLICE)
    calls = [" ".join(call) for call in workplace.calls()]
    for host in range(4):
        starts = [call for call in calls if f"ssh kernsym-{host} " in call and "nohup" in call]
        assert len(starts) == 2
        assert all("HOSTS=4" in call and "train --config.seed=3" in call for call in starts)
        assert sum(f"kernsym-{host}:kernsym.bundle" in call for call in calls) == 2


def test_a_slice_without_machines_is_an_error(workplace):
    workplace.run("tpu_vm.sh", "create", **SLICE)
    workplace.set("group", size="0")
    assert "has no machines" in workplace.run("tpu_vm.sh", "run", status=1, **SLICE)


def test_status_of_what_is_not_there_is_no_error(workplace):
    assert workplace.run("tpu_vm.sh", "status", **ONE_HOST) == "kernsym: not there\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (["create"], {"ZONE": "us-east5-b"}, "PROJECT=''"),
        (["create"], ONE_HOST | {"ZONE": "us-east5"}, "ZONE='us-east5'"),
        (["create"], ONE_HOST | {"NAME": "a b; rm"}, "NAME='a b; rm'"),
        (["create"], ONE_HOST | {"SPOT": "1"}, "SPOT=1 needs BUCKET"),
        (["create"], ONE_HOST | {"HOSTS": "4", "TOPOLOGY": "4x4"}, "HOSTS=4 needs BUCKET"),
        (["create"], SLICE | {"TOPOLOGY": "4x8"}, "TOPOLOGY='4x8' has 32 chips, HOSTS=4"),
        (["create"], ONE_HOST | {"ACCELERATOR": "v6e-4"}, "not a TPU machine type"),
        (["create"], ONE_HOST | {"TPU_API": "other"}, "TPU_API='other'"),
        (["create"], ONE_HOST | {"BUCKET": "my-bucket"}, "BUCKET='my-bucket'"),
        (["run"], ONE_HOST | {"WORKDIR": "gs://b/run"}, "set BUCKET, not WORKDIR"),
        (["run", "--config.seed=1"], ONE_HOST, "unknown argument '--config.seed=1'"),
        (["destroy"], ONE_HOST, "unknown command 'destroy'"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_asked_of_google_cloud(
    workplace, arguments, variables, complaint
):
    output = workplace.run("tpu_vm.sh", *arguments, status=2, **variables)
    assert complaint in output
    assert output.count("\n") == 1
    assert workplace.calls() == []


def test_help_tells_the_commands_and_where_results_go(workplace):
    output = workplace.run("tpu_vm.sh", "--help")
    for word in (
        "create",
        "setup",
        "run",
        "up",
        "status",
        "fetch",
        "delete",
        "--dry_run",
        "BUCKET",
    ):
        assert word in output
