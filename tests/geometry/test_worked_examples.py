"""The worked examples in the docstrings of axis and network come out as the text says."""

import numpy as np
from examples import literal_blocks

from kernsym_jax.geometry import axis, network


def run_examples(module):
    """Runs the code blocks of a docstring; returns their names and the values of expressions."""
    names = {**vars(axis), **vars(network), "np": np}
    values = []
    for block in literal_blocks(module):
        for statement in block.strip().splitlines():
            try:
                values.append(eval(statement, names))
            except SyntaxError:
                exec(statement, names)
    return names, values


def test_a_reflected_map_and_the_sum_of_two_slices_are_read_as_the_example_says():
    _, (reading, window) = run_examples(axis)
    assert str(reading) in module_text(axis)
    assert window == (2, 1, 2)


def test_a_strided_convolution_and_its_pooling_are_recorded_as_the_example_says():
    names, _ = run_examples(network)
    conv, pool = names["network"].rows()
    assert (conv.layer, conv.output_size, conv.uneven, conv.reads) == (
        "conv1", (112, 112), (1, 1), (-1,),
    )  # fmt: skip
    assert (pool.layer, pool.reads) == ("max_pool_1", (0,))


def module_text(module):
    return module.__doc__.replace('"', "'")
