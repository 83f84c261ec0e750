"""The generated reference says something about every key, flag and public name."""

import importlib
import inspect
import re
import sys

import pytest

from kernsym_jax import training

# Rooms whose every public function and class has an example.
WITH_EXAMPLES = ("symmetry", "geometry", "models", "weights", "evaluation", "report")


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


@pytest.mark.parametrize("room", WITH_EXAMPLES)
def test_every_public_function_and_class_has_a_docstring_with_an_example(room):
    module = importlib.import_module(f"kernsym_jax.{room}")
    for name in module.__all__:
        public = getattr(module, name)
        if inspect.isfunction(public) or inspect.isclass(public):
            assert ">>> " in (inspect.getdoc(public) or ""), f"{room}.{name} has no example"


def test_the_api_pages_name_every_public_name_once(reference):
    pages = reference.api_pages()
    for room in reference.ROOMS:
        module = importlib.import_module(f"kernsym_jax.{room}")
        found = re.findall(r'heading: "\w+\.(\w+)"', pages[f"reference/api/{room}.md"])
        assert found == list(module.__all__)
