"""BatchNorm folded into the convolution it follows, and the scores of a real network."""

import numpy as np
import pytest

from kernsym_jax import symmetry, weights

_RNG = np.random.default_rng(0)


def _norm(channels):
    return {
        "weight": _RNG.normal(size=channels).astype(np.float32),
        "bias": np.zeros(channels, np.float32),
        "running_mean": np.zeros(channels, np.float32),
        "running_var": _RNG.uniform(0.5, 2, channels).astype(np.float32),
    }


def _folded_layers(tmp_path, layers):
    """Which kernels change when a file with convolutions and norms, in this order, is folded."""
    arrays = {}
    for name, channels in layers:
        if isinstance(channels, tuple):
            arrays[f"{name}.weight"] = _RNG.normal(size=(*channels, 3, 3)).astype(np.float32)
        else:
            arrays |= {f"{name}.{leaf}": values for leaf, values in _norm(channels).items()}
    path = tmp_path / "net.npz"
    np.savez(path, **arrays)
    plain, folded = weights.read(path), weights.read(path, fold_batchnorm=True)
    partners = {}
    for layer, kernel in plain.kernels.items():
        ratio = folded.kernels[layer].weight / kernel.weight
        for name, channels in layers:
            if not isinstance(channels, tuple) and channels == kernel.shape[-1]:
                scale = arrays[f"{name}.weight"] / np.sqrt(arrays[f"{name}.running_var"] + 1e-5)
                if np.allclose(ratio, scale, rtol=1e-5):
                    partners[layer] = name
    return partners


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([("conv1", (8, 3)), ("bn1", 8)], {"conv1": "bn1"}),
        (
            [("conv1", (8, 3)), ("conv2", (8, 8)), ("bn1", 8), ("bn2", 8)],
            {"conv1": "bn1", "conv2": "bn2"},
        ),
        ([("features.0", (8, 3)), ("features.1", 8)], {"features.0": "features.1"}),
        ([("Conv2d_1a.conv", (8, 3)), ("Conv2d_1a.bn", 8)], {"Conv2d_1a.conv": "Conv2d_1a.bn"}),
        ([("b._expand_conv", (8, 3)), ("b._bn0", 8)], {"b._expand_conv": "b._bn0"}),
        # Before its activation comes the norm of the layer before: only the next one may follow.
        ([("bn1", 8), ("conv1", (8, 8)), ("bn2", 8), ("conv2", (8, 8))], {"conv1": "bn2"}),
        ([("conv1", (8, 3)), ("bn1", 4)], {}),
        ([("a.conv1", (8, 3)), ("b.norm", 8)], {}),
        ([("layer", (8, 3)), ("layer_bn", 8)], {"layer": "layer_bn"}),
        ([("features_3", (8, 3)), ("features_4", 8)], {"features_3": "features_4"}),
    ],
)
def test_a_convolution_is_folded_with_the_norm_that_follows_it(tmp_path, layers, wanted):
    assert _folded_layers(tmp_path, layers) == wanted


def test_the_note_counts_what_was_folded(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **{"conv1.weight": np.ones((4, 2, 3, 3), np.float32)})
    assert "0 of 1" in weights.read(path, fold_batchnorm=True).notes[0]
    assert weights.read(path).notes == ()


def test_a_real_networks_scores_raw_and_folded(shared):
    path = shared / "weights" / "cifar_resnet20.th"

    def scores(**options):
        kernels = weights.read(path, **options).kernels
        means = np.stack([np.asarray(symmetry.mean_kernel(k.weight)) for k in kernels.values()])
        return dict(zip(kernels, np.asarray(symmetry.symmetry_score(means)), strict=True))

    raw, folded = scores(), scores(fold_batchnorm=True)
    strided = ("layer2.0.conv1", "layer3.0.conv1")
    internal = [score for layer, score in raw.items() if layer not in ("conv1", *strided)]
    assert raw["conv1"] == pytest.approx(0.59, abs=0.005)
    assert raw["layer2.0.conv1"] == pytest.approx(0.652, abs=0.0005)
    assert folded["layer2.0.conv1"] == pytest.approx(0.426, abs=0.0005)
    assert np.mean(internal) == pytest.approx(0.768, abs=0.0005)
    assert np.mean([raw[layer] for layer in strided]) == pytest.approx(0.722, abs=0.0005)
