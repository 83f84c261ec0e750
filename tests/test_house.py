"""The package keeps its layout: few modules, none too long, functions that fit a screen."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "kernsym_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

MOST_MODULES = 130
LONGEST_MODULE = 450
LONGEST_FUNCTION = 60
# Tables in the form of a function: one line a key, with its explanation.
TABLES = {("kernsym_jax/training/config.py", "default")}


def name(path):
    return path.relative_to(PACKAGE.parent).as_posix()


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function):
    """Lines of a function without its docstring."""
    first, *_ = function.body
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno + 1 if is_docstring else function.lineno
    return function.end_lineno - start + 1


def test_the_package_has_fewer_modules_than_the_limit():
    assert 0 < len(MODULES) < MOST_MODULES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_and_its_functions_are_short_enough_to_read(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    long = {
        f"{function.name} (line {function.lineno})": code_lines(function)
        for function in functions(ast.parse(text))
        if code_lines(function) > LONGEST_FUNCTION and (name(path), function.name) not in TABLES
    }
    assert not long


def test_every_room_is_in_the_import_contract(repository):
    contract = (repository / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", contract.split("layers = [")[1].split("]")[0]))
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert rooms - {"py.typed"} == listed
