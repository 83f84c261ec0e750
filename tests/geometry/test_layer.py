import json

import pytest

from kernsym_jax import geometry


def row(**changes):
    fields = {
        "layer": "layer1/conv2",
        "kind": "conv",
        "input_size": (56, 57),
        "output_size": (28, 29),
        "kernel": (3, 3),
        "stride": (2, 2),
        "dilation": (1, 1),
        "padding": ((1, 1), (1, 1)),
    }
    return geometry.LayerGeometry(**(fields | changes))


def test_figures_follow_from_the_geometry_axis_by_axis():
    layer = row()
    assert layer.uneven == (1, 0)
    assert layer.dropped == (0, 0)
    assert layer.centre_drift == (-0.5, 0.0)
    assert layer.exposure_gap == (1 / 28, 0.0)
    assert layer.skew == "bottom"
    assert not layer.even
    assert row(input_size=(57, 57)).even


@pytest.mark.parametrize(
    ("changes", "skew"),
    [
        ({"input_size": (56, 56)}, "bottom right"),
        ({"padding": ((0, 1), (0, 1)), "input_size": (56, 56)}, "top left"),
        ({"padding": ((0, 0), (0, 0)), "input_size": (56, 56)}, None),
        ({"padding_mode": "reflect"}, None),
        ({"kind": "max_pool"}, None),
        ({"kind": "depthwise"}, "bottom"),
        ({"input_size": (57, 57)}, None),
        # Uneven, but with every other pixel skipped both sides meet the padding equally often.
        ({"padding": ((2, 2), (2, 2)), "dilation": (2, 2), "input_size": (56, 56)}, None),
    ],
)
def test_weights_lean_away_from_zero_padding_that_one_side_meets_more_often(changes, skew):
    assert row(**changes).skew == skew


def test_a_row_survives_json():
    layer = row(reads=(0, 3), groups=4, padding_mode="mixed", repeats=2)
    written = json.loads(json.dumps(layer.to_dict(), allow_nan=False))
    assert geometry.LayerGeometry.from_dict(written) == layer
    assert written["uneven"] == [1, 0]
    assert written["padding"] == [[1, 1], [1, 1]]
    assert written["centre_drift"] == [-0.5, 0.0]
    assert written["skew"] == "bottom"
    lost = row(reads=None)
    assert geometry.LayerGeometry.from_dict(json.loads(json.dumps(lost.to_dict()))) == lost


def test_a_row_that_lacks_something_is_named():
    written = row().to_dict()
    del written["stride"]
    with pytest.raises(ValueError, match="layer 'layer1/conv2' lacks stride"):
        geometry.LayerGeometry.from_dict(written)
