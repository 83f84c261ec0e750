"""Numbers, noise and textures: pinned, independent, and of the symmetries that they claim."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from kernsym_jax import data, models, symmetry
from kernsym_jax.data.generated import GROUPS, Purpose, permutation, uniforms, words


def test_words_are_pinned_so_that_everything_drawn_can_be_drawn_again():
    assert words(2, Purpose.ORDER, 7, 3).tolist() == [8893702929424106994, 13357943582879616415]
    assert words(2, Purpose.CROP, 7, 3).tolist() == [3845544696532098304, 9931676275916508706]


def test_streams_of_other_purposes_seeds_and_indices_share_nothing():
    streams = [
        words(50, purpose, seed, index)
        for purpose in Purpose
        for seed in (0, 1, 2**32 - 1)
        for index in (0, 1)
    ]
    assert len(set(np.concatenate(streams).tolist())) == 50 * len(streams)


def test_uniforms_are_spread_evenly_below_one():
    drawn = uniforms((100, 100), Purpose.NOISE, 0, 0)
    assert drawn.shape == (100, 100)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 10, (0, 1))
    assert np.abs(counts - 1000).max() < 150


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_permutation_holds_each_number_once(size):
    order = permutation(size, Purpose.LABELS, 3, 0)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(size))


def test_bytes_and_labels_are_uniform_and_independent():
    noise = data.load("noise:size=16,channels=3,classes=4,n=2000,test=500", "train")
    assert noise.images.shape == (2000, 16, 16, 3)
    counts = np.bincount(noise.images.ravel(), minlength=256)
    expected = noise.images.size / 256
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert np.abs(np.bincount(noise.labels) - 500).max() < 5 * np.sqrt(500)
    flat = noise.images.reshape(2000, -1).astype(float)
    for other in (np.roll(flat, 1, axis=1), np.roll(flat, 1, axis=0)):
        assert abs(np.corrcoef(flat.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(flat.size)
    means = np.array([flat[noise.labels == label].mean() for label in range(4)])
    assert np.abs(means - 127.5).max() < 5 * 74 / np.sqrt(flat.size / 4)


def test_splits_and_seeds_draw_apart_and_repeat_themselves():
    source = "noise:size=5,channels=1,classes=3,n=7,test=7"
    train, test, other = (
        data.load(source, split, seed=seed)
        for split, seed in (("train", 0), ("test", 0), ("train", 1))
    )
    assert (train.images != test.images).mean() > 0.9
    assert (train.images != other.images).mean() > 0.9
    np.testing.assert_array_equal(data.load(source, "train").images, train.images)
    # Pinned, so that an experiment can be repeated years later.
    assert train.images[0, 0, :, 0].tolist() == [185, 232, 99, 255, 208]
    assert train.labels.tolist() == [0, 1, 1, 1, 1, 0, 1]


def test_fake_images_have_the_size_and_classes_of_imagenet_unless_told_otherwise():
    fake = data.load("fake:n=3", "train")
    assert fake.images.shape == (3, 224, 224, 3)
    assert len(fake.classes) == 1000
    small = data.load("fake:size=8,channels=1,classes=2,test=6", "test")
    assert small.images.shape == (6, 8, 8, 1)
    assert len(small.classes) == 2


@pytest.mark.parametrize("source", ["noise:seize=4", "fake:n=-1", "noise:n=1.5", "fake:big"])
def test_unknown_settings_of_noise_are_refused(source):
    with pytest.raises(ValueError, match=r"the source (noise|fake)"):
        data.load(source, "train")


SETTINGS = "size=16,channels=1,classes=2,n=1600,test=40"
REACH = 3


def drawn(group, settings=SETTINGS, split="train", seed=0):
    return data.load(f"textures:group={group},{settings}", split, seed=seed)


def moments(images, order):
    """Of each image: the mean over all points of a point's value and a neighbour's, (n, k, k).

    The second moment is even in the offset to the neighbour; the third weighs the point by its
    square, so that it also tells an offset from its opposite.
    """
    values = images[..., 0].astype(np.float64) - 128
    offsets = range(-REACH, REACH + 1)
    rows = [
        [
            np.mean(values ** (order - 1) * np.roll(values, (-dy, -dx), (1, 2)), axis=(1, 2))
            for dx in offsets
        ]
        for dy in offsets
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def deviations(images, order, element):
    """By how many standard errors each moment's mean changes under an element of D4."""
    each = moments(images, order)
    change = each - np.asarray(symmetry.transform(jnp.asarray(each), element))
    spread = change.std(axis=0) / np.sqrt(len(images))
    # Under rotation the centre stays where it is.
    return np.abs(change.mean(axis=0)) / np.where(spread > 0, spread, 1)


@pytest.mark.parametrize("group", GROUPS)
def test_each_class_is_invariant_under_the_group_and_changed_by_every_other_element(group):
    images = drawn(group)
    for label in (0, 1):
        members = images.images[images.labels == label]
        for element in symmetry.D4:
            change = max(deviations(members, order, element).max() for order in (2, 3))
            assert change < 5 if element in GROUPS[group] else change > 8, element


def test_second_moments_show_every_element_that_is_missing_but_the_half_turn():
    members = drawn("none").images[::2]
    for element in symmetry.D4[1:]:
        change = deviations(members, 2, element).max()
        assert change < 1e-6 if element == "r180" else change > 8, element


def test_groups_share_their_textures_up_to_the_last_transformation():
    plain = drawn("none").images[..., 0]
    for group, elements in GROUPS.items():
        images = drawn(group).images[..., 0]
        matches = np.stack(
            [
                (np.asarray(symmetry.transform(jnp.asarray(plain), name)) == images).all((1, 2))
                for name in elements
            ]
        )
        assert (matches.sum(axis=0) == 1).all()
        assert matches.mean(axis=1).min() > 0.8 / len(elements)


def test_classes_have_one_mean_and_one_deviation():
    images = drawn("none")
    for label in (0, 1):
        members = images.images[images.labels == label].astype(float)
        assert members.mean() == pytest.approx(128, abs=1)
        assert members.std() == pytest.approx(39, abs=2.5)


def test_a_seed_repeats_its_textures_and_more_images_begin_with_the_same():
    few = drawn("d4", SETTINGS.replace("n=1600", "n=100"))
    np.testing.assert_array_equal(few.images, drawn("d4").images[:100])
    assert (drawn("d4", seed=1).images[:100] != few.images).any(axis=(1, 2, 3)).all()
    test = drawn("d4", split="test")
    assert len(test) == 40
    assert (test.images != few.images[:40]).any(axis=(1, 2, 3)).all()
    # Pinned, so that an experiment can be repeated years later.
    assert few.images[0, 0, :6, 0].tolist() == [145, 144, 148, 146, 145, 133]


def test_a_small_network_learns_the_classes():
    settings = "size=16,channels=1,classes=4,n=1024,test=256"
    train, test = (drawn("fliplr", settings, split) for split in ("train", "test"))
    model = models.create("small_cnn", num_classes=4, width=12, depth=2, strided=(2,))
    pixels = data.normalize(jnp.asarray(train.images), *data.channel_statistics(train.images))
    variables = jax.jit(model.init)(jax.random.key(0), pixels[:1])
    optimizer = optax.sgd(0.1, 0.9)

    def loss_of(params, stats, images, labels):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    @jax.jit
    def step(params, stats, state, images, labels):
        (_, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            params, stats, images, labels
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), stats, state

    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    for start in range(0, 5 * 1024, 64):
        part = slice(start % 1024, start % 1024 + 64)
        params, stats, state = step(params, stats, state, pixels[part], train.labels[part])
    seen = data.normalize(jnp.asarray(test.images), *data.channel_statistics(train.images))
    logits = tiny.logits(model, {"params": params, "batch_stats": stats}, seen)
    assert np.mean(np.asarray(logits).argmax(-1) == test.labels) > 0.9


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("textures:group=d3", "group is one of none, fliplr, flipud, rot180, d4, got 'd3'"),
        ("textures:size=9", "size is at least 10, got 9"),
        ("textures:groop=d4", "did you mean 'group'"),
        ("textures:n=many", "n is a whole number above 0, got 'many'"),
        ("textures:n=0", "n is a whole number above 0, got '0'"),
        ("textures:d4", "takes name=value of group, size"),
    ],
)
def test_unknown_settings_of_textures_are_refused(source, says):
    with pytest.raises(ValueError, match=says):
        data.load(source, "train")
