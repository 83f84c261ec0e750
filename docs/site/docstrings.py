"""Prepares the docstrings of the package for the API reference.

Examples become code blocks, literal blocks after ``::`` too, and a public name in backquotes
becomes a link to its entry.
"""

import re

import griffe
import reference

_EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?(?:^[ ]*\S.*\n?)*\n*)+", re.MULTILINE)
_LITERAL = re.compile(r"::\n\n((?:    .*\n|\n)+)")
_NAME = re.compile(r"(?<![`\[\w])`((?:\w+\.)?\w+)`(?![`\]])")


def _links():
    """Returns {name as docstrings write it: full path}, without names that two rooms share."""
    paths = {}
    for room in reference.ROOMS:
        for name, path in reference.public_names(room).items():
            paths.setdefault(f"{room}.{name}", set()).add(path)
            paths.setdefault(name, set()).add(path)
    return {name: found.pop() for name, found in paths.items() if len(found) == 1}


def rewritten(text, links):
    """Returns the docstring as Markdown."""

    def block(match):
        lines = match[0].rstrip().splitlines()
        return "```pycon\n" + "\n".join(line.strip("\n") for line in lines) + "\n```\n"

    def literal(match):
        lines = [line.removeprefix("    ") for line in match[1].rstrip().splitlines()]
        return ":\n\n```python\n" + "\n".join(lines) + "\n```\n\n"

    def link(match):
        return f"[`{match[1]}`][{links[match[1]]}]" if match[1] in links else match[0]

    prose = _NAME.sub(link, _LITERAL.sub(literal, text))
    return _EXAMPLE.sub(block, prose)


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def __init__(self):
        """Collects the public names once."""
        self._links = _links()

    def on_instance(self, *, obj, **kwargs):
        """Rewrites the docstring of one object."""
        if obj.is_alias or obj.docstring is None:
            return
        own = {name: path for name, path in self._links.items() if path != obj.path}
        obj.docstring.value = rewritten(obj.docstring.value, own)
