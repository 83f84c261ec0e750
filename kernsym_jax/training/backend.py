"""The devices of a run, and its steps compiled for them: ``jit`` over a mesh, or ``pmap``."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernsym_jax import data
from kernsym_jax.layers import by_products
from kernsym_jax.training.state import Recipe, TrainState, initial_state
from kernsym_jax.training.step import Batch, Logs, Sums, eval_step, train_step

MEMBERS, DATA = "members", "data"
"""The axes of the mesh: networks that train as one program, and parts of a batch."""

FASTEST_POPULATIONS = {
    "cpu": ("turn", "2-core x86 server, jax 0.10.2, launch/bench.py population, 2026-11"),
    "gpu": ("vmap", "not measured yet; launch/accelerator.sh --only=population prints a row"),
    "tpu": ("vmap", "not measured yet"),
}
"""The fastest way to train the seeds of a population, and where it was measured.

The keys are kinds of devices, such as ``NVIDIA H100 80GB HBM3``, or else platforms. The ways are
``vmap``, ``products`` and ``turn`` of ``config.population``.
"""

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Logs]]
EvalStep = Callable[[TrainState, Batch], Sums]

_EACH = PartitionSpec(MEMBERS)
# One step for all members: with a vector of steps `jax.lax.cond` would run both of its branches,
# and so measure symmetry at every step.
_STATE_AXES = TrainState(step=None, params=0, batch_stats=0, opt_state=0, ema=0, meter=0)
_STATE_SPECS = TrainState(PartitionSpec(), _EACH, _EACH, _EACH, _EACH, _EACH)


@dataclasses.dataclass(frozen=True)
class Backend:
    """The devices of a run, or of a population that trains as one program.

    Every device holds the whole state and a part of each batch. In a population every array of the
    state but ``step`` has a leading axis of members. That axis is split over the devices as far as
    their number allows; the devices of a member share its batches.

    Attributes:
      kind: ``jit`` (the compiler splits the work) or ``pmap`` (every device runs the step on its
        part of the batch).
      mesh: devices (members, data).
      members: number of networks that train as one program; 0 for one network without that axis.
      products: whether convolutions of that program are batched matrix products.
      seeds: the seed of each network. Compiled steps do not depend on them.
    """

    kind: str
    mesh: Mesh
    members: int = 0
    products: bool = False
    seeds: tuple[int, ...] = dataclasses.field(default=(0,), compare=False)

    @property
    def axis_name(self) -> str | None:
        """The ``axis_name`` of recipes for this backend."""
        return DATA if self.kind == "pmap" or self.members else None

    @property
    def parts(self) -> int:
        """Number of devices that share a batch."""
        return self.mesh.shape[DATA]

    @property
    def process_index(self) -> int:
        """Index of this process."""
        return jax.process_index()

    @property
    def process_count(self) -> int:
        """Processes that share every batch."""
        return jax.process_count()

    @property
    def local_devices(self) -> list[jax.Device]:
        """The devices of this process."""
        return [
            device
            for device in self.mesh.devices.flat
            if device.process_index == jax.process_index()
        ]

    def replicate(self, array: np.ndarray) -> jax.Array:
        """Copies a host array to all devices."""
        return self._put(array)

    def shard(self, array: np.ndarray) -> jax.Array:
        """Splits a batch that all members share over the devices.

        Args:
          array: (batch, …), this process's part of the batch.

        Returns:
          The whole batch; under ``pmap`` with a leading axis of devices.
        """
        if self.kind == "pmap":
            local = self.parts // jax.process_count()
            array = array.reshape(local, -1, *array.shape[1:])
        return self._put(array, DATA)

    def shard_train(self, array: np.ndarray) -> jax.Array:
        """Splits a training batch over the devices; every member has its own.

        Args:
          array: (members, batch, …) for a population, else (batch, …): this process's part.

        Returns:
          The whole batch.
        """
        return self._put(array, MEMBERS, DATA) if self.members else self.shard(array)

    def keys(self, seeds: Sequence[int]) -> jax.Array:
        """Returns the keys of the members (members,), or the key of the one network ()."""
        if self.members:
            make = jax.jit(jax.vmap(jax.random.key), out_shardings=self._sharding(MEMBERS))
            return make(self.replicate(np.array(seeds, np.uint32)))
        (seed,) = seeds
        make = jax.jit(jax.random.key, out_shardings=self._sharding())
        return make(self.replicate(np.array(seed, np.uint32)))

    def initial_state(self, recipe: Recipe, image_shape: tuple[int, ...], seed: int) -> TrainState:
        """Returns the state of one network before its first step, on all devices."""
        recipe = dataclasses.replace(_without_training(recipe), mean=(), std=(), axis_name=None)
        return _initial_state(self, recipe, image_shape)(np.uint32(seed))

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """Returns the joint state of the networks."""
        return _join(self)(*states) if self.members else states[0]

    def member(self, state: TrainState, index: int) -> TrainState:
        """Returns the state of one network, as if it had trained alone, on all devices."""
        if not self.members:
            return state
        return _member(self)(state, self.replicate(np.array(index, np.int32)))

    def compile_train(self, recipe: Recipe) -> TrainStep:
        """Returns the compiled training step; it donates the state."""
        return _compile_train(self, recipe)

    def compile_eval(self, recipe: Recipe) -> EvalStep:
        """Returns the compiled evaluation step; all members evaluate the same batch."""
        return _compile_eval(self, _without_training(recipe))

    def _put(self, array: np.ndarray, *axes: str | None) -> jax.Array:
        # This copy is explicit, but with several processes the guard takes it for an implicit one.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(self._sharding(*axes), array)

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _state_sharding(self) -> Any:
        if not self.members:
            return self._sharding()
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), _STATE_SPECS)


def choose_backend(
    config: ml_collections.ConfigDict, members: int = 0, *, products: bool = False
) -> Backend:
    """Returns the backend that a config asks for.

    Args:
      config: the resolved config of the run, or of a population's first member.
      members: number of networks that train as one program; 0 for one network.
      products: whether convolutions of that program are batched matrix products.

    Raises:
      ValueError: if there are too few devices, or if they cannot share a batch evenly.
    """
    devices = _devices(config.devices)
    side_by_side = math.gcd(members or 1, len(devices))
    mesh = Mesh(np.array(devices).reshape(side_by_side, -1), (MEMBERS, DATA))
    seeds = tuple(range(config.seed, config.seed + max(members, 1)))
    kind = "jit" if members else config.backend
    backend = Backend(kind, mesh, members, products, seeds)
    shares = backend.parts * config.optimizer.accumulate
    if config.batch_size % shares:
        raise ValueError(
            f"config.batch_size={config.batch_size} cannot be split evenly over {backend.parts} "
            f"devices × {config.optimizer.accumulate} parts: wanted a multiple of {shares}"
        )
    return backend


def choose_way(config: ml_collections.ConfigDict) -> str:
    """Returns how the seeds of a population train: ``vmap``, ``products`` or ``turn``.

    Under ``vmap`` convolutions become grouped convolutions, and with ``products`` batched matrix
    products. Either may be many times slower than one network after another (``turn``):
    ``launch/bench.py population`` and ``launch/accelerator.sh`` measure it.

    Args:
      config: the resolved config of the population.

    Raises:
      ValueError: if the config asks for one program over several processes.
    """
    several, asked = jax.process_count() > 1, config.population
    if asked in ("vmap", "products") and several:
        raise ValueError(f"config.population={asked} needs a single process; several take turn")
    if asked == "auto" and not several:
        platform, kind = jax.default_backend(), jax.devices()[0].device_kind
        known = FASTEST_POPULATIONS.get(kind) or FASTEST_POPULATIONS.get(platform)
        return known[0] if known else "turn"
    return asked if asked in ("vmap", "products") else "turn"


def _devices(count: int) -> list[jax.Device]:
    processes = jax.process_count()
    if count % processes or count > jax.device_count():
        noun = "process" if processes == 1 else "processes"
        raise ValueError(
            f"config.devices={count}: there are {jax.device_count()} devices of {processes} "
            f"{noun}, each of which must have as many"
        )
    own = count // processes
    if not count:
        own = 1 if jax.default_backend() == "cpu" else jax.local_device_count()
    return [device for index in range(processes) for device in jax.local_devices(index)[:own]]


@functools.lru_cache(maxsize=16)
def _compile_train(backend: Backend, recipe: Recipe) -> TrainStep:
    step: Callable = functools.partial(train_step, recipe)
    if backend.members:
        step = by_products(step) if backend.products else step
        step = jax.vmap(step, in_axes=(_STATE_AXES, 0, 0), out_axes=(_STATE_AXES, 0))
        batch = PartitionSpec(MEMBERS, DATA)
        return _map(backend, step, (_STATE_SPECS, batch, _EACH), (_STATE_SPECS, _EACH), donate=0)
    if backend.kind == "pmap":
        return _pmap(backend, step, (None, 0, None), donate=0)
    whole, split = backend._sharding(), backend._sharding(DATA)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, split, whole), out_shardings=whole)


def _without_training(recipe: Recipe) -> Recipe:
    """Leaves out what only training needs, so that runs which differ in it share programs."""
    return dataclasses.replace(
        recipe, warmup_steps=0, total_steps=1, augment=data.Augment(), log_every=1,
        label_smoothing=0.0, class_weights=(),
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _compile_eval(backend: Backend, recipe: Recipe) -> EvalStep:
    step: Callable = functools.partial(eval_step, recipe)
    if backend.members:
        step = by_products(step) if backend.products else step
        step = jax.vmap(step, in_axes=(_STATE_AXES, None))
        return _map(backend, step, (_STATE_SPECS, PartitionSpec(DATA)), _EACH)
    if backend.kind == "pmap":
        return _pmap(backend, step, (None, 0))
    whole, split = backend._sharding(), backend._sharding(DATA)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=whole)


def _map(
    backend: Backend, step: Callable, in_specs: Any, out_specs: Any, donate: int | None = None
) -> Callable:
    # Unchecked, because the checker has no rule for some of the operations of our layers.
    mapped = jax.shard_map(
        step, mesh=backend.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=() if donate is None else donate)


def _pmap(backend: Backend, step: Callable, in_axes: tuple, donate: int | None = None) -> Callable:
    mapped = jax.pmap(
        step,
        axis_name=DATA,
        in_axes=in_axes,
        out_axes=None,
        devices=list(backend.mesh.devices.flat),
        donate_argnums=() if donate is None else donate,
    )
    if jax.process_count() == 1:
        return mapped

    def run(*args: Any) -> Any:
        # With several processes pmap copies keys through the host and returns only the results on
        # this process's devices.
        with jax.transfer_guard("allow"):
            results = mapped(*args)
        return jax.tree.map(functools.partial(_as_global, backend._sharding()), results)

    return run


def _as_global(sharding: NamedSharding, array: jax.Array) -> jax.Array:
    copies = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)


@functools.lru_cache(maxsize=16)
def _initial_state(backend: Backend, recipe: Recipe, image_shape: tuple[int, ...]) -> Callable:
    def create(seed: jax.Array) -> TrainState:
        return initial_state(recipe, image_shape, jax.random.key(seed))

    return jax.jit(create, out_shardings=backend._sharding(), compiler_options=_for_one_run())


def _for_one_run() -> dict[str, int] | None:
    """Returns options with which XLA compiles a program that runs once; None for the usual ones."""
    level = "xla_backend_optimization_level"
    # On a CPU the random numbers take seconds to compile at the highest level. Level 1 rounds as
    # that one does, level 0 does not.
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


@functools.cache
def _join(backend: Backend) -> Callable:
    def join(*states: TrainState) -> TrainState:
        joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return dataclasses.replace(joined, step=states[0].step)

    return jax.jit(join, out_shardings=backend._state_sharding())


@functools.cache
def _member(backend: Backend) -> Callable:
    def member(state: TrainState, index: jax.Array) -> TrainState:
        rest = dataclasses.replace(state, step=())
        picked = jax.tree.map(lambda leaf: leaf[index], rest)
        return dataclasses.replace(picked, step=state.step)

    return jax.jit(member, out_shardings=backend._sharding())
