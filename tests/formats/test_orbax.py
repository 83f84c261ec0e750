"""Orbax checkpoints of every kind, and our run directories."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import writers
from flax import nnx
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1

from kernsym_jax import weights
from kernsym_jax.formats import orbax


def _params():
    return jax.tree.map(jnp.asarray, network.flax_variables()["params"])


def _check(path, **options):
    found = weights.read(path, **options)
    assert list(found.kernels) == network.SPATIAL
    for layer, kernel in found.kernels.items():
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])
    return found


def test_a_train_state_gives_its_parameters_and_names_its_optimizer(tmp_path):
    state = train_state.TrainState.create(apply_fn=None, params=_params(), tx=optax.adam(1e-3))
    writers.write_orbax(tmp_path / "state", state.replace(step=9))
    found = _check(tmp_path / "state")
    assert found.step == 9
    assert found.skipped["opt_state"].startswith("optimizer state: ")
    assert not any("mu" in name.split("/") for name in found.kernels)


def test_the_newest_step_of_a_manager_is_read_and_unfinished_ones_are_not(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        for step, scale in ((2, 2.0), (10, 1.0), (9, 3.0)):
            params = jax.tree.map(lambda leaf, scale=scale: leaf * scale, _params())
            manager.save(step, args=ocp.args.StandardSave({"params": params}))
            manager.wait_until_finished()
    (tmp_path / "10").rename(tmp_path / "11")
    (tmp_path / "12.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "13").mkdir()
    _check(tmp_path)
    doubled = weights.read(tmp_path / "2").kernels["layer1"].weight
    np.testing.assert_array_equal(doubled, 2 * network.KERNELS["layer1"])


def test_an_item_of_several_is_found(tmp_path):
    with ocp.CheckpointManager(tmp_path, item_names=("state", "notes")) as manager:
        items = {"state": ocp.args.PyTreeSave({"params": _params()})}
        items["notes"] = ocp.args.JsonSave({"a": 1})
        manager.save(5, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    _check(tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_the_second_api_of_orbax_is_read(tmp_path, nested):
    tree = {"params": _params(), "opt_state": {"mu": _params()}} if nested else _params()
    save = getattr(v1, "save", None) or v1.save_pytree  # the name until orbax 0.12
    save(tmp_path / "checkpoint", tree)
    _check(tmp_path / "checkpoint")


def test_arrays_sharded_over_eight_devices_are_read_whole(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    kernel = jnp.arange(3 * 3 * 4 * 16, dtype=jnp.bfloat16).reshape(3, 3, 4, 16)
    sharded = NamedSharding(mesh, PartitionSpec(None, None, None, "devices"))
    tree = {"params": {"conv": {"kernel": jax.device_put(kernel, sharded)}}}
    writers.write_orbax(tmp_path / "sharded", tree)
    found = weights.read(tmp_path / "sharded").kernels["conv"].weight
    np.testing.assert_array_equal(found, kernel.astype(jnp.float32))


def test_a_folder_of_plain_zarr_arrays_is_read(tmp_path):
    path = tmp_path / "with space %20#"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, {"params": _params()})
    _check(path)


def test_a_checkpoint_from_before_there_were_listings_is_read(tmp_path):
    path = writers.write_orbax(tmp_path / "old", {"params": _params()})
    (path / "_METADATA").unlink()
    _check(path)


def test_an_nnx_state_is_read_from_orbax_and_from_msgpack(tmp_path):
    class Net(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    state = nnx.state(Net())
    wanted = np.asarray(state["conv"]["kernel"][...])
    writers.write_orbax(tmp_path / "state", state)
    writers.write_msgpack(tmp_path / "state.msgpack", nnx.to_pure_dict(state))
    for path in (tmp_path / "state", tmp_path / "state.msgpack"):
        found = weights.read(path)
        np.testing.assert_array_equal(found.kernels["conv"].weight, wanted)
        assert "norm/scale" in found.skipped
        assert "1 of 1" in weights.read(path, fold_batchnorm=True).notes[0]


def test_the_tree_is_given_as_numpy_arrays(tmp_path):
    tree = {"a": [np.ones(2), {"b": np.float32(3)}], "c": np.arange(4)}
    writers.write_orbax(tmp_path / "tree", tree)
    found = orbax.read_tree(tmp_path / "tree")
    np.testing.assert_array_equal(found["a"]["0"], np.ones(2))
    assert found["a"]["1"]["b"] == 3
    assert isinstance(found["c"], np.ndarray)
    with pytest.raises(FileNotFoundError, match="nothing"):
        orbax.read_tree(tmp_path / "nothing")


def _run_directory(tmp_path, layers):
    (tmp_path / "config.json").write_text("{}")
    if layers is not None:
        (tmp_path / "layers.json").write_text(json.dumps(layers))
    (tmp_path / "checkpoints").mkdir()
    state = {"params": _params(), "opt_state": {"trace": _params()}, "step": np.int32(7)}
    writers.write_orbax(tmp_path / "checkpoints" / "7", state)
    return tmp_path


def _row(layer, kind, stride):
    return {
        "layer": layer,
        "kind": kind,
        "kernel": [3, 3],
        "stride": [stride, stride],
        "padding": [[1, 1], [0, 2]],
        "dilation": [1, 1],
        "groups": 4 if kind == "depthwise" else 1,
        "input_size": [32, 32],
        "uneven": [1, 1],
    }


def test_a_run_directory_has_its_order_and_geometry_from_its_layers(tmp_path):
    rows = [_row("layer10", "conv", 2), _row("layer2", "depthwise", 1), _row("layer1", "conv", 1)]
    found = weights.read(_run_directory(tmp_path, rows))
    assert list(found.kernels) == ["layer10", "layer2", "layer1"]
    assert (found.format, found.order) == ("run directory", "forward")
    kernel = found.kernels["layer10"]
    assert (kernel.stride, kernel.padding) == ((2, 2), ((1, 1), (0, 2)))
    assert (kernel.dilation, kernel.groups) == ((1, 1), 1)
    assert found.kernels["layer2"].kind == "depthwise"
    np.testing.assert_array_equal(kernel.weight, network.KERNELS["layer10"])
    assert found.skipped["opt_state"].startswith("optimizer state")


def test_a_run_directory_without_layers_is_read_in_the_order_of_names(tmp_path):
    found = _check(_run_directory(tmp_path, None))
    assert found.order == "name"
    assert found.kernels["layer1"].stride is None


@pytest.mark.parametrize("layers", [{"a": 1}, [1], [_row("layer1", "conv", 2) | {"stride": [1]}]])
def test_a_layers_file_of_something_else_is_refused(tmp_path, layers):
    with pytest.raises(ValueError, match=str(tmp_path)):
        weights.read(_run_directory(tmp_path, layers))


def test_a_run_loads_into_its_model(tmp_path):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3), use_bias=False, name="layer1")(x)

    _run_directory(tmp_path, None)
    with pytest.raises(ValueError, match="not in the model"):
        weights.load_into(Net(), tmp_path)
    writers.write_orbax(
        tmp_path / "checkpoints" / "8",
        {"params": {"layer1": {"kernel": network.KERNELS["layer1"]}}, "step": np.int32(8)},
    )
    loaded = weights.load_into(Net(), tmp_path)
    np.testing.assert_array_equal(loaded["params"]["layer1"]["kernel"], network.KERNELS["layer1"])
