"""Turns an executed notebook into a page, with the outputs that it holds."""

import base64
import json


def page(path):
    """Returns the Markdown of a notebook, and its pictures as {name: bytes}."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    lines, pictures = [], {}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            content = output.get("data", {})
            if "image/png" in content:
                name = f"{path.stem}_{number}.png"
                pictures[name] = base64.b64decode("".join(content["image/png"]))
                lines += [f"![The output of the cell above]({name})", ""]
            elif "text" in output or "text/plain" in content:
                text = "".join(output.get("text") or content["text/plain"])
                lines += ["```text", text.rstrip("\n"), "```", ""]
    lines += [
        f"This page is the notebook `docs/tutorials/{path.name}`; the suite runs its cells.",
        "",
    ]
    return "\n".join(lines), pictures
