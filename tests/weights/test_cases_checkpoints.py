"""What checkpoints hold beside the network: optimizers, moving averages, objects of any class."""

import datetime
import functools
import gzip
import pickle
import sys
import types

import network
import numpy as np
import pytest
import writers
from flax import serialization

from kernsym_jax import report, weights


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(0.02, 0.05, shape).astype(np.float32)


def pickled(path, tree, protocol=2):
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    return path


def msgpack(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return path


A, B = drawn(8, 3, 3, 3), drawn(8, 8, 3, 3)
STATE_DICT = {"conv.weight": A, "body.weight": B}
ADAM = {"state": {0: {"exp_avg": drawn(8, 3, 3, 3, seed=5)}}, "param_groups": [{"params": [0]}]}


@pytest.mark.parametrize(
    ("tree", "layers", "left"),
    [
        ({"g": STATE_DICT, "g_optim": ADAM}, {"g.conv", "g.body"}, "g_optim"),
        ({"state_dict": STATE_DICT, "anything": ADAM}, {"conv", "body"}, "anything"),
        ({"model": STATE_DICT, "opt": {"state": [drawn(8, 3, 3, 3)], "hypers": []}}, None, "opt"),
        ({"blobs": {"conv1_w": A, "conv1_w_momentum": -A}}, {"conv1_w"}, "blobs/conv1_w_momentum"),
        ({"conv.weight": A, "conv.weight_exp_avg": -A}, {"conv"}, "conv.weight_exp_avg"),
        ({"net": STATE_DICT, "velocity": {n: -a for n, a in STATE_DICT.items()}}, None, "velocity"),
    ],
)
def test_the_state_of_an_optimizer_is_told_by_its_structure(tmp_path, tree, layers, left):
    found = weights.read(pickled(tmp_path / "net.pkl", tree))
    assert set(found.kernels) == (layers or {"conv", "body"})
    assert "optimizer state" in found.skipped[left]


@pytest.mark.parametrize("name", ["opt/0/mu", "tx/inner/nu", "slots_of_some_kind"])
def test_trees_shaped_like_the_parameters_are_an_optimizers(tmp_path, name):
    kernels = {"embedding/kernel": drawn(8, 8, 3, 16), "head/conv/kernel": drawn(3, 3, 16, 4)}
    arrays = {f"params/{path}": kernel for path, kernel in kernels.items()}
    arrays |= {f"{name}/{path}": drawn(*k.shape, seed=9) for path, k in kernels.items()}
    arrays |= {f"{name}/head/scale": drawn(4)}
    np.savez(tmp_path / "net.npz", **arrays)
    found = weights.read(tmp_path / "net.npz")
    assert set(found.kernels) == {"params/embedding", "params/head/conv"}
    assert found.skipped == {name.split("/")[0]: "optimizer state: 3 arrays"}


@pytest.mark.parametrize("key", ["opt_state", "adam"])
def test_a_train_state_in_msgpack_gives_its_parameters(tmp_path, key):
    params = {"conv": {"kernel": drawn(3, 3, 3, 8), "bias": drawn(8)}}
    moments = {"conv": {"kernel": drawn(3, 3, 3, 8, seed=3), "bias": drawn(8)}}
    tree = {"step": 3, "params": params, key: {"0": {"mu": moments, "nu": moments, "count": 3}}}
    found = weights.read(msgpack(tmp_path / "net.msgpack", tree))
    assert list(found.kernels) == ["conv"]
    assert set(found.skipped) == {key, "conv/bias"}


def test_the_target_of_flaxs_old_optimizer_is_the_network(tmp_path):
    kernel = drawn(3, 3, 3, 8)
    moments = {"grad_ema": drawn(3, 3, 3, 8, seed=2), "grad_sq_ema": drawn(3, 3, 3, 8, seed=3)}
    tree = {
        "optimizer": {
            "target": {"conv": {"kernel": kernel}},
            "state": {"step": 3, "param_states": {"conv": {"kernel": moments}}},
        }
    }
    found = weights.read(msgpack(tmp_path / "net.msgpack", tree))
    assert list(found.kernels) == ["conv"]
    assert found.skipped == {"optimizer/state": "optimizer state: 2 arrays"}


@pytest.mark.parametrize(
    ("arrays", "left"),
    [
        ({"conv/kernel:0": A.T, "training/Adam/m/conv/kernel:0": -A.T}, "training"),
        ({"conv/kernel:0": A.T, "opt/conv/kernel:0": -A.T}, "opt"),
    ],
)
def test_moments_beside_arrays_without_a_container_are_an_optimizers(tmp_path, arrays, left):
    np.savez(tmp_path / "net.npz", **arrays)
    found = weights.read(tmp_path / "net.npz")
    assert list(found.kernels) == ["conv"]
    assert found.skipped == {left: "optimizer state: 1 array"}


@pytest.mark.parametrize(
    "name", ["optimizer.state.{}.exp_avg", "net.optim.momentum_buffer.{}.weight"]
)
def test_an_optimizers_state_is_told_in_flat_names_too(tmp_path, name):
    tree = STATE_DICT | {name.format(i): -a for i, a in enumerate(STATE_DICT.values())}
    found = weights.read(pickled(tmp_path / "net.pkl", tree))
    assert list(found.kernels) == ["conv", "body"]
    assert all("optimizer state" in reason for reason in found.skipped.values())
    layers = {"optimizer.conv.weight": A, "optim.momentum_net.weight": B}
    assert len(weights.read(pickled(tmp_path / "net.pkl", layers)).kernels) == 2


def test_a_pair_of_parameters_and_an_optimizers_state_gives_the_parameters(tmp_path):
    params = {"net/conv": {"w": A.T, "b": drawn(8)}}
    moments = {"net/conv": {"w": -A.T, "b": drawn(8)}}
    for state in ({"mu": moments, "nu": moments}, [{"count": 1, "mu": moments}]):
        found = weights.read(pickled(tmp_path / "net.pkl", (params, state)))
        assert list(found.kernels) == ["net/conv"]
        assert "optimizer state" in found.skipped["1"]


@pytest.mark.parametrize("wrap", [tuple, lambda pair: {"params": pair[0], "state": pair[1]}])
def test_haikus_statistics_do_not_keep_the_container_of_the_parameters(tmp_path, wrap):
    params = {"net/conv": {"w": A.T}, "net/more": {"w": B.T}}
    state = {"net/norm/~/mean_ema": {"average": drawn(1, 1, 1, 8), "hidden": drawn(1, 1, 1, 8)}}
    found = weights.read(pickled(tmp_path / "net.pkl", wrap([params, state])))
    assert list(found.kernels) == ["net/conv", "net/more"]


def test_a_head_named_after_a_moment_is_a_layer(tmp_path):
    heads = ("mu", "sigma", "nu", "m")
    tree = {name: {"conv": {"w": drawn(3, 3, 3, 8, seed=i)}} for i, name in enumerate(heads)}
    assert len(weights.read(pickled(tmp_path / "net.pkl", tree)).kernels) == 4
    torch = {f"0.{name}.weight": drawn(8, 8, 3, 3, seed=i) for i, name in enumerate(heads)}
    assert len(weights.read(pickled(tmp_path / "net.pkl", torch)).kernels) == 4


def test_a_lone_average_is_named_as_one(tmp_path):
    tree = {"n_averaged": np.array(3), "module.conv.weight": A}
    found = weights.read(pickled(tmp_path / "net.pkl", tree))
    assert list(found.kernels) == ["conv"]
    assert "moving average" in found.notes[0]


def test_an_optimizer_alone_is_no_network(tmp_path):
    for name, tree in {"optimizer": ADAM, "renamed": {"a": ADAM, "b": ADAM}}.items():
        found = weights.read(pickled(tmp_path / f"{name}.pkl", tree))
        assert found.kernels == {}
        assert all("optimizer state" in reason for reason in found.skipped.values())


@pytest.mark.parametrize(
    ("tree", "layers"),
    [
        (
            {
                "online_model.conv.weight": A,
                "online_model.conv.bias": drawn(8),
                "ema_model.conv.weight": A * 0.9,
                "ema_model.conv.bias": drawn(8),
            },
            {"online_model.conv"},
        ),
        (
            {
                "state_dict": {
                    "model.diffusion_model.conv_in.weight": A,
                    "model_ema.diffusion_modelconv_inweight": A * 0.9,
                }
            },
            {"model.diffusion_model.conv_in"},
        ),
        ({"conv.weight": A, "ema_conv_weight": A * 0.9}, {"conv"}),
        (
            {
                "state_dict": {
                    "backbone.conv.weight": A,
                    "ema_backbone_conv_weight": A * 0.9,
                    "backbone.more.weight": B,
                    "ema_backbone_more_weight": B * 0.9,
                }
            },
            {"backbone.conv", "backbone.more"},
        ),
        ({"model": STATE_DICT, "ema": {"decay": 0.9, "shadow_params": [A * 0.9, B * 0.9]}}, None),
        ({"state_dict": STATE_DICT, "callbacks": {"E": {"weights": [A * 0.9, B * 0.9]}}}, None),
        (
            {
                "model": STATE_DICT,
                "ema": {"state_dict": {n: a * 0.9 for n, a in STATE_DICT.items()}},
            },
            None,
        ),
        ({"encoder_q.conv.weight": A, "encoder_k.conv.weight": A * 0.9}, {"encoder_q.conv"}),
        ({"model": {"conv.weight": A}, "model_ema": {"conv.weight": A * 0.9}}, {"conv"}),
        (
            {"g": {"conv.weight": A}, "d": {"c.weight": B}, "g_ema": {"conv.weight": A * 0.9}},
            {"g.conv", "d.c"},
        ),
        ({"params": {"conv": {"w": A.T}}, "averaged": {"conv": {"w": A.T * 0.9}}}, {"conv"}),
    ],
)
def test_a_moving_average_is_a_second_copy_of_the_same_layers(tmp_path, tree, layers):
    path = pickled(tmp_path / "net.pkl", tree)
    layers = layers or {"conv", "body"}
    for which in (None, "raw"):
        found = weights.read(path, which=which)
        assert set(found.kernels) == layers
        assert any("moving average" in reason for reason in found.skipped.values())
    averaged = weights.read(path, which="ema")
    name = next(name for name in found.kernels if name in averaged.kernels)
    assert set(averaged.kernels) == layers - {"d.c"}
    np.testing.assert_allclose(averaged.kernels[name].weight, found.kernels[name].weight * 0.9)
    assert any("raw weights" in reason for reason in averaged.skipped.values())


def test_an_average_within_a_wrapper_of_its_own_stands_for_the_model(tmp_path):
    tree = {
        "model": {"conv.weight": A},
        "ema": {"online_model.conv.weight": A, "ema_model.conv.weight": A * 0.9},
    }
    path = pickled(tmp_path / "net.pkl", tree)
    np.testing.assert_array_equal(
        weights.read(path).kernels["conv"].weight, A.transpose(2, 3, 1, 0)
    )
    averaged = weights.read(path, which="ema").kernels
    assert list(averaged) == ["conv"]
    np.testing.assert_allclose(averaged["conv"].weight, A.transpose(2, 3, 1, 0) * 0.9)


def test_layers_keep_their_place_whatever_words_their_names_have(tmp_path):
    shape = (3, 3, 3, 8)
    params = {
        name: {"conv": {"kernel": drawn(*shape, seed=seed)}}
        for seed, name in enumerate(("encoder", "shadow_encoder", "opt_flow", "ema"))
    }
    params["avg_conv"] = {"kernel": drawn(*shape, seed=7)}
    found = weights.read(msgpack(tmp_path / "net.msgpack", {"params": params}))
    assert len(found.kernels) == 5
    assert found.skipped == {}
    torch = {
        f"{name}.weight": drawn(8, 8, 3, 3, seed=seed)
        for seed, name in enumerate(
            ("swapped", "mean_pool", "target.conv", "optics", "avgpool_conv")
        )
    }
    assert len(weights.read(pickled(tmp_path / "net.pkl", torch)).kernels) == 5


def test_two_networks_of_one_shape_are_both_read(tmp_path):
    for names in (("netG_A", "netG_B"), ("model", "model2")):
        tree = {
            name: {"conv.weight": drawn(8, 3, 3, 3, seed=seed)} for seed, name in enumerate(names)
        }
        found = weights.read(pickled(tmp_path / "net.pkl", tree))
        assert set(found.kernels) == {f"{name}.conv" for name in names}


def test_a_choice_that_a_file_does_not_offer_is_refused(tmp_path, files):
    path = pickled(tmp_path / "net.pkl", STATE_DICT)
    assert weights.read(path, which="raw").kernels
    for source in (path, files["onnx"], files["keras hdf5"]):
        with pytest.raises(ValueError, match="no moving average in it"):
            weights.read(source, which="ema")
    alone = pickled(tmp_path / "alone.pkl", {"model_ema": STATE_DICT})
    assert weights.read(alone, which="ema").kernels
    with pytest.raises(ValueError, match="the file has no others"):
        weights.read(alone, which="raw")
    with pytest.raises(ValueError, match="unknown choice 'best'"):
        weights.read(path, which="best")


def test_analyze_takes_the_choice(tmp_path, run_binary):
    path = pickled(
        tmp_path / "net.pkl",
        {"model": STATE_DICT, "ema": {name: array * 0.5 for name, array in STATE_DICT.items()}},
    )
    status, _, _ = run_binary("analyze", path, "--which=ema", f"--out={tmp_path / 'report'}")
    assert status == 0
    status, _, errors = run_binary(
        "analyze",
        pickled(tmp_path / "raw.pkl", STATE_DICT),
        "--which=ema",
        f"--out={tmp_path / 'report'}",
    )
    assert status == 2
    assert "no moving average" in errors


def test_a_trainers_other_files_are_neither_networks_nor_errors(tmp_path, monkeypatch):
    module = _module(monkeypatch, "transformers_like", TrainingArguments=object)
    folder = tmp_path / "run"
    folder.mkdir()
    pickled(folder / "net.pt", STATE_DICT)
    pickled(folder / "adam_of_the_run.pt", ADAM)
    pickled(folder / "arguments.bin", module.TrainingArguments())
    pickled(folder / "schedule.pt", {"last_epoch": 3, "base_lrs": [0.1]})
    tables, failed = report.analyze([folder], tmp_path / "report")
    assert [table.source for table in tables] == [str(folder / "net.pt")]
    assert failed == {}
    with pytest.raises(ValueError, match="no spatial convolution"):
        report.analyze([folder / "adam_of_the_run.pt"], tmp_path / "report")


def _module(monkeypatch, name, **classes):
    """A module of another package, whose classes pickles may name."""
    module = types.ModuleType(name)
    for key, base in classes.items():
        setattr(module, key, type(key, (base,), {"__module__": name}))
    monkeypatch.setitem(sys.modules, name, module)
    return module


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def _foreign(monkeypatch):
    module = _module(monkeypatch, "pl", AttributeDict=dict, Thing=object, Items=list)
    thing = module.Thing()
    thing.lr, thing.nested = 1, {"a": datetime.date(2025, 1, 1)}
    items = module.Items([1, 2])
    return {
        "datetime.datetime": datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
        "pl.AttributeDict": module.AttributeDict(lr=1),
        "pl.Thing": {"args": thing, thing: 3},
        "pl.Items": items,
        "functools.partial": functools.partial(print, end=""),
        "inspect._ParameterKind.KEYWORD_ONLY": _Call(
            getattr, __import__("inspect")._ParameterKind, "KEYWORD_ONLY"
        ),
        "numpy": np.array(["text", {"a": 1}], object),
        "decimal.Decimal": __import__("decimal").Decimal(3),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_foreign_objects_become_records_and_are_listed(tmp_path, monkeypatch, protocol, zipped):
    for name, value in _foreign(monkeypatch).items():
        tree = {"state_dict": {"conv.weight": A}, "extra": value}
        content = pickle.dumps(tree, protocol)
        path = tmp_path / "net.pt"
        if zipped:
            writers.write_torch(path, {}, content)
        elif content[:1] == b"\x80":
            path.write_bytes(content)
        else:
            continue  # the first protocols have no mark that tells a pickle
        found = weights.read(path)
        np.testing.assert_array_equal(found.kernels["conv"].weight, A.transpose(2, 3, 1, 0))
        if name != "numpy":
            assert "not run: 1 object" in found.skipped[name]


def test_tensors_inside_foreign_objects_are_found(tmp_path, monkeypatch):
    module = _module(monkeypatch, "pl", Checkpoint=object, Box=dict)
    saved = module.Checkpoint()
    saved.model = module.Box({"conv": {"weight": A}, "more": (1, {"weight": B})})
    found = weights.read(pickled(tmp_path / "net.pkl", saved))
    assert set(found.kernels) == {"conv", "more.1"}


@pytest.mark.parametrize("name", ["module.pt", "module_legacy.pt"])
def test_a_whole_module_gives_its_parameters_by_their_names(fixtures, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.decompress((fixtures / f"{name}.gz").read_bytes()))
    found = weights.read(path)
    assert {layer: kernel.kind for layer, kernel in found.kernels.items()} == {
        "stem": "conv",
        "body.0": "depthwise",
    }
    wanted = network.values("stem.weight", (4, 3, 3, 3)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["stem"].weight, wanted)
    stem, body = found.kernels.values()
    # Something else may pad the input of a module that does not.
    assert (stem.stride, stem.padding, stem.groups) == ((2, 2), None, 1)
    assert (body.stride, body.dilation, body.groups) == ((1, 1), (1, 1), 4)
    # A module has its parts in the order of definition.
    assert (found.order, found.first) == ("file", "stem")
    assert "body.1.running_var" in found.skipped
    assert "not run: 2 objects" in found.skipped["torch.nn.modules.conv.Conv2d"]


def test_a_module_beside_an_average_and_an_optimizer_is_read(tmp_path, monkeypatch):
    module = _module(monkeypatch, "yolo", Model=object, Conv=object)

    def make(scale):
        conv, model = module.Conv(), module.Model()
        conv.__dict__ |= {"_parameters": {"weight": A * scale, "bias": None}, "_modules": {}}
        model.__dict__ |= {"_parameters": {}, "_buffers": {}, "_modules": {"0": conv}, "yaml": {}}
        return model

    tree = {"epoch": 7, "model": make(1), "ema": make(0.9), "optimizer": ADAM, "best": None}
    found = weights.read(pickled(tmp_path / "last.pt", tree))
    assert list(found.kernels) == ["0"]
    assert found.step == 7
    assert set(found.skipped) == {"ema", "optimizer", "yolo.Model", "yolo.Conv"}


def test_modules_inside_a_module_may_have_any_names(tmp_path, monkeypatch):
    module = _module(monkeypatch, "own", Model=object, Conv=object)
    model, names = module.Model(), ["stem", "opt", "optimizer", "ema", "slots", "average"]
    layers = {}
    for index, name in enumerate(names):
        layers[name] = module.Conv()
        weight = drawn(8, 3 if name == "stem" else 8, 3, 3, seed=index)
        layers[name].__dict__ |= {"_parameters": {"weight": weight}, "_modules": {}}
    model.__dict__ |= {"_parameters": {}, "_buffers": {}, "_modules": layers, "optimizer": ADAM}
    found = weights.read(pickled(tmp_path / "net.pt", model))
    assert list(found.kernels) == names
    assert found.skipped["optimizer"].startswith("optimizer state")


def test_the_attributes_of_a_traced_module_are_those_of_a_module(tmp_path):
    # torch.fx gives these to the function that makes the module again.
    conv = {"_parameters": {"weight": A}, "_buffers": {}, "_modules": {}}
    tree = {"_parameters": {}, "_buffers": {}, "_modules": {"opt": conv}, "training": False}
    found = weights.read(pickled(tmp_path / "net.pt", tree))
    assert list(found.kernels) == ["opt"]


@pytest.mark.parametrize("tree", [(STATE_DICT, {"epoch": 3}), [0.5, STATE_DICT]])
def test_a_state_dict_in_a_sequence_keeps_its_names(tmp_path, tree):
    assert list(weights.read(pickled(tmp_path / "net.pt", tree)).kernels) == ["conv", "body"]


@pytest.mark.parametrize(
    ("places", "shape", "says"),
    [
        ([[1, 1, 7], [0, 0, 2], [0, 0, 1], [2, 2, 0]], (8, 3, 3, 3), None),
        ([[1, 1, 8], [0, 0, 2], [0, 0, 1], [2, 2, 0]], (8, 3, 3, 3), "outside its tensor"),
        ([[1, 1, -1], [0, 0, 2], [0, 0, 1], [2, 2, 0]], (8, 3, 3, 3), "outside its tensor"),
        ([[0, 1, 2], [0, 0, 0]], (1 << 20, 1 << 20), None),
    ],
)
def test_sparse_tensors_have_zeros_elsewhere(tmp_path, monkeypatch, places, shape, says):
    names = ("_rebuild_sparse_tensor", "_rebuild_device_tensor_from_numpy")
    module = types.ModuleType("torch._utils")
    for name in names:
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__ = "torch._utils"
        function.__qualname__ = name
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch._utils", module)
    numbers = np.array([1, 2, 4], np.float32)
    sparse, dense = (getattr(module, name) for name in names)
    parts = _Call(dense, np.array(places)), _Call(dense, numbers), shape, False
    path = pickled(tmp_path / "net.pkl", {"s.weight": _Call(sparse, "coo", parts), "c.weight": A})
    if says is not None:
        with pytest.raises(ValueError, match=says):
            weights.read(path)
        return
    found = weights.read(path)
    if len(shape) == 2:
        assert list(found.kernels) == ["c"]
        assert "a tensor kept in a form without plain values" in found.skipped
        return
    wanted = np.zeros(shape, np.float32)
    wanted[1, 0, 0, 2], wanted[7, 2, 1, 0] = 3, 4
    np.testing.assert_array_equal(found.kernels["s"].weight, wanted.transpose(2, 3, 1, 0))


def test_tensors_that_python_itself_pickled_are_read(fixtures, tmp_path):
    path = tmp_path / "tensors.pkl"
    path.write_bytes(gzip.decompress((fixtures / "tensors.pkl.gz").read_bytes()))
    found = weights.read(path)
    wanted = network.values("body.0.weight", (4, 1, 3, 3)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["body.0"].weight, wanted)


@pytest.mark.parametrize(
    ("name", "prefix", "first"), [("quantized.pt", "", 1), ("quantized_frozen.pt", "constants.", 0)]
)
def test_quantised_torchscript_gives_dequantised_kernels(fixtures, tmp_path, name, prefix, first):
    for file in (name, "quantized_wanted.pt"):
        content = gzip.decompress((fixtures / f"{file}.gz").read_bytes())
        (tmp_path / file).write_bytes(content)
    found = weights.read(tmp_path / name).kernels
    wanted = weights.read_arrays(tmp_path / "quantized_wanted.pt")
    assert list(found) == [f"{prefix}{first + index}" for index in range(2)]
    for kernel, array in zip(found.values(), wanted.values(), strict=True):
        np.testing.assert_allclose(kernel.weight, array.read().transpose(2, 3, 1, 0), rtol=1e-6)
    facts = [(kernel.kind, kernel.stride, kernel.groups) for kernel in found.values()]
    if not prefix:
        assert facts == [("conv", (1, 1), 1), ("depthwise", (1, 1), 4)]


def test_a_class_named_by_code_stays_unrun(tmp_path):
    calls = b"\x80\x02}X\x01\x00\x00\x00aclucky\nLuck\n)R(X\x01\x00\x00\x00bK\x01tR"
    calls += b"}X\x01\x00\x00\x00cK\x02sbs."
    path = writers.write_torch(tmp_path / "net.pt", {}, calls)
    found = weights.read(path)
    assert found.kernels == {}
    assert "not run" in found.skipped["lucky.Luck"]
