"""The audit of a JAX function: its convolutions and pooling layers, read from its jaxpr."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from kernsym_jax.geometry import jaxpr_value, primitives
from kernsym_jax.geometry.axis import Axis, Source, unknown, whole
from kernsym_jax.geometry.jaxpr_value import Leaf, Value
from kernsym_jax.geometry.layer import LayerGeometry
from kernsym_jax.geometry.network import Network, Sliding

_POOLS = {
    "reduce_window_max": "max_pool",
    "reduce_window_min": "min_pool",
    "reduce_window_sum": "avg_pool",
    "reduce_window": "pool",
}


def audit(fn: Callable[..., Any], *example_args: Any) -> list[LayerGeometry]:
    """Reads the geometry of every convolution and pooling layer from a JAX function.

    The function is traced once; nothing is computed or compiled. The audit looks into jit, custom
    derivatives, remat, shard_map, scan, loops and branches, and reads any data layout, any number
    of spatial axes and vmap. Everything that pads a map before a layer counts as the padding of
    this layer: ``pad``, ``jnp.pad`` in any mode, concatenated slices, index arrays. A strided slice
    of a map, or a sum of shifted ones, is a layer of kind ``subsample``.

    The name of a layer is the path of its weights in ``example_args``, without the argument's
    number, a leading ``params`` collection and the weights' own name (``kernel``, ``weight``,
    ``w``): ``{"params": {"block": {"conv": {"kernel": …}}}}`` gives ``"block/conv"``. The function
    may cast, transpose, reshape, mask or scale the weights before the convolution. If ``fn`` is
    itself a pytree (an Equinox or NNX module) or closes over one, its weights give names too.

    Some limits: the padding is what the function adds at the traced size, so TensorFlow's SAME
    looks like the same numbers given explicitly. A slice whose start depends on data is assumed to
    start at 0. The body of a loop is listed once, with ``repeats``. Of the functions given to
    ``jax.lax.platform_dependent`` only the default, or else the last, is read. A vmap over weights
    makes one grouped convolution of all members, as ``groups`` shows.

    Args:
      fn: any function that JAX can trace.
      *example_args: pytrees of arrays or `jax.ShapeDtypeStruct`; other leaves, such as flags, are
        passed unchanged.

    Returns:
      A row per layer, in the order in which the layers run.

    Raises:
      ValueError: if a map is empty or a kernel is larger than its padded input; the message names
        the layer.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import geometry
    >>> def network(params, images):
    ...     return jax.lax.conv_general_dilated(
    ...         images, params["conv"]["kernel"], (2, 2), [(1, 1), (1, 1)],
    ...         dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ...     )
    ...
    >>> params = {"conv": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    >>> (row,) = geometry.audit(network, params, jnp.zeros((1, 32, 32, 3)))
    >>> row.layer, row.input_size, row.output_size, row.uneven
    ('conv', (32, 32), (16, 16), (1, 1))
    """
    leaves, arrays, call = jaxpr_value.arguments(fn, example_args)
    jaxpr = jax.make_jaxpr(call)(*arrays)
    inputs = []
    for number, (leaf, array) in enumerate(zip(leaves, arrays, strict=True), start=1):
        axes = tuple(whole(Source(size, frozenset({-number}))) for size in array.shape)
        inputs.append(Value(axes, array.shape, depends=True, leaf=leaf))
    network = Network()
    for value in _Follower(network, jaxpr_value.closed_over(fn)).follow(jaxpr, inputs):
        network.leave(value.axes)
    return network.rows()


def audit_module(
    module: Any, input_size: int | Sequence[int], channels: int = 3
) -> list[LayerGeometry]:
    """Reads the geometry of a Linen module's layers, without making any weights.

    Args:
      module: its call takes images (batch, height, width, channels) float32 and ``train``.
      input_size: pixels of the images, one number for squares or (height, width).
      channels: channels of the images.

    Returns:
      A row per layer, as `audit` does.

    Raises:
      ValueError: as `audit` does, and whatever the module raises at this size.

    >>> from kernsym_jax import geometry, models
    >>> rows = geometry.audit_module(models.create("small_cnn"), 32)
    >>> [row.layer for row in rows if any(row.uneven)]
    ['conv2', 'conv4']
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
        """Returns the outputs of a jaxpr; a closed one brings its constants."""
        consts = [self._constant(const) for const in getattr(jaxpr, "consts", ())]
        jaxpr = _open(jaxpr)
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
        # A convolution of constants is no layer: partial convolution, for example, uses one to
        # count how much of each window lies on the image.
        if name == "conv_general_dilated" and depends:
            return [self._conv(params, inputs, equation.outvars[0].aval.shape)]
        if name in _POOLS and depends:
            image = next(value for value in inputs if value.depends)
            made = self._pool(_POOLS[name], params, image, equation.outvars[0].aval.shape)
            return [made] * len(equation.outvars)
        if name == "scan":
            return self._scan(equation, inputs)
        if name == "while":
            return self._while(equation, inputs)
        if name == "cond" and params.get("branches_platforms"):
            # `jax.lax.platform_dependent` has a branch for each platform, the default last.
            return self.follow(params["branches"][-1], inputs[1:])
        if name == "cond":
            branches = [functools.partial(self.follow, j, inputs[1:]) for j in params["branches"]]
            results = zip(*self.network.branches(branches), strict=True)
            return [jaxpr_value.either(self.network, values) for values in results]
        for jaxpr in (j for value in params.values() for j in _jaxprs(value)):
            inner = _open(jaxpr)
            shapes = [v.aval.shape for v in inner.invars]
            if name == "shard_map":  # each device sees its part
                inputs = [v.resized(shape) for v, shape in zip(inputs, shapes, strict=True)]
            same_inputs = shapes == [v.shape for v in inputs]
            if same_inputs and len(inner.outvars) == len(equation.outvars):
                outputs = zip(self.follow(jaxpr, inputs), equation.outvars, strict=True)
                return [v.resized(out.aval.shape) for v, out in outputs]
        return primitives.apply(self.network, equation, inputs)

    def _constant(self, array: Any) -> Value:
        return jaxpr_value.constant(array)._replace(leaf=self.names.get(id(array)))

    def _scan(self, equation: Any, inputs: list[Value]) -> list[Value]:
        body, length = equation.params["jaxpr"], equation.params["length"]
        consts, carries = _scan_counts(equation)
        carried = _in_loop(inputs[consts : consts + carries], inputs)
        slices = [value.without_first() for value in inputs[consts + carries :]]
        with self.network.loop(length):
            outputs = self.follow(body, [*inputs[:consts], *carried, *slices])
        stacked = [value.stacked(length) for value in outputs[carries:]]
        return [*_in_loop(outputs[:carries], outputs), *stacked]

    def _while(self, equation: Any, inputs: list[Value]) -> list[Value]:
        condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
        carries = len(equation.outvars)
        first = len(_open(condition).invars) - carries
        last = first + len(_open(body).invars) - carries
        carried = _in_loop(inputs[last:], inputs)
        self.follow(condition, [*inputs[:first], *carried])
        outputs = self.follow(body, [*inputs[first:last], *carried])
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
                Sliding(
                    kernel=[kernel.shape[d] for d in numbers.rhs_spec[2:]],
                    stride=params["window_strides"],
                    dilation=params["rhs_dilation"],
                    padding=params["padding"],
                    groups=groups,
                    upsampling=spread,
                ),
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
        # Every window of a running total or maximum begins, or ends, at the border.
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
                Sliding(
                    kernel=[window[d] for d in space],
                    stride=[stride[d] for d in space],
                    dilation=[dilation[d] for d in space],
                    padding=[padding[d] for d in space],
                    upsampling=[spread[d] for d in space],
                ),
            )
            for d, axis in zip(space, made, strict=True):
                result[d] = axis
        return Value(tuple(result), shape, depends=True)


def _in_loop(carried: Sequence[Value], influences: Sequence[Value]) -> list[Value]:
    """Returns the values that a loop carries: no constants, and all depend on data if one does."""
    depends = any(value.depends for value in influences)
    return [value._replace(depends=value.depends or depends, const=None) for value in carried]


def _jaxprs(value: Any) -> list[Any]:
    """Returns the jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return [value] if hasattr(_open(value), "eqns") else []


def _open(jaxpr: Any) -> Any:
    """Returns the jaxpr of a closed jaxpr, and any other object unchanged."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _scan_counts(equation: Any) -> tuple[int, int]:
    """Returns how many operands of a scan are constants and how many it carries.

    The parameters that hold these numbers are private to JAX and differ between versions
    (``num_consts`` and ``num_carry`` below 0.11, ``ft_in`` and ``ft_out`` from 0.11 on). The ranks
    tell as well: an operand that is scanned, and an output that is stacked, have one dimension more
    than inside the body.
    """
    body = _open(equation.params["jaxpr"])

    def count_equal(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carries = count_equal(equation.outvars, body.outvars)
    return count_equal(equation.invars, body.invars) - carries, carries
