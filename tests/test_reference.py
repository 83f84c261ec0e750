"""The generated reference says something about every key, flag and public name."""

import doctest
import importlib
import inspect
import re
import sys

import pytest

from kernsym_jax import training


@pytest.fixture(scope="module")
def reference(repository):
    sys.path.insert(0, str(repository / "docs" / "site"))
    yield importlib.import_module("reference")
    sys.path.pop(0)


def rows(page):
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line[:3] == "| `"]


def leaves(config, prefix="config"):
    for key, value in config.items():
        path = f"{prefix}.{key}"
        yield from leaves(value, path) if hasattr(value, "items") and len(value) else [path]


def test_the_configuration_page_explains_every_key_with_its_default(reference):
    explained = {}
    for key, default, meaning in rows(reference.configuration_page()):
        explained[key.strip(" `")] = (default.strip(" `"), meaning.strip())
    assert set(explained) == set(leaves(training.default()))
    assert all(len(meaning) > 10 for _, meaning in explained.values())
    assert explained["config.model.padding"][0] == "'zero'"


def test_the_command_page_explains_every_flag_and_gives_examples(reference):
    page = reference.commands_page()
    flags = re.findall(r"^\| <code>(.*?)</code> \|(.*)\|$", page, re.MULTILINE)
    assert all(len(meaning.strip()) > 10 for _, meaning in flags)
    named = {re.match(r"--(\w+)", flag)[1] for flag, _ in flags}
    assert {"config", "workdir", "study", "input_size", "trusted"} <= named
    for name in reference.BINARIES:
        assert page.count(f"python -m kernsym_jax.{name} ") >= 3


def test_every_public_function_and_class_has_an_example_that_the_suite_runs(reference):
    without = []
    for room in reference.ROOMS:
        for name, path in reference.public_names(room).items():
            module = importlib.import_module(path.rpartition(".")[0])
            public = getattr(module, name)
            # The finder is that of `doctest.testmod`.
            run = {test.name for test in doctest.DocTestFinder().find(module) if test.examples}
            is_code = inspect.isroutine(inspect.unwrap(public)) or inspect.isclass(public)
            if is_code and path not in run:
                without.append(f"{room}.{name}")
    assert not without


def test_the_api_pages_name_every_public_name_once(reference):
    pages = reference.api_pages()
    for room in reference.ROOMS:
        module = importlib.import_module(f"kernsym_jax.{room}")
        found = re.findall(r'heading: "\w+\.(\w+)"', pages[f"reference/api/{room}.md"])
        assert found == list(module.__all__)
