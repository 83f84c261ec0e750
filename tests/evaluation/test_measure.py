"""Networks whose consistency is known: constant, invariant by construction, counted by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from kernsym_jax import evaluation, models, symmetry
from kernsym_jax.evaluation import Shifts

PIXELS = ((0, 0), (1, 1), (0, 3))
LEFT, RIGHT = 0, 1
# What a difference of 1 between two logits makes of the larger one.
CHANGED = 2 * (1 - math.e / (1 + math.e))


def sides(images):
    """How much light there is in the left and in the right half."""
    half = images.shape[2] // 2
    return jnp.stack([images[:, :, :half].sum((1, 2, 3)), images[:, :, half:].sum((1, 2, 3))], 1)


def lit(pixels=PIXELS, border=0):
    """A 4×4 image with one bright pixel each."""
    images = np.zeros((len(pixels), 4, 4, 1), np.float32)
    for image, (row, column) in zip(images, pixels, strict=True):
        image[row, column] = 1
    return np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))


def batch(images, labels, **more):
    return {"image": images, "label": np.array(labels, np.int32), **more}


def noise(count, size, channels=3, seed=0):
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("mode", ["circular", "zero", "crop"])
@pytest.mark.parametrize("draws", [0, 3])
def test_a_constant_classifier_is_perfectly_consistent(mode, draws):
    images, labels = noise(6, 9), [0, 1, 2, 1, 1, 0]
    answers = evaluation.measure(
        lambda images: jnp.zeros((len(images), 3)).at[:, 1].set(1.0),
        [batch(images, labels)],
        Shifts(mode, -2, 2, draws=draws),
    )
    assert evaluation.accuracy(answers).value == 0.5
    consistency = evaluation.shift_consistency(answers)
    assert (consistency.value, consistency.low, consistency.high) == (1, 1, 1)
    flips = evaluation.flip_consistency(answers)
    assert tuple(flips) == symmetry.D4
    assert {estimate.value for kinds in flips.values() for estimate in kinds.values()} == {1.0}


def test_a_circular_polyphase_net_answers_every_circular_shift_alike():
    model = models.create(
        "cifar_resnet20", padding="circular", downsample="aps", width=4, blocks=(1, 1, 1)
    )
    images = noise(8, 8)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    found = {
        downsample: evaluation.measure(
            Partial(models.vary(model, downsample=downsample).apply, variables),
            [batch(images, [0] * 8)],
            Shifts("circular", -3, 3),
            flips=False,
            devices=jax.devices()[:1],
        )
        for downsample in ("aps", "stride")
    }
    assert (found["aps"].map_agreeing == 8).all()
    assert found["aps"].map_agreeing.shape == (7, 7)
    assert evaluation.shift_consistency(found["aps"]).value == 1
    assert evaluation.shift_consistency(found["stride"]).value < 1


def test_logits_averaged_over_d4_survive_all_eight_elements():
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(6 * 6 * 3, 5)), jnp.float32)

    def plain(images):
        return jnp.tanh(images.reshape(len(images), -1) @ weight)

    def averaged(images):
        return sum(plain(evaluation.flip(images, name)) for name in symmetry.D4)

    batches = [batch(noise(16, 6), [0] * 16)]
    flips = evaluation.flip_consistency(evaluation.measure(averaged, batches))
    assert {kinds["hard"].value for kinds in flips.values()} == {1.0}
    assert min(kinds["soft"].value for kinds in flips.values()) > 1 - 1e-5
    flips = evaluation.flip_consistency(evaluation.measure(plain, batches))
    assert max(kinds["hard"].value for name, kinds in flips.items() if name != "e") < 0.8


# Light in the left half is class 0, light in the right half class 1, and darkness class 0. By hand:
# the pixel (0, 0) may fall off the image and stays class 0; (1, 1) crosses the middle at dx = 1;
# (0, 3) falls off at dy = −1 and at dx = 1.
@pytest.mark.parametrize(("mode", "border"), [("zero", 0), ("crop", 1)])
def test_shift_consistency_is_the_hand_counted_number(mode, border):
    answers = evaluation.measure(
        sides, [batch(lit(border=border), [LEFT, RIGHT, RIGHT])], Shifts(mode, -1, 1), flips=False
    )
    assert (answers.shift_agreement * 9).round().tolist() == [9, 6, 4]
    assert answers.map_agreeing.tolist() == [[2, 2, 1], [3, 3, 1], [3, 3, 1]]
    assert evaluation.shift_consistency(answers).value == pytest.approx(19 / 27)
    assert evaluation.accuracy(answers).value == pytest.approx(2 / 3)
    found = evaluation.agreement_map(answers)
    assert (found["dy"], found["dx"]) == ([-1, 0, 1], [-1, 0, 1])
    assert found["agreement"][0] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    of_right = evaluation.shift_consistency(answers.of_class(RIGHT))
    assert of_right.value == pytest.approx(5 / 9)


def test_circular_shift_consistency_is_the_hand_counted_number():
    answers = evaluation.measure(
        sides, [batch(lit(), [LEFT, LEFT, RIGHT])], Shifts("circular", -1, 1), flips=False
    )
    assert answers.map_agreeing.tolist() == [[2, 3, 1]] * 3
    assert evaluation.shift_consistency(answers).value == pytest.approx(2 / 3)


def test_flip_consistency_is_the_hand_counted_number():
    found = evaluation.flip_consistency(
        evaluation.measure(sides, [batch(lit(), [LEFT, LEFT, RIGHT])])
    )
    thirds = {name: round(3 * kinds["hard"].value) for name, kinds in found.items()}
    assert thirds == {
        "e": 3, "r90": 2, "r180": 0, "r270": 1, "fliplr": 0, "flipud": 3, "transpose": 2,
        "antitranspose": 1,
    }  # fmt: skip
    for name, kinds in found.items():
        soft = (thirds[name] + (3 - thirds[name]) * CHANGED) / 3
        assert kinds["soft"].value == pytest.approx(soft, abs=1e-6)
    # With the roll column c goes to −c mod 4: 0 stays, 1 and 3 change places.
    assert found["fliplr"]["rolled_hard"].value == pytest.approx(1 / 3)
    assert found["flipud"]["rolled_hard"].value == 1
    assert found["transpose"]["rolled_hard"] == found["transpose"]["hard"]


def test_images_that_are_not_square_have_the_four_elements_of_the_rectangle():
    answers = evaluation.measure(sides, [batch(noise(4, 6)[:, :4], [0] * 4)], Shifts("zero", -1, 1))
    assert tuple(answers.flips) == symmetry.RECTANGLE


@pytest.mark.parametrize("per", ["image", "batch"])
def test_drawn_pairs_tend_to_what_all_pairs_give(per):
    draws = 200 if per == "batch" else 50
    shifts = Shifts("circular", -1, 1, draws=draws, per=per)
    batches = [batch(np.repeat(lit([(0, 0)]), 8, 0), [0] * 8)]
    answers = evaluation.measure(sides, batches, shifts, flips=False)
    # Columns after the shift are 3, 0 or 1, that is right, left, left: 5 of 9 pairs agree.
    assert evaluation.shift_consistency(answers).value == pytest.approx(5 / 9, abs=0.08)
    assert answers.map_compared.shape == (5, 5)
    assert answers.map_compared.sum() == 8 * draws
    middle = answers.map_agreeing[:, 2], answers.map_compared[:, 2]
    np.testing.assert_array_equal(*middle)
    again = evaluation.measure(sides, batches, shifts, flips=False)
    np.testing.assert_array_equal(answers.map_agreeing, again.map_agreeing)


def test_images_of_weight_0_do_not_count_and_batches_add_up():
    images, labels = noise(8, 4, 1), np.arange(8) % 2
    shifts = Shifts("circular", -1, 1)
    whole = evaluation.measure(sides, [batch(images, labels)], shifts)
    filled = np.concatenate([images[5:], np.full((5, 4, 4, 1), np.nan, np.float32)])
    weight = np.array([1, 1, 1, 0, 0, 0, 0, 0], np.float32)
    parts = [
        batch(images[:5], labels[:5]),
        batch(filled, [*labels[5:], *[99] * 5], weight=weight),
    ]
    split = evaluation.measure(sides, parts, shifts)
    assert evaluation.summarize(split, "ab") == evaluation.summarize(whole, "ab")


def test_one_device_and_eight_give_the_same_answers():
    model = models.create("small_cnn", width=4, depth=2, strided=(2,))
    images = noise(16, 8)
    predict = Partial(model.apply, jax.jit(model.init)(jax.random.key(1), images[:1]))
    found = [
        evaluation.measure(
            predict, [batch(images, [0] * 16)], Shifts("zero", -1, 1), devices=devices
        )
        for devices in (jax.devices(), jax.devices()[:1])
    ]
    assert len(jax.devices()) == 8
    np.testing.assert_array_equal(found[0].map_agreeing, found[1].map_agreeing)
    for name in symmetry.D4:
        np.testing.assert_allclose(
            found[0].flips[name].similarity, found[1].flips[name].similarity, atol=1e-6
        )


def test_all_offsets_and_flips_share_one_compiled_network():
    traced = []

    def predict(images):
        traced.append(images.shape)
        return sides(images)

    images = noise(4, 6)
    evaluation.measure(predict, [batch(images, [0] * 4)] * 2, Shifts("zero", -2, 2))
    assert traced == [images.shape]


def test_every_copy_between_host_and_device_is_explicit():
    batches = [batch(noise(4, 6), [0] * 4)]
    with jax.transfer_guard("disallow"):
        for draws, mode in itertools.product((0, 2), ("circular", "zero", "crop")):
            evaluation.measure(sides, batches, Shifts(mode, -1, 1, draws=draws))


@pytest.mark.parametrize(
    ("predict", "batches", "shifts", "says"),
    [
        (sides, [], None, "no images"),
        (sides, [batch(lit(), [0] * 3, weight=np.zeros(3))], None, "no images"),
        (sides, [batch(lit(), [0, 1, 2])], None, "labels from 0 to 2 do not fit .* of 2 classes"),
        (sides, [batch(lit(), [0] * 3)], Shifts("zero", -4, 4), "leave nothing of 4×4"),
        (sides, [batch(lit(), [0] * 3)], Shifts("crop", -2, 2), "no window fits in 4×4"),
        (sides, [batch(lit() * np.nan, [0] * 3)], None, "not finite, first those of image 0"),
        (lambda images: images, [batch(lit(), [0] * 3)], None, "logits are .* got .*4, 4, 1"),
    ],
)
def test_what_cannot_be_measured_is_told(predict, batches, shifts, says):
    with pytest.raises(ValueError, match=says):
        evaluation.measure(predict, batches, shifts)
