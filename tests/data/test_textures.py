"""Generated textures: each class's distribution has the group's symmetries and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernsym_jax import data, models, symmetry
from kernsym_jax.data import textures

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


@pytest.mark.parametrize("group", textures.GROUPS)
def test_each_class_is_invariant_under_the_group_and_changed_by_every_other_element(group):
    images = drawn(group)
    for label in (0, 1):
        members = images.images[images.labels == label]
        for element in symmetry.D4:
            change = max(deviations(members, order, element).max() for order in (2, 3))
            assert change < 5 if element in textures.GROUPS[group] else change > 8, element


def test_second_moments_show_every_element_that_is_missing_but_the_half_turn():
    members = drawn("none").images[::2]
    for element in symmetry.D4[1:]:
        change = deviations(members, 2, element).max()
        assert change < 1e-6 if element == "r180" else change > 8, element


def test_groups_share_their_textures_up_to_the_last_transformation():
    plain = drawn("none").images[..., 0]
    for group, elements in textures.GROUPS.items():
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
    variables = model.init(jax.random.key(0), pixels[:1])
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
    logits = model.apply({"params": params, "batch_stats": stats}, seen, train=False)
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
def test_unknown_settings_are_refused(source, says):
    with pytest.raises(ValueError, match=says):
        data.load(source, "train")
