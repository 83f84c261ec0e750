"""The reference pages: configuration, commands and API, read from the package's source."""

import ast
import html
import json
import pathlib
import re
import subprocess
import sys
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kernsym_jax"
BINARIES = ("train", "evaluate", "analyze", "audit", "study")
# The rooms that a user's code imports from, and for each the sentence in the navigation.
ROOMS = (
    "symmetry",
    "geometry",
    "weights",
    "models",
    "layers",
    "report",
    "evaluation",
    "training",
    "data",
    "studies",
)
_CONFIG = PACKAGE / "training" / "config.py"

# Prints what one binary says about itself. Binaries share flags' names: each needs a process.
_DESCRIBE = """
import importlib, json, sys
command = importlib.import_module("kernsym_jax." + sys.argv[1]).COMMAND
rows = [(heading, flag.form, flag.help) for heading, flag in command.flags()]
print(json.dumps({
    "summary": command.summary,
    "usage": [f"python -m kernsym_jax.{command.name} {form}" for form in command.usage],
    "flags": rows,
    "examples": dict(command.examples),
    "choices": {name: dict(names) for name, names in command.choices().items()},
}))
"""


def version():
    """Returns the version of the package."""
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]


def configuration_page():
    """Returns the page of all configuration keys, with the comments of `training.config`."""
    source = _CONFIG.read_text("utf-8")
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    with _CONFIG.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    comments = {token.start[0]: token.string.removeprefix("#").strip() for token in tokens}
    lines = [
        "# Configuration",
        "",
        "A config file changes some of these keys; a flag changes one: "
        "`--config.model.padding=reflect`. The page is generated from the comments in "
        "`kernsym_jax/training/config.py`.",
    ]
    for prefix, name in [("", "default"), *_nested(functions["default"])]:
        title = f"`config.{prefix}`" if prefix else "The run"
        lines += ["", f"## {title}", ""]
        if prefix:
            lines += [_comment_of(functions["default"], prefix, comments), ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += _rows(functions[name], prefix, comments)
    return "\n".join(lines) + "\n"


def _assignments(function):
    """Yields (key, value node, line) of every ``config.key = value``."""
    for node in function.body:
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                yield target.attr, node.value, node.lineno


def _nested(function):
    """Returns the (key, function) of the keys whose value is a function of the module."""
    return [
        (key, value.func.id)
        for key, value, _ in _assignments(function)
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
    ]


def _comment_above(line, comments):
    """Returns the comment that ends just above a line, or "" if there is none."""
    first = line
    while first - 1 in comments:
        first -= 1
    return " ".join(comments[number] for number in range(first, line))


def _comment_of(function, wanted, comments):
    return next(
        _comment_above(n, comments) for key, _, n in _assignments(function) if key == wanted
    )


def _rows(function, prefix, comments):
    """Returns one row per key; keys under one comment share it."""
    rows, meaning = [], ""
    for key, value, line in _assignments(function):
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            continue
        meaning = _comment_above(line, comments) or meaning
        path = f"config.{prefix}.{key}" if prefix else f"config.{key}"
        default = "`{}`" if isinstance(value, ast.Call) else f"`{ast.unparse(value)}`"
        rows.append(f"| `{path}` | {default} | {_cell(meaning)} |")
    return rows


def commands_page():
    """Returns the page of all commands, with what each says about itself under ``--help``."""
    lines = [
        "# Commands",
        "",
        "Each command runs as `python -m kernsym_jax.NAME`, and as `kernsym-NAME` once the package "
        "is installed. The page is generated from what the commands say under `--help`.",
        "",
        "Every command knows `--help` (`-h`), `--version`, `--completion=bash|zsh`, which prints "
        "the script with which the shell completes it, and `--verbosity=1`, which shows the "
        "traceback of an error.",
        "",
        "| exit status | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | some of several sources failed; the rest is done |",
        "| 2 | bad usage, or input that cannot be used; one line says what and why |",
        "| 75 | stopped by a signal, after saving |",
    ]
    for name in BINARIES:
        described = _described(name)
        lines += ["", f"## {name}", "", described["summary"], "", "```text", *described["usage"]]
        lines += ["```", "", "| flag | meaning |", "|---|---|"]
        group = None
        for heading, form, meaning in described["flags"]:
            if heading != group:
                lines.append(f"| **{heading}** | |")
                group = heading
            # In backquotes a bar would need a backslash, which would show.
            shown = html.escape(form).replace("|", "&#124;")
            lines.append(f"| <code>{shown}</code> | {_cell(meaning)} |")
        for arguments, meaning in described["examples"].items():
            lines += ["", f"{meaning}:", "", "```text"]
            lines += [f"python -m kernsym_jax.{name} {arguments}", "```"]
        for flag, names in described["choices"].items():
            if names and any(names.values()):
                lines += ["", f"Names for `--{flag}`:", "", "| name | |", "|---|---|"]
                lines += [f"| `{choice}` | {_cell(text)} |" for choice, text in names.items()]
    return "\n".join(lines) + "\n"


def _described(name):
    command = [sys.executable, "-c", _DESCRIBE, name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        raise RuntimeError(f"cannot describe {name}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")


def public_names(room):
    """Returns {public name: the full path where it is defined}, in the order of ``__all__``."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))
    defined, exported = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                defined[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    here = f"kernsym_jax.{room}"
    return {name: defined.get(name, f"{here}.{name}") for name in exported}


def api_pages():
    """Returns the pages of the API reference, one for each room."""
    pages = {}
    for room in ROOMS:
        lines = [f"# `{room}`", "", f"::: kernsym_jax.{room}", "    options:"]
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false"]
        lines += ["      members: false", ""]
        for name, path in public_names(room).items():
            lines += [f"::: {path}", "    options:", f'      heading: "{room}.{name}"']
            lines += [f'      toc_label: "{name}"', ""]
        pages[f"reference/api/{room}.md"] = "\n".join(lines)
    return pages
