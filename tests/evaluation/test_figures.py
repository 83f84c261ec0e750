"""The picture of an answer to masks shows what a network that is known does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

from kernsym_jax import data, evaluation
from kernsym_jax.evaluation import Shifts


def halves(images):
    """Class 0 in the left half of what the network sees, the last of 30 in the right half."""
    right = jnp.arange(images.shape[2]) >= images.shape[2] // 2
    logits = jax.nn.one_hot(jnp.where(right, 29, 0), 30)
    return jnp.broadcast_to(logits[None, None], (*images.shape[:3], 30))


def subject(classes, channels=1):
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (2, 4, 4, channels), np.uint8)
    masks = drawn.integers(0, 2, (2, 4, 4), np.uint8)
    masks[:, 0] = data.VOID
    names = tuple(f"class {label}" for label in range(classes))
    found = data.ImageSet(images, masks, names)
    return evaluation.Subject(Partial(halves), found, (0.5,) * channels, (0.5,) * channels, {})


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        ("circular", [[1, 2, 1, 2]] * 4),
        ("zero", [[1, 2, 1, 0]] * 3 + [[0, 0, 0, 0]]),
    ],
)
def test_answers_are_compared_where_the_shifted_image_shows_the_same_place(mode, outcome):
    found = evaluation.example(subject(30), Shifts(mode, -1, 1), 1)
    assert found.offset == (1, 1)
    assert found.answer.tolist() == found.shifted_answer.tolist() == [[0, 0, 29, 29]] * 4
    np.testing.assert_array_equal(found.outcome, outcome)


def test_a_crop_shows_the_middle_of_image_and_mask():
    whole = subject(30)
    found = evaluation.example(whole, Shifts("crop", -1, 1, window=2), 0)
    np.testing.assert_array_equal(found.image, whole.images.images[0, 1:3, 1:3])
    np.testing.assert_array_equal(found.mask, whole.images.labels[0, 1:3, 1:3])
    # The right column goes out of the window, what was the left one has become the right half.
    np.testing.assert_array_equal(found.outcome, [[2, 0], [0, 0]])


@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (30, 3)])
def test_a_network_may_have_more_classes_than_its_images(classes, channels, tmp_path):
    path = tmp_path / "new" / "a.png"
    assert evaluation.write_picture(subject(classes, channels), Shifts("zero", -1, 1), path)
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_without_shifts_there_is_no_picture(tmp_path):
    assert not evaluation.write_picture(subject(30), None, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "shifts", [Shifts("zero", -1, 1), Shifts("circular", -2, 2, draws=1), Shifts("zero", 0, 0)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_the_map_is_drawn_the_same_every_time(results, shifts, constant, tmp_path):
    found = results(shifts, flips=False, constant=constant)
    for name in ("a", "b"):
        evaluation.write_map(found["shift_consistency"], "$a$", tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert "$a$" in text
    assert f"{100 * found['shift_consistency']['value']:.2f} %" in text
