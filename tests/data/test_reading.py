"""Decoding once: what comes from the cache is what was decoded, and it is never needed."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from kernsym_jax import data
from kernsym_jax.data import folder, reading
from kernsym_jax.data.decode import View


def decoded(place, on_broken="fail", worth_seconds=0.0, **view):
    return reading.decode_cached(
        folder.load(str(place), "train"), View(**view), on_broken, worth_seconds
    )


def from_cache(result):
    return isinstance(result.images.images, np.memmap)


def entries(own_cache):
    return sorted(own_cache.iterdir()) if own_cache.exists() else []


def test_a_second_run_reads_what_the_first_has_decoded(image_folder, own_cache):
    first, second = decoded(image_folder), decoded(image_folder)
    assert not from_cache(first)
    assert from_cache(second)
    np.testing.assert_array_equal(second.images.images, first.images.images)
    np.testing.assert_array_equal(second.images.labels, first.images.labels)
    assert second.images.classes == first.images.classes
    assert len(entries(own_cache)) == 1


def test_other_options_and_other_sets_have_entries_of_their_own(image_folder, own_cache):
    whole, small, turned = (
        decoded(image_folder, **view) for view in ({}, {"image_size": 3}, {"rotate": 90})
    )
    assert len(entries(own_cache)) == 3
    again = decoded(image_folder, image_size=3)
    assert from_cache(again)
    np.testing.assert_array_equal(again.images.images, small.images.images)
    assert turned.images.images.shape[1:3] == whole.images.images.shape[2:0:-1]


@pytest.mark.parametrize("change", ["content", "time", "name", "fewer"])
def test_a_changed_file_is_decoded_anew_and_the_old_entry_goes(image_folder, own_cache, change):
    before = decoded(image_folder)
    (old,) = entries(own_cache)
    file, other = (image_folder / "train" / "cat" / name for name in ("0.png", "1.png"))
    if change == "content":
        file.write_bytes(other.read_bytes())
    elif change == "time":
        os.utime(file, (1, 1))
    elif change == "name":
        file.rename(file.with_name("9.png"))
    else:
        file.unlink()
    after = decoded(image_folder)
    assert not from_cache(after)
    assert entries(own_cache) != [old]
    assert len(entries(own_cache)) == 1
    if change == "content":
        np.testing.assert_array_equal(after.images.images[0], before.images.images[1])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip_a_byte(entry / "images.npy"),
        lambda entry: flip_a_byte(entry / "labels.npy"),
        lambda entry: (entry / "images.npy").write_bytes(b""),
        lambda entry: (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:200]),
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: np.save(entry / "images.npy", np.array([{}]), allow_pickle=True),
        lambda entry: (entry / "about.json").write_text("{"),
        lambda entry: (entry / "about.json").write_text(json.dumps({"classes": ["cat"]})),
        lambda entry: (entry / "about.json").unlink(),
    ],
)
def test_a_damaged_entry_is_told_of_and_made_anew(image_folder, own_cache, caplog, damage):
    expected = decoded(image_folder)
    damage(entries(own_cache)[0])
    with caplog.at_level(logging.WARNING, "absl"):
        found = decoded(image_folder)
    assert "damaged, decoded anew" in caplog.text
    np.testing.assert_array_equal(found.images.images, expected.images.images)
    assert from_cache(decoded(image_folder))


def test_a_cache_that_cannot_be_written_is_a_warning(image_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(reading.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING, "absl"):
        found = decoded(image_folder)
    assert len(found.images) == 8
    assert "not cached" in caplog.text


def test_quick_sets_are_not_cached_nor_anything_where_the_variable_is_empty(
    image_folder, own_cache, monkeypatch
):
    decoded(image_folder, worth_seconds=reading.WORTH_SECONDS)
    assert entries(own_cache) == []
    monkeypatch.setenv(reading.CACHE_VARIABLE, "")
    decoded(image_folder)
    assert not from_cache(decoded(image_folder))
    assert reading.cache_folder() is None


def test_the_cache_is_the_users_unless_the_variable_names_another(monkeypatch, tmp_path):
    monkeypatch.delenv(reading.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reading.cache_folder() == tmp_path / "kernsym_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reading.cache_folder() == tmp_path / ".cache" / "kernsym_jax"


def test_what_was_skipped_is_told_of_again_when_it_comes_from_the_cache(image_folder, caplog):
    (image_folder / "train" / "cat" / "1.png").write_bytes(b"no image")
    first = decoded(image_folder, "skip")
    with caplog.at_level(logging.WARNING, "absl"):
        again = data.load(f"folder:{image_folder}", "train", on_broken="skip")
    assert isinstance(again.images, np.memmap)
    assert len(again) == len(first.images) == 7
    assert "skipped 1 of 8 files" in caplog.text
    assert "1.png" in caplog.text


WRITER = """
import hashlib, os, sys
from kernsym_jax.data import folder, reading
from kernsym_jax.data.decode import View
place, first = sys.argv[1], int(sys.argv[2])
for number in range(first, first + 40):
    os.utime(os.path.join(place, "train", "cat", "0.png"), (number, number))
    encoded = folder.load(place, "train")
    found = reading.decode_cached(encoded, View(), "fail", worth_seconds=0.0).images
    print(hashlib.sha256(found.images.tobytes() + found.labels.tobytes()).hexdigest())
"""


def test_processes_that_prepare_one_cache_at_once_all_succeed(image_folder, own_cache):
    with contextlib.ExitStack() as stack:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        writers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", WRITER, str(image_folder), first], **pipes)
            )
            for first in ("100", "120")
        ]
        printed = [writer.communicate(timeout=100) for writer in writers]
    wanted = decoded(image_folder).images
    digest = hashlib.sha256(wanted.images.tobytes() + wanted.labels.tobytes()).hexdigest()
    for writer, (output, errors) in zip(writers, printed, strict=True):
        assert writer.returncode == 0, errors
        assert output.split() == [digest] * 40
        assert "not cached" not in errors
    assert len(entries(own_cache)) == 1
    assert from_cache(decoded(image_folder))


def test_a_set_that_another_process_writes_is_left_to_it(image_folder, own_cache):
    decoded(image_folder)
    (entry,) = entries(own_cache)
    lock = own_cache / f".{entry.name.partition('-')[0]}.lock"
    os.utime(image_folder / "train" / "cat" / "0.png", (1, 1))
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(decoded(image_folder).images) == 8
        assert entries(own_cache) == sorted([entry, lock])
    assert not from_cache(decoded(image_folder))
    assert from_cache(decoded(image_folder))


def test_what_a_killed_writer_left_goes_with_the_next(image_folder, own_cache):
    decoded(image_folder)
    (entry,) = entries(own_cache)
    (own_cache / f".{entry.name.partition('-')[0]}-left").mkdir()
    os.utime(image_folder / "train" / "cat" / "0.png", (1, 1))
    decoded(image_folder)
    assert len(entries(own_cache)) == 1
    assert entries(own_cache) != [entry]


@pytest.fixture
def no_space():
    """Lets no file of this process grow beyond 100 bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_space_for_the_cache_a_run_goes_on_and_says_so_in_one_line(
    image_folder, own_cache, no_space, caplog
):
    with caplog.at_level(logging.WARNING, "absl"):
        found = decoded(image_folder)
    assert len(found.images) == 8
    (record,) = caplog.records
    assert "not cached" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert entries(own_cache) == []


def test_images_that_the_machine_cannot_hold_are_refused_before_they_are_decoded(
    image_folder, black_png, bounded
):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = pages // (6000 * 6000 * 3) + 1
    large = image_folder / "train" / "cat" / "0.png"
    large.write_bytes(black_png(6000, 6000))
    for number in range(1, count):
        large.with_name(f"{number}.png").unlink(missing_ok=True)
        large.with_name(f"{number}.png").symlink_to(large)
    with (
        bounded(2**30),
        pytest.raises(ValueError, match=r"images of 6000×6000 pixels take \d+ GiB"),
    ):
        decoded(image_folder)
