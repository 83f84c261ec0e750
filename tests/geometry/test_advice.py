import pytest

from kernsym_jax import geometry

RESNET = [(7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)]


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (224, "uneven at 5 of 5 strided layers; 225 is the nearest size where none is"),
        (227, "uneven at 1 of 5 strided layers; 225 is the nearest size where none is"),
        (225, "even at all 5 strided layers"),
        ((224, 192), "uneven at 5 of 5 strided layers; 225x193 is the nearest size where none is"),
    ],
)
def test_the_verdict_in_one_sentence(size, sentence):
    rows = geometry.layers_at(RESNET, size)
    assert geometry.advise(rows).verdict == sentence
    audited = geometry.advise(rows, lambda size: geometry.layers_at(RESNET, size))
    assert audited.verdict == sentence


def test_the_verdict_where_no_size_helps_and_where_none_is_needed():
    rows = geometry.layers_at(RESNET, 209)
    assert geometry.advise(rows, reach=10).verdict.endswith("; no size nearby where none is")
    assert geometry.advise(rows[2:3]).verdict.startswith("no strided layers")
    assert geometry.advise([]).verdict == "neither convolutions nor pooling windows"
    (even,) = geometry.layers_at([(3, 2, 1)], 9)
    assert geometry.advise([even]).verdict == "even at the one strided layer"


def test_layers_of_one_tap_are_not_counted_but_do_move_the_advice():
    # A shortcut of one tap between two-by-two pools: no padding anywhere, yet it drops a row.
    rows = geometry.layers_at([(2, 2, 0), (1, 2, 0)], 10)
    advice = geometry.advise(rows)
    assert (advice.strided, advice.uneven, advice.nearest) == (1, 0, None)
    assert not rows[1].even or rows[1].input_size == (5, 5)
