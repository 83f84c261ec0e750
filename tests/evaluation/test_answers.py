"""Networks that answer each pixel, whose consistency is known or counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from kernsym_jax import evaluation, symmetry
from kernsym_jax.data import VOID
from kernsym_jax.evaluation import Shifts


def noise(count, height, width, channels=3, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masks(count, height, width, classes=3, seed=1):
    drawn = np.random.default_rng(seed).integers(0, classes + 1, (count, height, width))
    return np.where(drawn == classes, VOID, drawn).astype(np.uint8)


def batch(images, labels, **more):
    return {"image": images, "label": labels, **more}


def constant(images):
    return jnp.zeros((*images.shape[:3], 3)).at[..., 1].set(1.0)


def pixelwise(images):
    weight = np.random.default_rng(2).normal(size=(images.shape[-1], 3)).astype(np.float32)
    return images @ jnp.asarray(weight)


def columns(images):
    """Class 0 in the left half of what the network sees, class 1 in the right half."""
    right = jnp.arange(images.shape[2]) >= images.shape[2] // 2
    logits = jax.nn.one_hot(right.astype(jnp.int32), 2)
    return jnp.broadcast_to(logits[None, None], (*images.shape[:3], 2))


@pytest.mark.parametrize("mode", ["circular", "zero", "crop"])
@pytest.mark.parametrize("draws", [0, 3])
def test_a_constant_network_is_perfectly_consistent(mode, draws):
    labels = masks(4, 9, 8)
    shifts = Shifts(mode, -1, 2, draws=draws)
    answers = evaluation.measure(constant, [batch(noise(4, 9, 8), labels)], shifts)
    figures = evaluation.summarize(answers, "abc")
    inside = labels[:, 2:7, 2:6] if mode == "crop" else labels
    assert figures["accuracy"]["value"] == pytest.approx(
        np.sum(inside == 1) / np.sum(inside != VOID)
    )
    for found in (figures, *figures["classes"].values()):
        assert [found["shift_consistency"][name] for name in ("low", "value", "high")] == [1] * 3
        for kinds in found["flip_consistency"].values():
            assert {estimate["value"] for estimate in kinds.values()} == {1.0}
    assert tuple(figures["flip_consistency"]) == symmetry.RECTANGLE


@pytest.mark.parametrize("size", [(6, 6), (5, 5), (4, 6)])
def test_a_pixelwise_network_answers_shifts_and_flips_alike(size):
    batches = [batch(noise(3, *size), masks(3, *size))]
    for shifts in (Shifts("circular", -2, 2), Shifts("zero", -2, 1, draws=4)):
        answers = evaluation.measure(pixelwise, batches, shifts)
        assert evaluation.shift_consistency(answers).value == 1
        flips = evaluation.flip_consistency(answers)
        assert tuple(flips) == symmetry.elements(*size)
        assert {kinds[kind].value for kinds in flips.values() for kind in kinds} == {1.0}


# By hand, on images of 2×4: the answer is 0 0 1 1 wherever the image has gone to. Moved by one to
# the right and back it is 0 1 1 (the last column has left): 2 of 3 pixels stay. Moved to the left
# and back, _ 0 0 1: again 2 of 3. Rolled by one it is 0 1 1 0 for 0 0 1 1: 2 of 4.
@pytest.mark.parametrize(("mode", "stays"), [("zero", 2 / 3), ("circular", 1 / 2)])
@pytest.mark.parametrize("void", [False, True])
def test_shift_consistency_is_the_hand_counted_number_whatever_is_void(mode, stays, void):
    labels = np.full((1, 2, 4), VOID if void else 0, np.uint8)
    labels[0, 0] = [0, 0, 0, 1]
    answers = evaluation.measure(
        columns, [batch(noise(1, 2, 4), labels)], Shifts(mode, -1, 1), flips=False
    )
    assert evaluation.shift_consistency(answers).value == pytest.approx((2 * stays + 1) / 3)
    found = evaluation.agreement_map(answers)
    np.testing.assert_allclose(found["agreement"], [[stays, 1, stays]] * 3, rtol=1e-6)
    assert found["compared"] == [[1] * 3] * 3


def test_shift_consistency_by_class_is_counted_by_hand():
    # Row 0 of the mask is 0 0 0 1, row 1 is void. Over dy = 0 and dx = 0, 1 with zeros: class 0 has
    # 3 pixels that stay at rest; moved, all three are seen and the middle one changes its answer.
    # Class 1 has one pixel, which is not seen when moved.
    labels = np.array([[[0, 0, 0, 1], [VOID] * 4]], np.uint8)
    answers = evaluation.measure(
        columns, [batch(noise(1, 2, 4), labels)], Shifts("zero", 0, 1), flips=False
    )
    # The offset (1, 0) sees row 0 only, and so does (1, 1).
    np.testing.assert_array_equal(answers.shift_by_class[0], [[10, 2], [12, 2]])
    found = evaluation.summarize(answers, ["road", "tree"])["classes"]
    assert found["road"]["shift_consistency"]["value"] == pytest.approx(10 / 12)
    assert found["tree"]["shift_consistency"]["value"] == 1
    assert (found["road"]["pixels"], found["tree"]["images"]) == (3, 1)
    # Column 2 is answered as 1: 2 of 3 pixels of the road, 1 of 2 pixels answered as tree.
    assert found["road"]["iou"]["value"] == pytest.approx(2 / 3)
    assert found["tree"]["iou"]["value"] == pytest.approx(1 / 2)


def test_flip_consistency_is_counted_by_hand_after_undoing_the_flip():
    labels = np.full((1, 4, 4), VOID, np.uint8)
    labels[0, 0, 0], labels[0, 3, 1] = 0, 1
    answers = evaluation.measure(columns, [batch(noise(1, 4, 4), labels)])
    flips = evaluation.flip_consistency(answers)
    hard = {name: kinds["hard"].value for name, kinds in flips.items()}
    # 0 0 1 1 in every row; a quarter turn leaves half of the pixels, a mirror none.
    assert hard == {
        "e": 1, "r90": 0.5, "r180": 0, "r270": 0.5, "fliplr": 0, "flipud": 1, "transpose": 0.5,
        "antitranspose": 0.5,
    }  # fmt: skip
    # With the roll column c has been answered at −c mod 4: 0 1 1 0 for 0 0 1 1.
    rolled = {name: kinds["rolled_hard"].value for name, kinds in flips.items()}
    assert (rolled["fliplr"], rolled["r180"], rolled["flipud"]) == (0.5, 0.5, 1)
    found = evaluation.summarize(answers, "ab")["classes"]
    by_class = {
        name: found[name]["flip_consistency"]["transpose"]["hard"]["value"] for name in "ab"
    }
    # Undone, the transpose answers by rows, 0 in the upper half: (0, 0) stays, (3, 1) does not.
    assert by_class == {"a": 1, "b": 0}


@pytest.mark.parametrize("size", [(6, 6), (5, 5), (6, 5)])
@pytest.mark.parametrize("rolled", [False, True])
def test_undoing_a_flip_gives_the_images_back(size, rolled):
    images = noise(2, *size)
    for name in symmetry.elements(*size):
        back = evaluation.unflip(
            evaluation.flip(jnp.asarray(images), name, rolled=rolled), name, rolled=rolled
        )
        np.testing.assert_array_equal(back, images)


def test_every_drawn_pair_is_compared_where_both_see_the_image():
    # The answer is the place in what the network sees, so that no pixel stays unless both offsets
    # are the same.
    def places(images):
        numbers = jnp.arange(6 * 6).reshape(1, 6, 6)
        return jnp.broadcast_to(jax.nn.one_hot(numbers, 36), (len(images), 6, 6, 36))

    for mode, size in (("zero", 6), ("crop", 10), ("circular", 6)):
        shifts = Shifts(mode, -2, 2, draws=8, window=6 if mode == "crop" else 0)
        batches = [batch(noise(4, size, size), masks(4, size, size))]
        answers = evaluation.measure(places, batches, shifts, flips=False)
        apart = answers.map_compared.sum() - answers.map_compared[4, 4]
        assert answers.map_agreeing.sum() == answers.map_compared[4, 4] < apart


def test_mean_iou_of_a_confusion_matrix_is_the_one_computed_by_hand():
    answered = np.array([[[0, 0, 0, 1], [1, 1, 1, 1]]])
    labels = np.array([[[0, 0, 0, 0], [1, 1, VOID, 1]]], np.uint8)
    matrix = evaluation.confusion_matrix(jnp.asarray(answered), jnp.asarray(labels), 4)
    expected = np.zeros((1, 4, 4))
    expected[0, :2, :2] = [[3, 1], [0, 3]]
    np.testing.assert_array_equal(matrix, expected)
    shares = evaluation.class_iou(evaluation.margins(matrix))
    np.testing.assert_allclose(shares, [[3 / 4, 3 / 4, np.nan, np.nan]])
    # A class that is answered but nowhere in the masks counts, as 0.
    matrix = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    np.testing.assert_allclose(evaluation.class_iou(evaluation.margins(matrix)), [3 / 4, 2 / 5, 0])


def test_accuracy_and_mean_iou_are_of_all_pixels_together_and_void_ones_left_out():
    labels = np.full((2, 2, 4), VOID, np.uint8)
    labels[0, :, :3], labels[1, 0, 2] = 0, 1
    answers = evaluation.measure(columns, [batch(noise(2, 2, 4), labels)])
    assert evaluation.accuracy(answers).value == pytest.approx(5 / 7)
    # Class 0: 4 of 6 pixels. Class 1: 1 of the 3 that are answered as it.
    assert evaluation.mean_iou(answers).value == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert answers.images == 2


def test_images_of_weight_0_do_not_count_and_batches_and_devices_do_not_matter():
    images, labels = noise(8, 6, 6), masks(8, 6, 6)
    weight = np.random.default_rng(5).normal(size=(3, 3, 3, 3)).astype(np.float32)

    def convolved(weight, images):
        return jax.lax.conv_general_dilated(
            images, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    predict, shifts = Partial(convolved, weight), Shifts("zero", -1, 1)
    whole = evaluation.measure(predict, [batch(images, labels)], shifts, devices=jax.devices())
    filled = np.concatenate([images[5:], np.full((5, 6, 6, 3), np.nan, np.float32)])
    parts = [
        batch(images[:5], labels[:5]),
        batch(
            filled,
            np.concatenate([labels[5:], np.full((5, 6, 6), 77, np.uint8)]),
            weight=np.array([1, 1, 1, 0, 0, 0, 0, 0], np.float32),
        ),
    ]
    split = evaluation.measure(predict, parts, shifts, devices=jax.devices()[:1])
    one, other = (evaluation.summarize(answers, "abc") for answers in (whole, split))
    numbers = [
        [leaf for leaf in jax.tree.leaves(found) if not isinstance(leaf, str)]
        for found in (one, other)
    ]
    np.testing.assert_allclose(*numbers, atol=1e-5)


@pytest.mark.parametrize("mode", ["circular", "zero", "crop"])
@pytest.mark.parametrize("draws", [0, 2])
def test_every_copy_is_explicit_and_the_network_is_compiled_once(mode, draws):
    traced = []

    def predict(images):
        traced.append(images.shape)
        return pixelwise(images)

    batches = [batch(noise(4, 6, 6), masks(4, 6, 6))] * 2
    with jax.transfer_guard("disallow"):
        evaluation.measure(predict, batches, Shifts(mode, -1, 1, draws=draws))
    assert len(traced) == 1


LABELS = masks(3, 4, 4)


@pytest.mark.parametrize(
    ("predict", "labels", "shifts", "says"),
    [
        (columns, LABELS, None, "masks with labels from 0 to 2 do not fit a network of 2 classes"),
        (columns, np.full_like(LABELS, VOID), None, "no pixels .* void"),
        (
            lambda images: jnp.zeros((*images.shape[:3], 300)), LABELS, None,
            "at most 255 classes, got a network of 300",
        ),
        (pixelwise, LABELS, Shifts("zero", -4, 4), "leave nothing of 4×4"),
        (pixelwise, LABELS, Shifts("zero", -2, 2, draws=1), "differ by up to 4 .* no pixel"),
        (pixelwise, LABELS, Shifts("crop", -1, 1, window=1), "differ by up to 1 .* no pixel"),
        (lambda images: images[:, 0, 0], LABELS, None, "for images with masks, got .3, 3."),
        (lambda images: images[:, :2], LABELS, None, "for images with masks, got"),
        (pixelwise, np.zeros(3, np.int32), None, "for images with class labels, got .3, 4, 4, 3."),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told(predict, labels, shifts, says):
    with pytest.raises(ValueError, match=says):
        evaluation.measure(predict, [batch(noise(3, 4, 4), labels)], shifts)
