"""Runs a function of a network once for little work: equal blocks are traced and compiled once.

A test that runs each of many networks once spends its time in tracing and in the compiler. Here
every block and layer just below a network becomes a function of its own, forwards and backwards.
The blocks of a stage, and the networks of a family, then share most of what is done.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
from flax.errors import InvalidRngError
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from kernsym_jax.layers import Downsample

# The other optimisations only lengthen the compilation of something that runs once.
_ONCE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_OFTEN = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
_compiled = {}
# The blocks that are known to draw random numbers.
_drawing = set()


def compile_for_one_run(lowered):
    """Compiles in the shortest time, which gives slow code."""
    return _compile_with(lowered, _ONCE)


def compile_for_many_runs(lowered):
    """Compiles a little longer than the rest of the suite does, for twice as fast code."""
    return _compile_with(lowered, _OFTEN)


def _compile_with(lowered, options):
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError:
        # XLA renames its options from time to time; without them the result is the same.
        return lowered.compile()


def run_by_blocks(function, *arguments):
    """Returns ``function(*arguments)``, whose blocks are the modules just below a network.

    A network that is applied in ``function`` does not update its variables.
    """
    with nn.intercept_methods(_call_block):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = closed.jaxpr
    values = dict(zip(graph.constvars, closed.consts, strict=True))
    values.update(zip(graph.invars, jax.tree.leaves(arguments), strict=True))
    for part in _parts(graph):
        given = [values[v] for v in part.invars]
        values.update(zip(part.outvars, _compile(part, given)(*given), strict=True))
    results = [v.val if isinstance(v, Literal) else values[v] for v in graph.outvars]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _call_block(next_call, args, kwargs, context):
    """Calls a module just below a network as a function that equal modules share."""
    module = context.module
    # A Downsample has another method that draws, and both draw alike only in the same call.
    if len(module.path) != 1 or context.method_name != "__call__" or isinstance(module, Downsample):
        return next_call(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    own = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf if array else None for leaf, array in zip(leaves, own, strict=True)]
    fixed = tuple(None if array else leaf for leaf, array in zip(leaves, own, strict=True))
    block = module.clone(parent=None, name=None), structure, fixed
    if block not in _drawing:
        try:
            return _block(*block, arrays, module.variables, {})
        except InvalidRngError:
            _drawing.add(block)
    # These keys know the path of the module, so that no two blocks draw the same numbers.
    return _block(*block, arrays, module.variables, module.scope.rngs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _block(module, structure, fixed, arrays, variables, rngs):
    leaves = [a if array is None else array for a, array in zip(fixed, arrays, strict=True)]
    args, kwargs = jax.tree.unflatten(structure, leaves)
    return module.apply(variables, *args, rngs=rngs, mutable=["batch_stats"], **kwargs)[0]


def _is_block(eqn):
    return _block.__name__ in str(eqn.params.get("name"))


def _parts(graph):
    """The graph in order: the blocks, and what lies between them."""
    groups = []
    last_use = dict.fromkeys(_variables(graph.outvars), len(graph.eqns))
    for number, eqn in reversed(list(enumerate(graph.eqns))):
        for variable in _variables(eqn.invars):
            last_use.setdefault(variable, number)
    for number, eqn in enumerate(graph.eqns):
        if not groups or _is_block(eqn) or _is_block(groups[-1][-1][1]):
            groups.append([])
        groups[-1].append((number, eqn))
    for group in groups:
        eqns = [eqn for _, eqn in group]
        made = dict.fromkeys(v for eqn in eqns for v in eqn.outvars)
        used = dict.fromkeys(v for eqn in eqns for v in _variables(eqn.invars))
        yield Jaxpr(
            constvars=[],
            invars=[v for v in used if v not in made],
            outvars=[v for v in made if last_use.get(v, -1) > group[-1][0]],
            eqns=eqns,
            debug_info=graph.debug_info,
        )


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _constants(graph):
    """The values of the constants that the printed form of a graph leaves out."""
    for eqn in graph.eqns:
        for inner in eqn.params.values():
            if isinstance(inner, ClosedJaxpr):
                yield from (np.asarray(value).tobytes() for value in inner.consts)
                yield from _constants(inner.jaxpr)
        literals = (atom.val for atom in eqn.invars if isinstance(atom, Literal))
        yield from (value.tobytes() for value in literals if np.ndim(value))


def _key(part):
    """Equal for parts that do the same."""
    if not _is_block(part.eqns[0]):
        return str(part), *_constants(part)
    # JAX keeps one graph for all calls of a block; the places of its arguments may differ.
    (eqn,) = part.eqns
    places = {v: number for number, v in enumerate([*part.invars, *eqn.outvars])}
    arguments = (a.val if isinstance(a, Literal) else places[a] for a in eqn.invars)
    return eqn.params["jaxpr"], *arguments, *(places[v] for v in part.outvars)


def _compile(part, given):
    key = _key(part)
    if key not in _compiled:
        lowered = jax.jit(jaxpr_as_fun(ClosedJaxpr(part, []))).lower(*given)
        _compiled[key] = compile_for_one_run(lowered)
    return _compiled[key]
