import pytest

from kernsym_jax import report
from kernsym_jax.studies import measures


def row(layer, role, score, **figures):
    return {"layer": layer, "role": role, "score": score, **figures}


ROWS = [
    row("conv1", "first", 0.3),
    row("conv2", "internal", 0.8),
    row("conv3", "strided", 0.5),
    row("conv4", "internal", 0.9),
    row("conv5", "internal", 0.7),
    row("conv6", "strided", 0.6),
    row("conv7", "strided", 0.4),
    row("conv8", "internal", None),
]


def test_the_deficit_is_against_the_internal_layers_up_to_the_next_stride():
    assert report.strided_deficits(ROWS) == pytest.approx({"conv3": 0.3})


def test_layers_without_a_figure_do_not_count():
    assert measures.mean_figure(ROWS[3:], "score") == pytest.approx((0.9 + 0.7 + 0.6 + 0.4) / 4)
    assert measures.mean_figure(ROWS[-1:], "score") is None
    assert measures.mean_figure([], "score") is None


def test_the_diagonal_and_the_mirrors_have_the_signs_that_they_are_named_for():
    assert measures.signature_diagonal({"sig_x": 0.2, "sig_y": 0.4}) == pytest.approx(0.3)
    assert measures.signature_diagonal({"sig_x": None, "sig_y": None}) is None
    assert measures.odd_size({"odd_z_x": -3.0, "odd_z_y": 4.0}) == pytest.approx(5 / 2**0.5)
    assert measures.odd_size({"odd_z_x": None, "odd_z_y": 4.0}) is None
    mirror_symmetric = {"d_fliplr": 0.0, "d_flipud": 0.5}
    assert measures.flipud_over_fliplr(mirror_symmetric) == 0.5
