import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernsym_jax.layers import BatchNorm


def random_map(*shape, offset=0.0):
    return (np.random.default_rng(0).normal(size=shape) * 2 + offset).astype(np.float32)


def train_pass(norm, variables, x):
    return norm.apply(variables, x, True, mutable=["batch_stats"])


def test_training_normalises_by_the_batch_and_keeps_unbiased_running_statistics():
    x = random_map(4, 3, 5, 2, offset=3.0)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updates = train_pass(norm, variables, x)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    after = updates["batch_stats"]
    np.testing.assert_allclose(after["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
    x = random_map(2, 3, 3, 2)
    variables = {
        "params": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.5, 0.0])},
        "batch_stats": {"mean": jnp.array([1.0, -1.0]), "var": jnp.array([4.0, 0.25])},
    }
    y = BatchNorm(epsilon=1e-3).apply(variables, x)
    wanted = (x - [1, -1]) / np.sqrt(np.array([4, 0.25]) + 1e-3) * [2, 1] + [0.5, 0]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_spoil_the_variance_once_it_is_known():
    x = random_map(8, 4, 4, 1, offset=3e4)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    variables["batch_stats"]["mean"] = jnp.array([3e4])
    y, _ = train_pass(norm, variables, x)
    assert np.std(y) == pytest.approx(1.0, abs=1e-3)


def test_statistics_stay_float32_when_bfloat16_is_computed():
    x = jnp.asarray(random_map(4, 3, 3, 2), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    y, updates = train_pass(norm, variables, x)
    assert y.dtype == jnp.bfloat16
    kept = jax.tree.leaves((variables, updates))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}


def test_a_batch_sharded_over_devices_is_normalised_as_a_whole():
    x = random_map(16, 2, 2, 3)
    x[8:] += 5.0
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    wanted, wanted_updates = train_pass(norm, variables, x)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    y, updates = jax.jit(lambda v, x: train_pass(norm, v, x))(variables, sharded)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, wanted_updates)


def test_pmap_shares_statistics_over_its_axis():
    x = random_map(8, 2, 2, 2, 3)
    x[4:] += 5.0
    whole = x.reshape(16, 2, 2, 3)
    variables = BatchNorm().init(jax.random.key(0), whole)
    wanted, wanted_updates = train_pass(BatchNorm(), variables, whole)
    norm = BatchNorm(axis_name="devices")
    y, updates = jax.pmap(lambda x: train_pass(norm, variables, x), axis_name="devices")(x)
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-5), updates, wanted_updates
    )
