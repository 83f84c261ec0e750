"""What mkdocs does beside its own: generated pages, folders in the navigation, formulas as MathML.

The reference pages come from the package itself, so they cannot fall behind it.
"""

import html
import os
import pathlib
import re
import sys

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, os.path.dirname(__file__))

import notebook
import reference

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Links of these pages are relative to the root of the checkout.
_PROJECT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
_LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config):
    """Fills in the version."""
    config.extra["version_text"] = reference.version()
    return config


def on_files(files, config):
    """Adds the generated pages, and puts the pages of folders into the navigation."""
    pages = {"reference/configuration.md": reference.configuration_page()}
    pages["reference/commands.md"] = reference.commands_page()
    pages |= reference.api_pages()
    for page, source in _PROJECT_PAGES.items():
        pages[page] = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        text, pictures = notebook.page(path)
        pages[f"tutorials/{path.stem}.md"] = text
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    names = sorted((file.src_uri for file in files.documentation_pages()), key=_natural)
    config.nav = _expanded(config.nav, names)
    return files


def _natural(name):
    """Returns a key that sorts E2 before E10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _expanded(entries, names):
    """Returns the navigation with the pages of a folder in place of the folder."""
    result = []
    for entry in entries:
        title, value = next(iter(entry.items()))
        if isinstance(value, list):
            result.append({title: _expanded(value, names)})
        elif value.endswith("/"):
            pages = [name for name in names if name.startswith(value)]
            # A folder without pages has no place in the navigation.
            if pages:
                result.append({title: pages})
        else:
            result.append(entry)
    return result


def on_page_content(content, page, config, files):
    """Turns TeX into MathML, which browsers draw without a script."""

    def mathml(match):
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[2]).strip(), display=display)

    return _FORMULA.sub(mathml, content)


def on_post_page(output, page, config):
    """Refuses a page that loads something from the network."""
    loaded = _LOADED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from the network: {loaded[0]}")
    return output
