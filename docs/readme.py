"""Write README.md from nbs/index.ipynb: prose, code with its text output, and generated tables."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_LINK = re.compile(r"\]\(([\w/]+\.ipynb)\)")  # Seen from nbs/
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|export|echo)", re.MULTILINE)


def text_of(output: dict) -> str:
    """The text that a cell printed or displayed; empty if there is none."""
    return "".join(output.get("text", output.get("data", {}).get("text/plain", []))).rstrip()


def markdown_of(output: dict) -> str:
    """The Markdown that a cell displayed, such as a table; empty if there is none."""
    return "".join(output.get("data", {}).get("text/markdown", [])).strip()


def text() -> str:
    """The cells as Markdown: prose unchanged, code and its text output in fences."""
    parts = ["<!-- Written from nbs/index.ipynb by docs/readme.py; edit the notebook. -->"]
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(NOTEBOOK_LINK.sub(r"](nbs/\1)", source))
        elif HIDDEN.search(source):
            parts += [table for output in cell["outputs"] if (table := markdown_of(output))]
        else:
            shown = [printed for output in cell["outputs"] if (printed := text_of(output))]
            parts += [f"```python\n{source}\n```", *(f"```\n{printed}\n```" for printed in shown)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(text(), encoding="utf-8")
