"""Darknet's weights with their configuration, against values calculated by hand."""

import struct

import damage
import network
import numpy as np
import pytest

from kernsym_jax import weights
from kernsym_jax.formats import darknet


def save(folder, sections, values, name="net", header=(0, 2, 0)):
    """Writes a configuration and values after a header."""
    (folder / f"{name}.cfg").write_text("[net]\nchannels=3\nheight=32\nwidth=32\n" + sections)
    seen = struct.pack("<q" if header[1] >= 2 else "<i", 9)
    path = folder / f"{name}.weights"
    path.write_bytes(struct.pack("<3i", *header) + seen + np.asarray(values, "<f4").tobytes())
    return path


def conv(filters, size=3, **settings):
    lines = {"filters": filters, "size": size, **settings}
    return "[convolutional]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())


def test_the_network_has_its_kernels_and_their_geometry(files):
    found = weights.read(files["darknet"] / "net.weights")
    kernels = found.kernels
    assert (found.format, found.order) == ("Darknet", "forward")
    assert list(kernels) == ["conv0", "conv1", "conv3"]
    for kernel, layer in zip(kernels.values(), network.SPATIAL, strict=True):
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])
    assert [kernel.kind for kernel in kernels.values()] == ["conv", "depthwise", "conv"]
    assert (kernels["conv0"].stride, kernels["conv0"].padding) == ((2, 2), ((1, 1), (1, 1)))
    assert (kernels["conv1"].groups, kernels["conv3"].padding) == (4, ((2, 2), (2, 2)))


def test_batchnorm_is_folded_into_the_layer_before_it(files):
    plain = weights.read(files["darknet"]).kernels["conv0"].weight
    folded = weights.read(files["darknet"], fold_batchnorm=True).kernels["conv0"].weight
    # Darknet divides by sqrt(var) + 1e-6; one part in a thousand is more than the difference.
    scale = network.NORM["scale"] / np.sqrt(network.NORM["var"])
    np.testing.assert_allclose(folded, plain * scale, rtol=1e-3)


def test_values_come_in_the_order_of_the_format(tmp_path):
    # Two filters of one tap by three channels: biases 1 2, scales 3 4, means 5 6, variances 7 8.
    path = save(tmp_path, conv(2, 1, batch_normalize=1), range(1, 15))
    arrays = darknet.read_darknet(path).arrays
    assert {name: array.read().reshape(-1).tolist() for name, array in arrays.items()} == {
        "bn0.bias": [1, 2],
        "bn0.weight": [3, 4],
        "bn0.running_mean": [5, 6],
        "bn0.running_var": [7, 8],
        "conv0.weight": [9, 10, 11, 12, 13, 14],
    }


def test_channels_are_followed_through_routes_and_pools(tmp_path):
    sections = (
        conv(4, pad=1)
        + "[maxpool]\nsize=2\nstride=2\n"
        + conv(6, pad=1)
        + "[upsample]\nstride=2\n"
        + "[route]\nlayers = -1, 0\n"  # 6 and 4 channels
        + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"  # 5 of 10
        + conv(2, pad=1, stride=2)
        + "[shortcut]\nfrom=-1\n[reorg]\nstride=2\n"  # 2 channels become 8
        + conv(1, 1, dilation=3)
        + conv(3, 3, pad=1, dilation=2)
        + "[connected]\noutput=5\n"
    )
    # 16 pixels after the stride, 8 after reorg.
    sizes = [4 * 28, 6 * 37, 2 * 46, 1 * 9, 3 * 10, 5 * (3 * 8 * 8 + 1)]
    found = darknet.read_darknet(save(tmp_path, sections, np.zeros(sum(sizes))))
    shapes = [found.arrays[f"{layer}.weight"].shape for layer in found.layers]
    assert shapes == [(4, 3, 3, 3), (6, 4, 3, 3), (2, 5, 3, 3), (1, 8, 1, 1), (3, 1, 3, 3)]
    assert list(found.layers) == ["conv0", "conv2", "conv6", "conv9", "conv10"]
    last = found.layers["conv10"]
    assert (last.padding, last.dilation) == (2, 2)
    assert found.arrays["fc11.weight"].shape == (5, 192)


@pytest.mark.parametrize("minor", [1, 2])
def test_the_counter_is_wide_since_version_0_2(tmp_path, minor):
    path = save(tmp_path, conv(1, 1), [1, 2, 3, 4], header=(0, minor, 0))
    arrays = darknet.read_darknet(path).arrays
    assert arrays["conv0.weight"].read().reshape(-1).tolist() == [2, 3, 4]


def test_a_file_that_ends_between_layers_holds_the_first_ones(tmp_path):
    path = save(tmp_path, conv(2) + conv(3) + "[yolo]\n", np.arange(56))
    found = weights.read(path)
    assert list(found.kernels) == ["conv0"]
    assert found.notes == ("the file ends before the last 1 layers of its configuration",)


@pytest.mark.parametrize(
    ("sections", "count", "says"),
    [
        (conv(2), 55, "cut or damaged"),
        (conv(2), 57, "4 bytes more than"),
        (conv(2), 0, "no values of any layer"),
        (conv(1 << 20, 1 << 20), 56, "cut or damaged"),
        (conv(1 << 21), 56, "filters is '2097152'"),
        (conv(-2), 56, "filters is '-2'"),
        (conv(2, groups=2), 56, "3 and 2 channels in 2 groups"),
        ("[route]\nlayers=-1\n" + conv(2), 56, "no such layers"),
        (conv(2) + "[route]\nlayers=3\n", 56, "no such layers"),
        (conv(2) + "[route]\nlayers=x\n", 56, "layer 1 .route."),
        (conv(2) + "[lstm]\noutput=3\n", 56, "layers of this kind are not read"),
    ],
)
def test_files_that_do_not_fit_their_configuration_are_refused(tmp_path, sections, count, says):
    path = save(tmp_path, sections, np.zeros(count))
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match=says):
        weights.read(path)


def test_the_configuration_is_asked_for(tmp_path):
    path = save(tmp_path, conv(2), np.zeros(56), "yolo_final")
    for name in ("other", "yolo"):
        (tmp_path / f"{name}.cfg").write_text("[net]\nchannels=3\n" + conv(2))
    (tmp_path / "yolo_final.cfg").unlink()
    assert list(weights.read(path).kernels) == ["conv0"]
    (tmp_path / "yolo.cfg").unlink()
    (tmp_path / "other.cfg").unlink()
    with pytest.raises(FileNotFoundError, match=r"configuration beside them: yolo_final\.cfg"):
        weights.read(path)
    (tmp_path / "yolo.cfg").write_text("[convolutional]\n")
    with pytest.raises(ValueError, match=r"it has no \[net\]"):
        weights.read(path)


def test_layers_that_crop_or_have_a_kernel_for_every_place_are_passed(tmp_path):
    sections = "[crop]\ncrop_height=28\ncrop_width=24\n" + conv(2, stride=2, pad=1)
    sections += "[local]\nfilters=3\nsize=3\nstride=1\npad=1\n[connected]\noutput=5\n"
    places = 14 * 12
    sizes = [2, 2 * 3 * 9, 3 * places, places * 3 * 2 * 9, 5, 5 * 3 * places]
    found = weights.read(save(tmp_path, sections, np.arange(sum(sizes)) % 251))
    assert list(found.kernels) == ["conv1"]
    assert found.skipped["local2.weight"].startswith("3-D array")
    one_less = save(tmp_path, sections, np.arange(sum(sizes) - 1) % 251)
    with pytest.raises(ValueError, match=r"layer 3 \[connected\]"):
        weights.read(one_less)
