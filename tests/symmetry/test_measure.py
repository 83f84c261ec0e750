"""Finding the kernels of a weight pytree, and measuring them all at once."""

import operator

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from kernsym_jax import symmetry
from kernsym_jax.symmetry.measure import measure_on_host

PATHS = ["block/conv2/kernel", "conv1/kernel", "point/kernel"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (5, 3), name="conv1")(x)
        x = nn.BatchNorm(use_running_average=True, name="bn1")(x)
        x = Block(name="block")(x)
        x = nn.Conv(2, (1, 1), name="point")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (3, 3), name="conv2")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (5, 3), rngs=rngs)
        self.block = nnx.Dict(conv2=nnx.Conv(4, 4, (3, 3), rngs=rngs))
        self.point = nnx.Conv(4, 2, (1, 1), rngs=rngs)
        self.head = nnx.Linear(2, 3, rngs=rngs)


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def trees(variables):
    module = NnxNet(nnx.Rngs(0))
    state = train_state.TrainState.create(
        apply_fn=Net().apply, params=variables["params"], tx=optax.sgd(0.1, momentum=0.9)
    )
    return {
        "variables": variables,
        "params": variables["params"],
        "frozen": flax.core.freeze(variables),
        "abstract": jax.eval_shape(lambda: variables),
        "boxed": jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), variables),
        "train state": state,
        "nnx module": module,
        "nnx state": nnx.state(module),
        "nnx pure": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
    }


@pytest.mark.parametrize("kind", ["variables", "params", "frozen", "abstract", "boxed", "train state", "nnx module", "nnx state", "nnx pure"])  # fmt: skip # noqa: E501
def test_conv_kernels_are_found_by_path_in_every_kind_of_tree(variables, kind):
    kernels = symmetry.conv_kernels(trees(variables)[kind])
    assert sorted(kernels) == PATHS
    assert {path: tuple(w.shape) for path, w in kernels.items()} == {
        "conv1/kernel": (5, 3, 3, 4),
        "block/conv2/kernel": (3, 3, 4, 4),
        "point/kernel": (1, 1, 4, 2),
    }


def test_measure_gives_every_spatial_kernel_the_figures_of_its_mean(variables):
    measured = jax.jit(symmetry.measure)(variables)
    assert sorted(measured) == PATHS[:2]
    for path, figures in measured.items():
        weight = symmetry.conv_kernels(variables)[path]
        kernel = symmetry.mean_kernel(weight)
        expected = {
            "score": symmetry.symmetry_score(kernel),
            "score_no_identity": symmetry.symmetry_score(kernel, identity=False),
            "score_centered": symmetry.symmetry_score(kernel, centered=True),
            "dc_share": symmetry.dc_share(kernel),
            "d_fliplr": symmetry.transform_distances(kernel)[symmetry.D4.index("fliplr")],
            "d_r90": symmetry.transform_distances(kernel)[symmetry.D4.index("r90")],
            "E": symmetry.irrep_energies(kernel)[4],
            "B1": symmetry.irrep_energies(kernel)[2],
            "skew_x": symmetry.skew(kernel)[0],
            "skew_y": symmetry.skew(kernel)[1],
            "sig_x": symmetry.padding_signature(weight)[0],
            "sig_y": symmetry.padding_signature(weight)[1],
            "sig_p": symmetry.direction_p(symmetry.signature_z(weight)),
            "odd_z_x": symmetry.odd_moment_z(weight)[0],
            "odd_z_y": symmetry.odd_moment_z(weight)[1],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(figures, name), value, atol=1e-6)
            np.testing.assert_allclose(figures.as_dict()[name], value, atol=1e-6)
        assert tuple(figures.as_dict()) == symmetry.FIELDS


def test_measure_of_a_population_equals_its_members(variables):
    noise = jax.random.split(jax.random.key(1), 3)
    members = jax.vmap(lambda key: Net().init(key, jnp.zeros((1, 8, 8, 3))))(noise)
    together = jax.jit(jax.vmap(symmetry.measure))(members)
    measure = jax.jit(symmetry.measure)
    for index in range(3):
        alone = measure(jax.tree.map(operator.itemgetter(index), members))
        for path, figures in alone.items():
            np.testing.assert_allclose(together[path].row[index], figures.row, atol=1e-6)
            assert together[path].score.shape == (3,)


def test_measure_can_be_differentiated_and_gives_nan_for_a_zero_kernel(variables):
    def mean_score(tree):
        scores = [figures.score for figures in symmetry.measure(tree).values()]
        return jnp.mean(jnp.stack(scores))

    slopes = symmetry.conv_kernels(jax.jit(jax.grad(mean_score))(variables))
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    assert float(jnp.abs(slopes["conv1/kernel"]).max()) > 0
    zeroed = jax.tree.map(jnp.zeros_like, variables)
    assert all(np.isnan(f.row).all() for f in symmetry.measure(zeroed).values())


def test_measure_runs_on_sharded_weights(variables):
    mesh = jax.make_mesh((2,), ("model",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, None, "model"))
    weight = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    sharded = jax.jit(symmetry.measure)({"kernel": jax.device_put(weight, spec)})
    plain = symmetry.measure({"kernel": weight})
    np.testing.assert_allclose(sharded["kernel"].row, plain["kernel"].row, atol=1e-5)


def test_a_tree_without_spatial_kernels_is_refused_saying_what_a_kernel_is():
    wanted = r"named 'kernel' with the axes \(kh, kw, in, out\) and kh·kw > 1"
    for tree in ({"head": {"kernel": jnp.ones((4, 2))}}, {}):
        with pytest.raises(ValueError, match=wanted + "$"):
            symmetry.measure(tree)
    with pytest.raises(ValueError, match=wanted + "; found point/kernel, all 1×1"):
        symmetry.measure({"point": {"kernel": jnp.ones((1, 1, 4, 2))}})


@pytest.mark.parametrize(
    "shape", [(3, 3, 8, 5), (7, 7, 3, 4), (2, 3, 4, 4), (1, 5, 3, 7), (4, 4, 1, 1)]
)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_figures_by_numpy_are_those_of_the_compiled_program(shape, size):
    rng = np.random.default_rng(0)
    weight = np.asarray(size * (rng.normal(size=shape) + 0.1), np.float32)
    weight[:, :, 0, -1] = 0  # a slice without a score
    (found,) = measure_on_host([weight])
    with np.errstate(over="ignore"):
        unit = (weight / np.float32(size)).astype(np.float32)
    wanted = symmetry.measure({"conv": {"kernel": jnp.asarray(unit)}})["conv/kernel"].row
    np.testing.assert_allclose(found.row, wanted, rtol=2e-5, atol=2e-6)
    scores = (symmetry.neuron_score(weight), symmetry.single_score(weight))
    np.testing.assert_allclose([found.neuron_score, found.single_score], scores, atol=1e-6)
    np.testing.assert_allclose(found.mean_kernel, weight.mean((2, 3)), rtol=1e-5, atol=1e-6 * size)
    assert found.finite


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_weights_without_figures_have_none_by_numpy_either(value):
    (found,) = measure_on_host([np.full((3, 3, 2, 2), value, np.float32)])
    assert np.isnan(found.row).all()
    assert np.isnan([found.neuron_score, found.single_score]).all()
    assert found.finite == np.isfinite(value)
