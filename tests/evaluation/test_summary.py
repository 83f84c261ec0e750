"""What is written and shown of an evaluation."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from kernsym_jax import evaluation
from kernsym_jax.evaluation import Shifts

NAMES = ("[bold]cat", "\x1b[31mdog", "nothing")


def results(shifts, flips=True, constant=False):
    images = np.random.default_rng(0).normal(size=(6, 5, 5, 1)).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)

    def predict(images):
        if constant:
            return jnp.ones((len(images), 3))
        return images[:, 0, :3, 0]

    answers = evaluation.measure(predict, [{"image": images, "label": labels}], shifts, flips)
    settings = {"weights": "$a$.th", "data": "folder:[red]x"}
    return {"settings": settings, **evaluation.summarize(answers, NAMES)}


def test_the_figures_of_classes_add_up_to_those_of_all_images():
    found = results(Shifts("zero", -2, 2))
    classes = found["classes"]
    assert list(classes) == list(NAMES[:2])
    for path in (["accuracy"], ["shift_consistency"], ["flip_consistency", "r90", "soft"]):
        values = []
        for figures in (found, *classes.values()):
            for key in path:
                figures = figures[key]
            assert figures["low"] <= figures["value"] <= figures["high"]
            values.append(figures["value"])
        assert values[0] == pytest.approx((4 * values[1] + 2 * values[2]) / 6)
    agreement = np.array(found["shift_consistency"]["map"]["agreement"])
    assert found["shift_consistency"]["value"] == pytest.approx(agreement.mean())


def test_only_what_was_asked_for_is_there_and_all_of_it_is_json():
    found = results(None, flips=False)
    assert not {"shift_consistency", "flip_consistency"} & set(found)
    found = results(Shifts("circular", -1, 1, draws=2, per="batch"))
    # As text, since a difference that no pair has is NaN, which equals nothing.
    assert json.dumps(json.loads(json.dumps(found))) == json.dumps(found)
    assert found["shift_consistency"]["settings"]["per"] == "batch"


@pytest.mark.parametrize(
    "shifts", [Shifts("zero", -1, 1), Shifts("circular", -2, 2, draws=1), Shifts("zero", 0, 0)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_the_map_is_drawn_the_same_every_time(shifts, constant, tmp_path):
    found = results(shifts, flips=False, constant=constant)
    for name in ("a", "b"):
        evaluation.write_map(found["shift_consistency"], "$a$", tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert "$a$" in text
    assert f"{100 * found['shift_consistency']['value']:.2f} %" in text


def test_the_table_shows_every_figure_and_names_as_they_are(capsys):
    found = results(Shifts("zero", -1, 1))
    evaluation.print_consistency(found)
    out = capsys.readouterr().out
    for figures in (found["accuracy"], found["flip_consistency"]["r270"]["rolled_soft"]):
        assert f"{100 * figures['value']:.2f}" in out
    assert "[bold]cat" in out
    assert "folder:[red]x" in out
    assert "\\x1b[31mdog" in out
    assert "\x1b" not in out
