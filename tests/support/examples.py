"""The examples that docstrings give as literal blocks, behind ``::``."""

import inspect
import textwrap


def literal_blocks(owner):
    """Returns the source of each literal block in the docstring of a module or class."""
    blocks = []
    for rest in inspect.getdoc(owner).split("::\n\n")[1:]:
        lines = rest.splitlines()
        end = next((i for i, line in enumerate(lines) if line and line[0] != " "), len(lines))
        blocks.append(textwrap.dedent("\n".join(lines[:end])))
    return blocks
