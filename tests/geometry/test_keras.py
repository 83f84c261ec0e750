"""The audit of Keras models: TensorFlow's SAME, and graphs that join maps."""

import json
import zipfile

import h5py
import numpy as np
import pytest

from kernsym_jax import geometry, report, weights


def layer(kind, name, reads=(), **settings):
    """A layer as Keras 3 writes it: a call of the named layers."""
    tensors = [{"config": {"keras_history": [each, 0, 0]}} for each in reads]
    nodes = [{"args": [tensors], "kwargs": {}}] if reads else []
    config = {"name": name, **settings}
    return {"class_name": kind, "name": name, "config": config, "inbound_nodes": nodes}


def image(size=224, channels=3):
    return layer("InputLayer", "image", batch_shape=[None, size, size, channels])


def conv(name, reads=(), kernel=3, strides=1, padding="same", filters=8, **more):
    settings = {"kernel_size": kernel, "strides": strides, "padding": padding, "filters": filters}
    return layer("Conv2D", name, reads, **settings, **more)


def functional(*layers):
    ends = [["image", 0, 0]], [[layers[-1]["name"], 0, 0]]
    settings = {"layers": layers, "input_layers": ends[0], "output_layers": ends[1]}
    return {"class_name": "Functional", "config": settings}


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"layers": layers}}


@pytest.fixture
def audit(tmp_path):
    """Audits a configuration in a ``.keras`` file at an input size."""

    def run(config, size=None):
        path = tmp_path / "net.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
        return geometry.audit_file(path, size)

    return run


def figures(row):
    return row.padding, row.uneven, row.centre_drift, row.skew


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "drift", "skew"),
    [
        # (112 - 1)·2 + 3 - 224 = 1 pixel, at the far end: half a pixel off the centre.
        (224, 3, ((0, 1), (0, 1)), 0.5, "top left"),
        # (113 - 1)·2 + 3 - 225 = 2 pixels, one at each end.
        (225, 3, ((1, 1), (1, 1)), 0, None),
        # (112 - 1)·2 + 7 - 224 = 5 pixels.
        (224, 7, ((2, 3), (2, 3)), 0.5, "top left"),
        (224, 2, ((0, 0), (0, 0)), 0, None),
    ],
)
def test_same_puts_the_odd_pixel_at_the_far_end(audit, size, kernel, padding, drift, skew):
    config = sequential(image(), conv("stem", kernel=kernel, strides=2))
    (row,) = audit(config, size)
    assert figures(row) == (padding, (0, 0), (drift, drift), skew)


def test_symmetric_padding_in_front_of_valid_loses_its_far_end(audit):
    pad = layer("ZeroPadding2D", "pad", padding=[[1, 1], [1, 1]])
    (row,) = audit(sequential(image(), pad, conv("stem", strides=2, padding="valid")))
    assert row.input_size == (224, 224)
    assert figures(row) == (((1, 1), (1, 1)), (1, 1), (-0.5, -0.5), "bottom right")


def mobile_block(size):
    """Expand, step depthwise, project; then a block of stride 1 with its shortcut."""
    depthwise = {"kernel_size": [3, 3], "padding": "same", "depth_multiplier": 1}
    return functional(
        image(size),
        conv("expand", ["image"], 1, filters=16, use_bias=False),
        layer("BatchNormalization", "expand_bn", ["expand"]),
        layer("ReLU", "expand_relu", ["expand_bn"], max_value=6.0),
        layer("DepthwiseConv2D", "step", ["expand_relu"], strides=[2, 2], **depthwise),
        conv("project", ["step"], 1),
        layer("DepthwiseConv2D", "stay", ["project"], strides=[1, 1], **depthwise),
        layer("Add", "sum", ["project", "stay"]),
        conv("head", ["sum"], 1),
        layer("GlobalAveragePooling2D", "pool", ["head"]),
        layer("Dense", "classes", ["pool"], units=10),
    )


def test_a_block_of_mobilenet(audit):
    rows = audit(mobile_block(112))
    assert [row.layer for row in rows] == ["expand", "step", "project", "stay", "head"]
    assert [row.kind for row in rows] == ["conv", "depthwise", "conv", "depthwise", "conv"]
    step, stay = rows[1], rows[3]
    assert (step.groups, step.input_size, step.output_size) == (16, (112, 112), (56, 56))
    assert figures(step) == (((0, 1), (0, 1)), (0, 0), (0.5, 0.5), "top left")
    assert (stay.groups, stay.padding, stay.even) == (8, ((1, 1), (1, 1)), True)
    assert [row.reads for row in rows] == [(-1,), (0,), (1,), (2,), (2, 3)]
    advice = geometry.advise(rows, lambda size: audit(mobile_block(112), size))
    assert (advice.strided, advice.uneven, advice.nearest) == (1, 1, 113)


def test_advice_names_only_sizes_at_which_a_skip_fits(audit):
    def unet(*way_up):
        return functional(
            image(64),
            layer("ZeroPadding2D", "pad", ["image"], padding=1),
            conv("down", ["pad"], 3, 2, "valid"),
            *way_up,
            layer("Concatenate", "skip", [way_up[-1]["name"], "image"], axis=-1),
            conv("final", ["skip"]),
        )

    settings = {"kernel_size": 2, "strides": 2, "padding": "valid", "filters": 8}
    up = unet(layer("Conv2DTranspose", "up", ["down"], **settings))
    with pytest.raises(ValueError, match="skip: cannot put maps of 1×66×66×8 and 1×65×65×3"):
        audit(up, 65)
    rows = audit(up)
    assert (rows[1].kind, rows[1].input_size, rows[1].output_size) == (
        "transposed",
        (32, 32),
        (64, 64),
    )
    assert geometry.advise(rows, lambda size: audit(up, size)).nearest is None
    cropped = unet(
        layer("UpSampling2D", "up", ["down"], size=2),
        layer("Cropping2D", "crop", ["up"], cropping=[[0, 1], [0, 1]]),
    )
    with pytest.raises(ValueError, match="skip: cannot put maps of 1×63×63×8 and 1×64×64×3"):
        audit(cropped, 64)
    assert geometry.even_input_sizes(lambda size: audit(cropped, size), 65, count=2) == [65, 67]


def test_a_size_at_which_a_dense_layer_does_not_fit_is_no_advice(audit):
    model = sequential(
        image(32), conv("a", strides=2), conv("b", strides=2, padding="valid"),
        layer("Flatten", "flat"), layer("Dense", "head", units=5),
    )  # fmt: skip
    assert audit(model).left_out == {}
    says = "the network does not run at this size: it takes 392 numbers, not 512"
    assert audit(model, 33).left_out == {"head": says}
    assert geometry.advise(audit(model), lambda size: audit(model, size)).nearest == 29
    assert geometry.even_input_sizes(lambda size: audit(model, size), 33, count=1) == [29]


@pytest.mark.parametrize(
    ("settings", "size", "padding", "output"),
    [
        # 5 pixels spread to 9: windows of 3 make 11 of them, less 1 at the far end.
        ({"padding": "same"}, 5, (2, 1), 10),
        ({"padding": "valid"}, 5, (2, 2), 11),
        ({"padding": "same", "output_padding": 0}, 5, (1, 1), 9),
        ({"padding": "same", "output_padding": 1}, 5, (2, 1), 10),
    ],
)
def test_transposed_convolutions_make_the_size_that_keras_makes(
    audit, settings, size, padding, output
):
    up = layer("Conv2DTranspose", "up", filters=4, kernel_size=3, strides=2, **settings)
    (row,) = audit(sequential(image(size), up))
    assert row.output_size == (output, output)
    assert row.padding == (padding, padding)


def test_every_kind_of_window(audit):
    rows = audit(
        sequential(
            image(32),
            conv("dilated", kernel=3, dilation_rate=[2, 2]),
            layer("SeparableConv2D", "sep", filters=4, kernel_size=[3, 3], strides=2),
            layer("MaxPooling2D", "pool", pool_size=[2, 2], strides=None, padding="valid"),
            layer("AveragePooling2D", "mean", pool_size=3, strides=2, padding="same"),
        )
    )
    assert [(row.layer, row.kind, row.output_size[0]) for row in rows] == [
        ("dilated", "conv", 32),
        ("sep", "depthwise", 15),
        ("sep/pointwise_kernel", "conv", 15),
        ("pool", "max_pool", 7),
        ("mean", "avg_pool", 4),
    ]
    assert rows[0].padding == ((2, 2), (2, 2))
    assert rows[3].stride == (2, 2)
    assert rows[3].uneven == (1, 1)


def test_one_dimensional_convolutions_and_causal_padding(audit):
    signal = layer("InputLayer", "signal", batch_shape=[None, 100, 2])
    causal = layer(
        "Conv1D", "causal", filters=4, kernel_size=[3], padding="causal", dilation_rate=[2]
    )
    (row,) = audit(sequential(signal, causal))
    assert (row.padding, row.output_size) == (((4, 0),), (100,))


def test_channels_first_and_names_of_keras_1(audit):
    old = {"nb_filter": 4, "nb_row": 3, "nb_col": 5, "subsample": [2, 2], "border_mode": "same"}
    first = layer("Convolution2D", "c", dim_ordering="th", batch_input_shape=[None, 3, 32, 48])
    first["config"] |= old
    config = {"class_name": "Sequential", "config": [first]}
    (row,) = audit(config)
    assert (row.input_size, row.kernel, row.padding) == ((32, 48), (3, 5), ((0, 1), (1, 2)))


def test_a_model_inside_is_named_and_followed_at_each_of_its_calls(audit):
    inner = sequential(conv("c", strides=2))
    inner["config"]["name"] = inner["name"] = "inner"
    node = {"args": [{"config": {"keras_history": ["image", 0, 0]}}], "kwargs": {}}
    again = {"args": [{"config": {"keras_history": ["inner", 0, 0]}}], "kwargs": {}}
    inner["inbound_nodes"] = [node, again]
    config = functional(image(64), inner)
    config["config"]["output_layers"] = [["inner", 1, 0]]
    rows = audit(config)
    assert [(row.layer, row.input_size) for row in rows] == [
        ("inner/c", (64, 64)),
        ("inner/c", (32, 32)),
    ]


def test_an_unknown_layer_costs_only_the_layers_behind_it(audit):
    config = functional(
        image(32),
        conv("known", ["image"], strides=2),
        layer("Their>Attention", "odd", ["image"]),
        conv("behind", ["odd"]),
        conv("beside", ["known"]),
    )
    rows = audit(config)
    assert [row.layer for row in rows] == ["known", "beside"]
    assert rows.left_out == {"behind": "the size of its input cannot be inferred"}


def test_keras_2_lists_calls_as_lists(audit):
    config = functional(image(32), conv("a", ["image"], strides=2), conv("b", ["image"], strides=2))
    layers = list(config["config"]["layers"])
    for entry in layers[1:]:
        entry["inbound_nodes"] = [[["image", 0, 0, {}]]]
    total = {"name": "total", "function": "math.add"}
    nodes = [["a", 0, 0, {"y": ["b", 0, 0], "name": None}]]
    layers.append({"class_name": "TFOpLambda", "config": total, "inbound_nodes": nodes})
    final = conv("final")
    final["inbound_nodes"] = [[["total", 0, 0, {}]]]
    config["config"] |= {"layers": [*layers, final], "output_layers": [["final", 0, 0]]}
    rows = audit(config)
    assert [row.layer for row in rows] == ["a", "b", "final"]
    assert rows[2].reads == (0, 1)


def test_sizes_that_are_open_are_asked_for(audit):
    config = sequential(image(None), conv("c", strides=2))
    with pytest.raises(ValueError, match=r"net.keras: its input 'image' has shape .*give an input"):
        audit(config)
    (row,) = audit(config, (32, 33))
    assert row.padding == ((0, 1), (1, 1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kernel_size": "3"}, "c: kernel_size is '3'"),
        ({"strides": [1, 2, 3]}, "c: strides is"),
        ({"padding": "reflect"}, "c: unknown padding 'REFLECT'"),
        ({"filters": None}, "c: its number of filters is missing"),
        ({"kernel_size": 99, "padding": "valid"}, "c: its kernel spans 99"),
    ],
)
def test_settings_that_make_no_sense_are_refused(audit, settings, says):
    made = conv("c")
    made["config"] |= settings
    with pytest.raises(ValueError, match=says):
        audit(sequential(image(32), made))


def test_layers_that_read_one_another_and_endless_models_are_refused(audit):
    with pytest.raises(ValueError, match="cannot be inferred"):
        audit(functional(image(8), conv("a", ["b"]), conv("b", ["a"])))
    model = sequential(conv("c"))
    for depth in range(14):
        model["config"]["name"] = model["name"] = f"m{depth}"
        calls = [["image" if turn == 0 else f"m{depth}", max(turn - 1, 0), 0] for turn in range(3)]
        model["inbound_nodes"] = [
            {"args": [{"config": {"keras_history": each}}], "kwargs": {}} for each in calls
        ]
        model = functional(image(8), model)
        model["config"]["output_layers"] = [[f"m{depth}", 2, 0]]
    with pytest.raises(ValueError, match="a graph of more than 50000 operations"):
        audit(model)


def test_weights_alone_have_no_graph(tmp_path, files):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((3, 3, 3, 4), np.float32)
    for source in (path, files["keras 3 weights.h5"], files["torch"], files["safetensors"]):
        with pytest.raises(geometry.NoGraphError, match=r"weights without|no network whose"):
            geometry.audit_file(source, 32)


@pytest.mark.parametrize("name", ["keras 3 keras", "keras 3 h5", "tflite"])
def test_an_analysis_has_the_figures_of_the_audit(files, name):
    rows = {row.layer: row for row in geometry.audit_file(files[name])}
    assert set(weights.read(files[name]).kernels) <= set(rows)
    table = report.read_table(files[name])
    first, second, third = table.rows
    # layer1 reads 16 pixels with SAME and stride 2: one pixel at the far end.
    assert rows[first["layer"]].skew == "top left"
    assert (first["uneven_h"], first["uneven_w"]) == (0, 0)
    # A pad of (0, 1) in front of layer2, and none of layer10.
    assert rows[second["layer"]].padding == ((0, 1), (0, 1))
    assert rows[third["layer"]].padding == ((0, 0), (0, 0))
    assert rows[third["layer"]].output_size == (3, 3)
