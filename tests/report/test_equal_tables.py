"""One network in every format: the same rows."""

import pytest

from kernsym_jax import report, symmetry, weights

# Files of other frameworks, with other networks; tests/formats has their values.
OTHER_NETWORKS = {"torchscript", "darknet", "equinox", "equinox with settings"}

FIGURES = (*symmetry.FIELDS, "null_mean", "null_q95", "p_value", "neuron_score", "single_score")


def rows_by_layer(path):
    rows = report.network_table(weights.read(path)).rows
    # Keras puts a model's layers under names of its own.
    short = [
        next(p.removesuffix("_1") for p in row["layer"].split("/") if p.startswith("layer"))
        for row in rows
    ]
    return dict(zip(short, rows, strict=True))


def test_equal_weights_give_equal_rows_in_every_format(files):
    reference = rows_by_layer(files["npz"])
    assert len(reference) == 3
    for name, path in files.items():
        if name in OTHER_NETWORKS:
            continue
        rows = rows_by_layer(path)
        if name != "keras 3 weights.h5":  # the one that keeps no order
            assert list(rows) == list(reference)
        for layer, row in rows.items():
            if (name, layer) == ("tflite", "layer1"):
                continue  # its converter folds BatchNorm into the kernel
            assert row["kind"] == reference[layer]["kind"]
            for figure in FIGURES:
                assert row[figure] == pytest.approx(reference[layer][figure], abs=1e-6), (
                    f"{name}, {layer}, {figure}"
                )
