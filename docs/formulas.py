"""Render formulas as MathML, which browsers display without a script."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def write_inline(writer: Any, node: nodes.Element) -> None:
    """Render an inline formula."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_display(writer: Any, node: nodes.Element) -> None:
    """Render a displayed formula."""
    mathml = convert(" ".join(node.astext().split()), display="block")
    writer.body.append(f'<div class="formula">{mathml}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
