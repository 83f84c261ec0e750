"""Metrics as JSON lines and as TensorBoard's events."""

import json
import math
import resource
import struct

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tiny import lines

from kernsym_jax import json_file, run_directory
from kernsym_jax.training.pace import MetricsWriter, duration

LAYERS = {"conv1": {"score": 0.5, "E": 0.25}, "conv2": {"score": None, "E": None}}


def events(file):
    """The events of a file, each checked against its sums."""
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data, rest = content[12 : 12 + length], content[16 + length :]
        for part, stored in ((content[:8], content[8:12]), (data, content[12 + length :][:4])):
            total = crc32c(part)
            masked = ((total >> 15 | total << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack("<I", stored) == (masked,)
        found.append(Event.FromString(data))
        content = rest
    return found


def test_a_line_and_an_event_hold_the_same_figures(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(3, "symmetry", {"mean_score": 0.5, "lost": float("nan"), "layers": LAYERS})
    writer.close()
    (line,) = lines(tmp_path)
    assert line == {
        "step": 3, "split": "symmetry", "mean_score": 0.5, "lost": None, "layers": LAYERS
    }  # fmt: skip
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, event = events(file)
    assert version.file_version == "brain.Event:2"
    assert event.step == 3
    shown = {value.tag: value.simple_value for value in event.summary.value}
    assert math.isnan(shown.pop("symmetry/lost"))
    assert shown == {"symmetry/mean_score": 0.5, "symmetry/layers/conv1": 0.5}


def test_a_resumed_session_takes_out_what_it_will_write_again(tmp_path):
    first = MetricsWriter(tmp_path, 0)
    for step in (2, 4, 6):
        first.write(step, "train", {"loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "spl')
    second = MetricsWriter(tmp_path, 4)
    second.write(6, "train", {"loss": 7.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2), (4, 4), (6, 7)]
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name)
    _, start, event = events(newest)
    # TensorBoard hides what other files have from that step on.
    assert start.session_log.status == start.session_log.START
    assert start.step == 5
    assert event.step == 6


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_whole_lines(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    def write() -> None:
        for step in range(100):
            writer.write(step, "train", {"flips": {"only the line holds this": 0.5}})

    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    written = run_directory.read_metrics(tmp_path)
    assert [line["step"] for line in written] == list(range(len(written)))
    assert len(written) > 10


def test_json_files_replace_the_old_ones_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    json_file.write_json(path, {"loss": float("nan"), "step": 3})
    assert json.loads(path.read_text()) == {"loss": None, "step": 3}
    with pytest.raises(TypeError):
        json_file.write_json(path, {"step": object()})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"summary\.json"):
            json_file.write_json(path, list(range(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads(path.read_text())["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_are_written_as_on_a_clock(seconds, text):
    assert duration(seconds) == text
