"""The audit of a JAX function: its convolutions and pooling windows, read off its jaxpr."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from kernsym_jax.geometry import jaxpr_shapes, jaxpr_value, weight_path
from kernsym_jax.geometry.axis import Axis, Source, unknown, whole
from kernsym_jax.geometry.jaxpr_value import Value
from kernsym_jax.geometry.layer import LayerGeometry
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.weight_path import Leaf

_POOLS = {
    "reduce_window_max": "max_pool",
    "reduce_window_min": "min_pool",
    "reduce_window_sum": "avg_pool",
    "reduce_window": "pool",
}


def audit(fn: Callable[..., Any], *example_args: Any) -> list[LayerGeometry]:
    """Reads the geometry of every convolution and pooling window off a JAX function.

    The function is traced once and nothing is computed or compiled. Layers are found through jit,
    custom derivatives, remat, shard_map, scan, loops and branches, in any data layout, under vmap,
    for any number of spatial axes. Whatever pads a map in front of a layer is counted as that
    layer's padding: ``pad``, ``jnp.pad`` in any mode, slices put together again, index arrays. A
    strided slice of a map, or a sum of shifted ones, is a layer of kind ``subsample``.

    A layer is named by the path of its weights in ``example_args``, without the argument's number,
    a leading ``params`` collection and the weights' own name (``kernel``, ``weight``, ``w``):
    ``{"params": {"block": {"conv": {"kernel": …}}}}`` gives ``"block/conv"``. Weights may be cast,
    transposed, reshaped, masked or scaled on the way to the convolution. Where ``fn`` is itself a
    pytree (an Equinox or NNX module) or closes over one, its weights give names too.

    Some limits: padding is what is added at the traced size, so TensorFlow's SAME is not told from
    the same numbers given outright; a slice whose start depends on data is taken to start at 0; a
    loop's body is listed once, with ``repeats``; of the forms that ``jax.lax.platform_dependent``
    is given only the default, or else the last, is read; under a vmap over weights JAX makes one
    grouped convolution of all members, and ``groups`` says so.

    Args:
      fn: any function that JAX can trace.
      *example_args: pytrees of arrays or `jax.ShapeDtypeStruct`; other leaves, such as flags, are
        passed as they are.

    Returns:
      A row per layer, in the order in which they run.

    Raises:
      ValueError: naming the layer, for an empty map or a kernel larger than its padded input.
    """
    leaves, arrays, call = weight_path.arguments(fn, example_args)
    jaxpr = jax.make_jaxpr(call)(*arrays)
    inputs = []
    for number, (leaf, array) in enumerate(zip(leaves, arrays, strict=True), start=1):
        axes = tuple(whole(Source(size, frozenset({-number}))) for size in array.shape)
        inputs.append(Value(axes, array.shape, depends=True, leaf=leaf))
    network = Network()
    for value in _Follower(network, weight_path.closed_over(fn)).follow(jaxpr, inputs):
        network.leave(value.axes)
    return network.rows()


def audit_module(
    module: Any, input_size: int | Sequence[int], channels: int = 3
) -> list[LayerGeometry]:
    """Reads the geometry of a Linen module off its trace, without making any weights.

    Args:
      module: its call takes images (batch, height, width, channels) float32 and ``train``.
      input_size: pixels of the images, one number for squares or (height, width).
      channels: of the images.

    Returns:
      As `audit`.

    Raises:
      ValueError: as `audit`, and whatever the module raises at this size.
    """
    size = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
    return audit(lambda v, x: module.apply(v, x, train=False), variables, images)


class _Follower:
    """Follows values through the equations of a jaxpr."""

    def __init__(self, network: Network, names: dict[int, Leaf]):
        self.network = network
        self.names = names

    def follow(self, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr, closed or with nothing to close over."""
        consts = [self._constant(const) for const in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

        def value(atom: Any) -> Value:
            return self._constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            outputs = self._apply(equation, [value(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _apply(self, equation: Any, inputs: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        depends = any(value.depends for value in inputs)
        # Convolutions and windows of constants are no layers: they count, for instance, how much of
        # each window lies on the image.
        if name == "conv_general_dilated" and depends:
            return [self._conv(params, inputs, equation.outvars[0].aval.shape)]
        if name in _POOLS and depends:
            image = next(value for value in inputs if value.depends)
            made = self._pool(_POOLS[name], params, image, equation.outvars[0].aval.shape)
            return [made] * len(equation.outvars)
        if name == "scan":
            return self._scan(params, inputs)
        if name == "while":
            return self._while(params, inputs)
        if name == "cond" and params.get("branches_platforms"):
            # One function in a form for each platform (`jax.lax.platform_dependent`): the last form
            # is that of every other platform where there is one.
            return self.follow(params["branches"][-1], inputs[1:])
        if name == "cond":
            branches = [functools.partial(self.follow, j, inputs[1:]) for j in params["branches"]]
            results = zip(*self.network.branches(branches), strict=True)
            return [jaxpr_value.either(self.network, values) for values in results]
        for jaxpr in (j for value in params.values() for j in _jaxprs(value)):
            inner = getattr(jaxpr, "jaxpr", jaxpr)
            shapes = [v.aval.shape for v in inner.invars]
            if name == "shard_map":  # each device sees its part
                inputs = [v.resized(shape) for v, shape in zip(inputs, shapes, strict=True)]
            same_inputs = shapes == [v.shape for v in inputs]
            if same_inputs and len(inner.outvars) == len(equation.outvars):
                outputs = zip(self.follow(jaxpr, inputs), equation.outvars, strict=True)
                return [v.resized(out.aval.shape) for v, out in outputs]
        return jaxpr_shapes.apply(self.network, equation, inputs)

    def _constant(self, array: Any) -> Value:
        return jaxpr_value.constant(array)._replace(leaf=self.names.get(id(array)))

    def _scan(self, params: Any, inputs: list[Value]) -> list[Value]:
        consts, carries = params["num_consts"], params["num_carry"]
        carried = _in_loop(inputs[consts : consts + carries], inputs)
        slices = [value.without_first() for value in inputs[consts + carries :]]
        with self.network.loop(params["length"]):
            outputs = self.follow(params["jaxpr"], [*inputs[:consts], *carried, *slices])
        stacked = [value.stacked(params["length"]) for value in outputs[carries:]]
        return [*_in_loop(outputs[:carries], outputs), *stacked]

    def _while(self, params: Any, inputs: list[Value]) -> list[Value]:
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        carried = _in_loop(inputs[last:], inputs)
        self.follow(params["cond_jaxpr"], [*inputs[:first], *carried])
        outputs = self.follow(params["body_jaxpr"], [*inputs[first:last], *carried])
        return _in_loop(outputs, outputs)

    def _conv(self, params: Any, inputs: Sequence[Value], shape: tuple[int, ...]) -> Value:
        image, kernel = inputs
        numbers = params["dimension_numbers"]
        batch, feature, *space = numbers.lhs_spec
        axes = self.network.settle(image.axes)
        groups, spread = params["feature_group_count"], params["lhs_dilation"]
        kind = "conv"
        if max(spread, default=1) > 1:
            kind = "transposed"
        elif groups > 1 and groups == image.shape[feature]:
            kind = "depthwise"
        made: list[Axis] = []
        if space:
            made = self.network.window(
                kernel.leaf.layer if kernel.leaf else None,
                kind,
                [axes[d] for d in space],
                [image.shape[d] for d in space],
                [kernel.shape[d] for d in numbers.rhs_spec[2:]],
                params["window_strides"],
                params["rhs_dilation"],
                params["padding"],
                groups,
                spread,
            )
        result = [unknown(size) for size in shape]
        for d, axis in zip(numbers.out_spec[2:], made, strict=True):
            result[d] = axis
        result[numbers.out_spec[1]] = unknown(shape[numbers.out_spec[1]], "feature")
        if axes[batch] is not None and shape[numbers.out_spec[0]] == image.shape[batch]:
            result[numbers.out_spec[0]] = axes[batch]
        return Value(tuple(result), shape, depends=True)

    def _pool(self, kind: str, params: Any, image: Value, shape: tuple[int, ...]) -> Value:
        axes = self.network.settle(image.axes)
        window, stride, padding = (
            params["window_dimensions"],
            params["window_strides"],
            params["padding"],
        )
        spread, dilation = params["base_dilation"], params["window_dilation"]
        roles = [axis and axis.source.role for axis in axes]
        slid = [
            d
            for d in range(len(shape))
            if max(window[d], stride[d], spread[d]) > 1 or any(padding[d])
        ]
        over_channels = any(roles[d] == "feature" for d in slid)
        # A running total or maximum: every window begins, or ends, at the border.
        running = any(
            window[d] >= image.shape[d] > 2 and sorted(padding[d]) == [0, window[d] - 1]
            for d in slid
        )
        result = [
            axis if size == image.shape[d] else unknown(size)
            for d, (axis, size) in enumerate(zip(axes, shape, strict=True))
        ]
        if slid and not over_channels and not running:
            space = [d for d in range(len(shape)) if d in slid or roles[d] == "space"]
            made = self.network.window(
                None,
                kind,
                [axes[d] for d in space],
                [image.shape[d] for d in space],
                [window[d] for d in space],
                [stride[d] for d in space],
                [dilation[d] for d in space],
                [padding[d] for d in space],
                upsampling=[spread[d] for d in space],
            )
            for d, axis in zip(space, made, strict=True):
                result[d] = axis
        return Value(tuple(result), shape, depends=True)


def _in_loop(carried: Sequence[Value], influences: Sequence[Value]) -> list[Value]:
    """What goes round a loop is not a constant, and depends on data once anything in it does."""
    depends = any(value.depends for value in influences)
    return [value._replace(depends=value.depends or depends, const=None) for value in carried]


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return [value] if hasattr(getattr(value, "jaxpr", value), "eqns") else []
