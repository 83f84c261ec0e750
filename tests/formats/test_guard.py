"""Sources from outside are read within limits, and what comes back is what the reader returns."""

import dataclasses
import os
import time

import bad_readers
import damage
import hostile
import numpy as np
import pytest

from kernsym_jax import geometry, weights
from kernsym_jax.formats import guard


def _call(name, source, *arguments, **options):
    return guard.call(("bad_readers", name), source, *arguments, **options)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.bin"
    path.write_bytes(bytes(1000))
    return path


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("crash", "crashed"),
        ("spin", "limit of processor time"),
        ("fill", "too much memory"),
        ("recurse", "nested too deep"),
        ("read_outside", "outside the folder"),
        ("write", "writes"),
        ("run", "subprocess.Popen"),
        ("long_error", "xxx"),
    ],
)
def test_a_reader_that_does_what_it_must_not_ends_in_one_line(source, name, word):
    with pytest.raises(ValueError, match=word) as caught:
        _call(name, source)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    assert message.isprintable()
    assert len(message) <= 300
    assert [file.name for file in source.parent.iterdir()] == ["net.bin"]


def test_a_result_is_made_of_expected_classes_only(source):
    with pytest.raises(ValueError, match="Record"):
        _call("record", source)
    found = _call("record", source, records=[bad_readers.Record])
    np.testing.assert_array_equal(found.values, np.arange(6.0).reshape(2, 3).T)
    assert found.values.strides == bad_readers.record(source).values.strides
    assert not found.values.flags.writeable


def test_the_reader_has_no_jax_and_keeps_the_working_directory(source, monkeypatch):
    monkeypatch.chdir(source.parent)
    has_jax, folder, process = _call("environment", "net.bin")
    assert not has_jax
    assert folder == str(source.parent)
    assert process != os.getpid()


def test_what_has_begun_is_read_once(source):
    guard.begin(("bad_readers", "environment"), source)
    first = _call("environment", source)
    assert _call("environment", source) != first


def test_a_server_that_has_ended_is_replaced(source):
    first = _call("environment", source)
    guard.stop()
    assert _call("environment", source)[:2] == first[:2]


def test_guarded_and_trusted_readers_give_the_same(files):
    for name, path in files.items():
        guarded, trusted = weights.read(path), weights.read(path, trusted=True)
        assert list(guarded.kernels) == list(trusted.kernels), name
        assert guarded.skipped == trusted.skipped
        for layer, kernel in guarded.kernels.items():
            stored, expected = (w.kernels[layer].__dict__["weight"] for w in (guarded, trusted))
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(kernel.weight, trusted.kernels[layer].weight)


def test_arrays_of_a_file_are_mapped_not_copied(tmp_path):
    path = tmp_path / "net.npy"
    np.save(path, np.ones((4, 3, 3, 3), np.float32))
    kernel = weights.read(path, layout="OIHW").kernels["net"].weight
    # The system shows a change of a file in its mappings, but not in a copy.
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    assert kernel[-1, -1, -1, -1] == 7


def test_links_of_hugging_faces_cache_are_followed(files, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in files["safetensors sharded"].iterdir():
        (blobs / f"{file.name}-hash").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-hash")
    (index,) = snapshot.glob("*.index.json")
    kernels = weights.read(files["safetensors"]).kernels
    assert weights.read(index).kernels.keys() == weights.read(snapshot).kernels.keys()
    assert weights.read(index).kernels.keys() == kernels.keys()


def test_a_shard_that_is_a_link_to_elsewhere_is_refused(files, tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    for file in files["safetensors sharded"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (folder / file.name).symlink_to(f"../{file.name}")
    (index,) = folder.glob("*.index.json")
    with pytest.raises(ValueError, match="outside the folder"):
        weights.read(index)
    assert weights.read(index, trusted=True).kernels


def test_one_large_object_given_to_many_is_not_copied(tmp_path):
    assert list(weights.read(hostile.torch_build_copies(tmp_path)).kernels) == ["w"]


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize("name", list(hostile.REFUSED))
def test_hostile_files_are_refused_in_one_clear_line(tmp_path, name):
    path = hostile.REFUSED[name](tmp_path)
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"net|checkpoint|model") as caught:
        weights.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 300
    assert time.process_time() - begin < 2  # in this process; its limits bound the reader's


@pytest.mark.parametrize("name", ["onnx_functions_call_each_other_twice",
                                  "onnx_function_calls_itself"])  # fmt: skip
def test_hostile_graphs_are_refused_by_the_audit_too(tmp_path, name):
    path = hostile.REFUSED[name](tmp_path)
    assert damage.fault(path, damage.audit) is None
    with pytest.raises(ValueError, match="local function"):
        geometry.audit_file(path, 32)


def test_large_but_honest_graphs_are_read(tmp_path):
    path = hostile.constants_by_the_ten_thousand(tmp_path)
    assert list(weights.read(path).kernels) == ["w"]
    assert len(geometry.audit_file(path)) == 1


def test_a_model_for_a_trillion_pixels_is_audited(tmp_path):
    path = hostile.fixed_input_of_a_trillion_pixels(tmp_path)
    rows = geometry.audit_file(path)
    assert [row.input_size for row in rows] == [(1 << 40, 1 << 40)]
    assert geometry.advise(rows, geometry.FileAudits(path), None).uneven == 1


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kernel_of_2_to_the_31_taps", r"a kernel of 2147483648×3 taps, more than 65536"),
        ("padding_of_2_to_the_63", r"a number of 1\.61e\+19, more than 2\*\*53"),
    ],
)
def test_geometry_beyond_what_can_be_computed_is_refused(tmp_path, name, says):
    path = getattr(hostile, name)(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        damage.audit(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_first_of_thousands_of_layers_are_printed(tmp_path, capsys):
    rows = geometry.audit_file(hostile.convolutions_by_the_thousand(tmp_path))
    geometry.print_audit("net", rows, geometry.advise(rows))
    assert "… 100 more layers, which --json lists\n" in capsys.readouterr().out


def test_a_name_of_thousands_of_characters_is_printed_in_part(capsys):
    (row,) = geometry.layers_at([(3, 2, 1)], 32)
    rows = [dataclasses.replace(row, layer="a" + "n" * 70_000 + "z")]
    geometry.print_audit("net", rows, geometry.advise(rows))
    printed = capsys.readouterr().out
    assert len(printed) < 2000
    assert "…" in printed


def test_names_that_utf_8_cannot_hold_are_escaped(tmp_path):
    found = weights.read(hostile.surrogate_names(tmp_path))
    assert list(found.kernels) == ["a\\ud800"]
