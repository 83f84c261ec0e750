"""An evaluation stands beside the symmetry of the network that it is of."""

import json
import shutil

import numpy as np
import orbax.checkpoint
import pytest
from safetensors.numpy import save_file

from kernsym_jax import report
from kernsym_jax.report.summary import answers_sentence, beside_symmetry
from kernsym_jax.symmetry import D4

INTERVAL = {"low": 0.25, "high": 0.75}


def evaluation(weights):
    kinds = ("hard", "soft", "rolled_hard", "rolled_soft")
    flips = {
        name: {kind: {"value": 0.5 + place / 16, **INTERVAL} for kind in kinds}
        for place, name in enumerate(D4)
    }
    return {
        "settings": {"weights": str(weights), "data": "digits"},
        "images": 360,
        "accuracy": {"value": 0.9, **INTERVAL},
        "shift_consistency": {
            "value": 0.625,
            **INTERVAL,
            "settings": {"mode": "zero", "low": -3, "high": 2},
            "map": {"agreement": [[1.0]]},
        },
        "flip_consistency": flips,
        "classes": {},
    }


@pytest.fixture
def weights(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "net.safetensors"
    save_file({f"conv{i}.weight": rng.normal(size=(4, 4, 3, 3)) for i in range(3)}, path)
    return path


def write(path, value):
    path.write_text(json.dumps(value))


def test_each_element_has_the_distance_of_the_kernels_and_the_share_of_the_answers(weights):
    write(weights.with_name("consistency.json"), evaluation(weights))
    table = report.read_table(weights)
    found = {row["element"]: row for row in beside_symmetry(table)}
    assert list(found) == list(D4[1:])
    inner = [row for row in table.rows if row["role"] != "first"]
    assert found["fliplr"]["distance"] == pytest.approx(np.mean([row["d_fliplr"] for row in inner]))
    assert found["r270"]["distance"] == found["r90"]["distance"]
    assert found["flipud"]["hard"]["value"] == 0.5 + D4.index("flipud") / 16


def test_page_json_and_terminal_tell_it(weights, tmp_path, capsys):
    write(weights.with_name("consistency.json"), evaluation(weights))
    shutil.copy(weights, other := weights.with_name("other.safetensors"))
    report.analyze([weights, other], tmp_path / "out")
    words = "Of its answers to 360 images 90.0 % (25.0–75.0) are right"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(words) == 1
    assert "62.5 % (25.0–75.0) stay under zero shifts of −3 to 2 pixels" in printed
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("Symmetry of kernels and of answers") == 1
    assert "same when shifted" in page
    first, second = json.loads((tmp_path / "out/layers.json").read_text())
    assert first["consistency"]["shift_consistency"]["value"] == 0.625
    assert "map" not in first["consistency"]["shift_consistency"]
    # What lies in the folder is of the other file.
    assert second["consistency"] is None


def test_without_an_evaluation_nothing_is_said_of_answers(weights, tmp_path):
    report.analyze([weights], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "Symmetry of kernels and of answers" not in page


def test_answers_for_pixels_have_a_mean_iou_and_accuracy_may_be_all_there_is(weights):
    found = evaluation(weights)
    del found["shift_consistency"], found["flip_consistency"]
    write(weights.with_name("consistency.json"), found)
    alone = answers_sentence(report.read_table(weights).consistency)
    assert alone == "Of its answers to 360 images 90.0 % (25.0–75.0) are right."
    found["mean_iou"] = {"value": 0.5, **INTERVAL}
    write(weights.with_name("consistency.json"), found)
    of_pixels = answers_sentence(report.read_table(weights).consistency)
    assert of_pixels == (
        "Of its answers to pixels of 360 images 90.0 % (25.0–75.0) are right, mean IoU 50.0 % "
        "(25.0–75.0)."
    )


def test_a_damaged_evaluation_is_refused_by_its_name(weights):
    weights.with_name("consistency.json").write_text('{"settings": {"weights": "net.safetensors"}}')
    with pytest.raises(ValueError, match=r"consistency\.json: not an evaluation"):
        report.read_table(weights)


@pytest.mark.parametrize(
    "text", ["[]", "{", "", '{"settings": {}}', '{"settings": {"weights": 3}}']
)
def test_a_file_of_another_program_beside_the_weights_does_not_stop_them(weights, text):
    weights.with_name("consistency.json").write_text(text)
    table = report.read_table(weights)
    assert len(table.rows) == 3
    assert table.consistency is None


@pytest.mark.parametrize("text", ["[]", "{", '{"settings": {}}'])
def test_a_run_with_a_damaged_evaluation_is_refused(weights, text, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "1").mkdir(parents=True)
    orbax.checkpoint.PyTreeCheckpointer().save(
        (run / "checkpoints" / "1" / "state").absolute(),
        {"params": {"conv": {"kernel": np.ones((3, 3, 4, 2), np.float32)}}},
    )
    (run / "config.json").write_text('{"model": {"name": "small_cnn"}}')
    (run / "consistency.json").write_text(text)
    with pytest.raises(ValueError, match=r"consistency\.json: not an evaluation"):
        report.read_table(run)


def test_shifts_without_their_settings_are_damage(weights):
    found = evaluation(weights)
    del found["shift_consistency"]["settings"]["mode"]
    write(weights.with_name("consistency.json"), found)
    with pytest.raises(ValueError, match=r"consistency\.json: not an evaluation"):
        report.read_table(weights)
