"""The table's facts, against the measure and against what was put into the weights."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from kernsym_jax import report, symmetry
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report.summary import measured_direction
from kernsym_jax.weights import ConvKernel, Weights


def weights_of(kernels, order="forward"):
    return Weights(kernels, {"head": "not a convolution"}, "net", "test", order, "HWIO")


def random_weight(shape, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 1, shape).astype(np.float32)


def rows_of(kernels, order="forward", **more):
    table = report.network_table(weights_of(kernels, order), **more)
    return {row["layer"]: row for row in table.rows}


def test_figures_are_those_of_the_measure():
    weight = random_weight((3, 3, 5, 7), offset=0.1)
    row = rows_of({"a": ConvKernel(weight)})["a"]
    figures = symmetry.measure({"kernel": weight})["kernel"].as_dict()
    for name in symmetry.FIELDS:
        assert row[name] == pytest.approx(float(figures[name]), abs=1e-5)
    assert row["single_score"] == pytest.approx(float(symmetry.single_score(weight)), abs=1e-5)
    assert row["neuron_score"] == pytest.approx(float(symmetry.neuron_score(weight)), abs=1e-5)


def test_single_scores_of_large_layers_are_added_up_in_parts():
    weight = random_weight((3, 3, 300, 300))
    row = rows_of({"a": ConvKernel(weight)})["a"]
    assert row["single_score"] == pytest.approx(float(symmetry.single_score(weight)), abs=1e-5)


def test_every_score_stands_beside_the_null_of_its_own_shape():
    rows = rows_of(
        {name: ConvKernel(random_weight((k, k, 2, 2))) for name, k in (("three", 3), ("seven", 7))}
    )
    assert rows["three"]["null_mean"] == pytest.approx(0.482, abs=0.005)
    assert rows["three"]["null_q95"] == pytest.approx(0.650, abs=0.01)
    assert rows["seven"]["null_mean"] == pytest.approx(0.413, abs=0.005)
    symmetric = rows_of({"a": ConvKernel(np.ones((3, 3, 2, 2), np.float32))})["a"]
    assert symmetric["p_value"] == pytest.approx(1 / 20_001)
    assert rows["three"]["p_value"] > 0.001


def test_roles_are_told_apart():
    weight = random_weight((3, 3, 4, 4))
    middle_only = np.zeros_like(weight)
    middle_only[1, 1] = weight[1, 1]
    rows = rows_of(
        {
            "stem": ConvKernel(weight, stride=(2, 2)),
            "plain": ConvKernel(weight, stride=(1, 1)),
            "unknown": ConvKernel(weight),
            "unknown depthwise": ConvKernel(weight[:, :, :1], kind="depthwise"),
            "down": ConvKernel(weight, stride=(2, 1)),
            "separable": ConvKernel(weight[:, :, :1], kind="depthwise", stride=(1, 1)),
            "row": ConvKernel(weight[1:2], stride=(1, 1)),
            "up": ConvKernel(weight, kind="transposed", stride=(2, 2)),
            "dead": ConvKernel(middle_only, stride=(2, 2)),
        }
    )
    assert {name: row["role"] for name, row in rows.items()} == {
        "stem": "first",
        "plain": "internal",
        "unknown": None,
        "unknown depthwise": "depthwise",
        "down": "strided",
        "separable": "depthwise",
        "row": "non-square",
        "up": "transposed",
        "dead": "trivial",
    }
    assert rows["dead"]["score"] == 1
    assert rows["dead"]["note"] == "only the middle tap is left"
    assert rows["down"]["stride"] == "2×1"


def test_the_first_layer_is_not_guessed_where_the_order_is_unknown():
    inner = ConvKernel(random_weight((3, 3, 8, 8)), stride=(1, 1))
    image = ConvKernel(random_weight((3, 3, 3, 8)), stride=(1, 1))
    rows = rows_of({"a": inner, "b": image, "c": inner}, order="name")
    assert [row["role"] for row in rows.values()] == ["internal", "first", "internal"]
    assert all(row["order"] is None for row in rows.values())
    rows = rows_of({"a": inner, "c": inner}, order="name")
    assert [row["role"] for row in rows.values()] == ["internal", "internal"]


def test_what_is_not_known_or_not_defined_is_empty():
    rows = rows_of(
        {
            "zero": ConvKernel(np.zeros((3, 3, 2, 2), np.float32)),
            "constant": ConvKernel(np.ones((3, 3, 2, 2), np.float32)),
            "wide": ConvKernel(random_weight((1, 5, 2, 2))),
        }
    )
    zero, constant, wide = rows.values()
    for name in ("score", "p_value", "E", "skew_x", "single_score", "stride", "uneven_h"):
        assert zero[name] is None
    assert zero["note"].startswith("undefined")
    assert constant["score"] == 1
    assert constant["score_centered"] is None
    assert wide["d_r90"] is None
    assert wide["B1"] is None
    assert wide["d_fliplr"] is not None
    assert (zero["sig_x"], zero["sig_p"], zero["odd_z_x"]) == (None, None, None)
    assert constant["sig_x"] == pytest.approx(0, abs=1e-6)
    assert constant["odd_z_x"] is None
    assert (wide["sig_y"], wide["odd_z_y"]) == (0, None)
    further = (
        "odd_z_x", "odd_z_y", "q_value", "centre_drift", "predicted_skew", "padding_p",
        "padding_p_shuffled", "shows_padding",
    )  # fmt: skip
    assert tuple(wide) == (*report.COLUMNS, *further)


def audited(layer, input_size, stride=2):
    output = tuple((size - 1) // stride + 1 for size in input_size)
    ones = ((1, 1), (1, 1))
    return LayerGeometry(layer, "conv", input_size, output, (3, 3), (stride, stride), (1, 1), ones)


def test_the_audit_fills_in_the_uneven_padding_and_the_skew_it_predicts():
    kernel = ConvKernel(random_weight((3, 3, 2, 2)), stride=(2, 2), padding=((1, 1), (1, 1)))
    rows = rows_of({"stem": kernel, "down": kernel}, geometry=[audited("down", (32, 33))])
    assert (rows["down"]["uneven_h"], rows["down"]["uneven_w"]) == (1, 0)
    assert rows["down"]["predicted_skew"] == "bottom"
    assert rows["stem"]["uneven_h"] is None
    assert rows["stem"]["predicted_skew"] is None
    assert rows["down"]["padding"] == "1"


def grown(x, y, shape=(3, 3, 16, 16), seed=0):
    """Random weights that are larger towards one side: 5 % per cell along each axis."""
    weight = random_weight(shape, seed)
    rows, columns = (np.arange(size) - (size - 1) / 2 for size in shape[:2])
    sizes = 1 + 0.05 * (y * rows[:, None] + x * columns[None, :])
    return (weight * sizes[..., None, None]).astype(np.float32)


def down_row(weight, geometry):
    kernel = ConvKernel(weight, stride=(2, 2))
    stem = ConvKernel(random_weight((3, 3, 3, 4)), stride=(2, 2))
    return rows_of({"stem": stem, "down": kernel}, geometry=geometry)["down"]


UNEVEN, EVEN = ([audited("down", (size, size))] for size in (32, 33))


def test_weights_that_grow_as_the_padding_predicts_are_said_so_with_their_p_value():
    row = down_row(grown(1, 1), UNEVEN)
    assert row["shows_padding"]
    assert row["padding_p"] < 1e-4
    assert report.in_words(row).startswith(
        "weights grow towards the bottom right, as the padding predicts, p = "
    )
    # The sign of the weights, which turns the mean kernel's skew around, changes nothing.
    turned = down_row(-grown(1, 1), UNEVEN)
    assert turned["padding_p"] == pytest.approx(row["padding_p"], rel=1e-3)
    assert turned["skew_x"] == pytest.approx(-row["skew_x"], abs=1e-6)


def test_the_mean_kernel_alone_never_decides_whether_a_layer_shows_the_padding():
    leaning = np.zeros((3, 3, 1, 1), np.float32)
    leaning[1:, 1:] = 1
    weight = random_weight((3, 3, 16, 16))
    weight += 0.3 * (leaning - leaning.mean())
    # As large on the other side: negative there.
    weight[0, :], weight[:, 0] = -weight[2, :], -weight[:, 2]
    row = down_row(weight, UNEVEN)
    assert measured_direction(row["skew_x"], row["skew_y"]) == "bottom right"
    assert not row["shows_padding"]
    assert "odd part" in report.in_words(row)
    assert "as the padding predicts" not in report.in_words(row)
    assert "do not show the padding's growth towards the bottom right" in report.in_words(row)


def test_a_lean_without_a_prediction_or_against_it_is_not_the_paddings():
    even = down_row(grown(1, 1), EVEN)
    assert (even["predicted_skew"], even["shows_padding"], even["padding_p"]) == (None, None, None)
    assert report.in_words(even).startswith("weights grow towards the bottom right, p = ")
    away = down_row(grown(-1, -1), UNEVEN)
    assert away["shows_padding"] is False
    assert report.in_words(away).startswith(
        "weights grow towards the top left, the padding predicts the bottom right, p = "
    )
    # One axis of two that clearly leans the other way is no match either.
    assert down_row(grown(6, -2), UNEVEN)["shows_padding"] is False


def test_only_axes_with_uneven_padding_count():
    tall = [audited("down", (32, 33))]
    along, across = down_row(grown(0, 1.5), tall), down_row(grown(1.5, 0), tall)
    assert along["predicted_skew"] == "bottom"
    assert along["shows_padding"]
    assert across["shows_padding"] is False


def test_random_weights_show_the_padding_as_often_as_chance_allows():
    rows = [down_row(random_weight((3, 3, 8, 8), seed), UNEVEN) for seed in range(60)]
    p = np.sort([row["padding_p"] for row in rows])
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert sum(row["shows_padding"] for row in rows) <= 3


def test_heavy_tails_need_the_shuffled_null_and_both_are_told():
    weight = np.random.default_rng(1).standard_t(2.2, (3, 3, 16, 16)).astype(np.float32)
    weight[2, 2, 0, 0] = 60
    row = down_row(weight, UNEVEN)
    assert row["padding_p"] < 0.01 < row["padding_p_shuffled"]
    assert row["shows_padding"] is False
    words = report.in_words(row)
    assert "for normal weights" in words
    assert "by shuffling their cells" in words


def test_the_verdict_counts_the_layers_and_names_the_size_and_the_remedies():
    drawn = {"a": grown(1, 1), "b": grown(1, 1, seed=1), "c": random_weight((3, 3, 8, 8))}
    kernels = {name: ConvKernel(weight, stride=(2, 2)) for name, weight in drawn.items()}

    def at(size):
        rows = []
        for name in kernels:
            rows.append(dataclasses.replace(audited(name, (size, size)), reads=(len(rows) - 1,)))
            (size, _) = rows[-1].output_size
        return rows

    table = report.network_table(weights_of(kernels), geometry=at(32), rows_at=at)
    assert report.verdict(table) == (
        "2 of 3 strided layers show the padding; 33 px would be even; remedies: this size, "
        "circular padding, or blur pooling, max-pooling or SBPool in place of the strides."
    )
    even = report.network_table(weights_of(kernels), geometry=at(33), rows_at=at)
    assert report.verdict(even) == "No strided layer has uneven padding at 33 px."
    assert report.verdict(report.network_table(weights_of(kernels))) == ""


def test_false_discovery_rates_step_up_over_the_layers_of_a_network():
    kernels = {f"layer{i}": ConvKernel(random_weight((3, 3, 2, 2), i)) for i in range(12)}
    kernels["zero"] = ConvKernel(np.zeros((3, 3, 2, 2), np.float32))
    rows = rows_of(kernels)
    assert rows.pop("zero")["q_value"] is None
    p = np.array([row["p_value"] for row in rows.values()])
    expected = scipy.stats.false_discovery_control(p)
    np.testing.assert_allclose([row["q_value"] for row in rows.values()], expected, rtol=1e-9)


def test_the_summary_counts_internal_and_strided_layers_only():
    symmetric = np.ones((3, 3, 2, 2), np.float32)
    table = report.network_table(
        weights_of(
            {
                "stem": ConvKernel(random_weight((3, 3, 3, 4)), stride=(1, 1)),
                "a": ConvKernel(symmetric, stride=(1, 1)),
                "b": ConvKernel(random_weight((3, 3, 4, 4), 1), stride=(1, 1)),
                "c": ConvKernel(symmetric, stride=(2, 2)),
            }
        )
    )
    scores = [row["score"] for row in table.rows]
    summary = report.summarize(table)
    assert summary["layers"] == 4
    assert summary["first_score"] == scores[0]
    assert summary["internal_mean"] == pytest.approx((1 + scores[2]) / 2)
    assert summary["strided_mean"] == 1
    assert summary["above_null"] == pytest.approx((2 + (scores[2] > 0.65)) / 3)
    # A constant kernel is symmetric by its offset alone.
    assert summary["above_null_centered"] <= 1 / 3
    # Nothing of stride 1 follows the only strided layer: it has no stage to be compared with.
    assert summary["strided_deficit"] is None


def test_strided_layers_are_compared_with_the_stage_they_open():
    plain, down = ({"stride": (s, s)} for s in (1, 2))
    kernels = {
        "stem": ConvKernel(random_weight((3, 3, 3, 4), 0), **plain),
        "down1": ConvKernel(random_weight((3, 3, 4, 4), 1), **down),
        "a": ConvKernel(random_weight((3, 3, 4, 4), 2), **plain),
        "b": ConvKernel(random_weight((3, 3, 4, 4), 3), **plain),
        "down2": ConvKernel(random_weight((3, 3, 4, 4), 4), **down),
        "c": ConvKernel(random_weight((3, 3, 4, 4), 5), **plain),
    }
    score = {name: row["score"] for name, row in rows_of(kernels).items()}
    expected = [(score["a"] + score["b"]) / 2 - score["down1"], score["c"] - score["down2"]]
    summary = report.summarize(report.network_table(weights_of(kernels)))
    assert summary["strided_deficit"] == pytest.approx(np.mean(expected))
    by_name = report.summarize(report.network_table(weights_of(kernels, "name")))
    assert by_name["strided_deficit"] is None


def test_the_way_back_up_belongs_to_no_stage_of_a_strided_layer():
    strides = {"down1": 1, "down2": 2, "inner": 1, "up1": 1}
    kernels = {
        name: ConvKernel(random_weight((3, 3, 4, 4), seed), stride=(stride, stride))
        for seed, (name, stride) in enumerate(strides.items())
    }
    score = {name: row["score"] for name, row in rows_of(kernels).items()}
    sizes = {"down1": 8, "down2": 8, "inner": 4, "up1": 8}
    geometry = [audited(name, (sizes[name],) * 2, stride) for name, stride in strides.items()]
    table = report.network_table(weights_of(kernels), geometry=geometry)
    deficit = report.summarize(table)["strided_deficit"]
    assert deficit == pytest.approx(score["inner"] - score["down2"])


def test_layers_of_unknown_stride_are_not_passed_off_as_internal():
    kernels = {f"layer{i}": ConvKernel(random_weight((3, 3, 4, 4), i)) for i in range(4)}
    table = report.network_table(weights_of(kernels))
    summary = report.summarize(table)
    assert not summary["strides_known"]
    assert summary["internal_mean"] is None
    assert summary["depth_spearman"] is None
    assert summary["mean"] == pytest.approx(np.mean([row["score"] for row in table.rows[1:]]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_said_so_and_drawn_empty(value, tmp_path):
    weight = random_weight((3, 3, 4, 4))
    weight[0, 0, 0, 0] = value
    bad = {"bad": ConvKernel(weight, stride=(1, 1))}
    whole = {"whole": ConvKernel(np.full_like(weight, value), stride=(1, 1))}
    table = report.network_table(weights_of(bad | whole))
    for row in table.rows:
        assert row["score"] is None
        assert row["role"] != "trivial"
        assert row["note"] == "undefined: the weights are not finite"
    report.write_results([table], tmp_path)


def test_names_that_differ_only_in_what_a_file_may_not_hold_are_kept_apart(tmp_path):
    names = ("../../x", "__/__/x", "/../x")
    kernels = {n: ConvKernel(random_weight((3, 3, 1, 1), i)) for i, n in enumerate(names)}
    report.write_results([report.network_table(weights_of(kernels))], tmp_path)
    assert len(np.load(tmp_path / "mean_kernels.npz").files) == 3
