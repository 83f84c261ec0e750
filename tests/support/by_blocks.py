"""Runs a function of a network once for little compilation: equal blocks are compiled once.

A test that runs each of many networks once spends its time in the compiler. Here the graph is cut
where one block of the network ends and the next begins, forwards and backwards. The blocks of a
stage, and the networks of a family, then share most of what is compiled.
"""

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

# The optimisations that only lengthen the compilation of something that runs once.
_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_compiled = {}


def compile_for_one_run(lowered):
    """Compiles in the shortest time, which gives slow code."""
    try:
        return lowered.compile(_OPTIONS)
    except jax.errors.JaxRuntimeError:
        # XLA renames its options from time to time; without them the result is the same.
        return lowered.compile()


def run_by_blocks(function, *arguments):
    """Returns ``function(*arguments)``, whose blocks are the modules just below a network."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = closed.jaxpr
    values = dict(zip(graph.constvars, closed.consts, strict=True))
    values.update(zip(graph.invars, jax.tree.leaves(arguments), strict=True))
    for part in _parts(graph):
        given = [values[v] for v in part.invars]
        values.update(zip(part.outvars, _compile(part, given)(*given), strict=True))
    results = [v.val if isinstance(v, Literal) else values[v] for v in graph.outvars]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _parts(graph):
    """The graph block by block, in order."""
    groups, current = [], None
    last_use = dict.fromkeys(_variables(graph.outvars), len(graph.eqns))
    for number, eqn in reversed(list(enumerate(graph.eqns))):
        for variable in _variables(eqn.invars):
            last_use.setdefault(variable, number)
    for number, eqn in enumerate(graph.eqns):
        # A scope is "Network/block/layer", within "transpose(jvp(…))" on the way back.
        scopes = str(eqn.source_info.name_stack).split("/")
        block = scopes[1] if len(scopes) > 1 else current
        if not groups or block != current:
            groups.append([])
        current = block
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


def _compile(part, given):
    key = str(part), *_constants(part)
    if key not in _compiled:
        lowered = jax.jit(jaxpr_as_fun(ClosedJaxpr(part, []))).lower(*given)
        _compiled[key] = compile_for_one_run(lowered)
    return _compiled[key]
